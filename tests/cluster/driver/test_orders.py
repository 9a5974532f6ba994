"""Sequence of the orders; none is lost or doubled."""

from longview.actors.task import load_task
from longview.actors.worker import Order, Result
from longview.cluster.driver.orders import Orders
from longview.cluster.run.config import read_config
from longview.monitoring.success import Counts, Evaluation

SPEC = load_task("return_point").spec
LENGTHS = [1, 8, 64]


def make(**settings: object) -> Orders:
    base = {
        "actors.simulators": 4,
        "actors.episodes_per_version": 8,
        "evaluation.episodes": 10,
        "evaluation.final_episodes": 20,
        "evaluation.context_lengths": LENGTHS,
    }
    config = read_config(None, [f"{key}={value}" for key, value in (base | settings).items()])
    return Orders(config, SPEC, purpose="correction", collected=0)


def drain(orders: Orders, newest: int | None = None) -> list[Order]:
    given = []
    while (order := orders.take(newest)) is not None:
        given.append(order)
    return given


def result(order: Order) -> Result:
    return Result({"success": order.count}, 10 * order.count)


def test_only_missing_demonstrations_are_asked_for() -> None:
    orders = make()
    orders.demonstrate([0, 1, 2, 5, 6, 9])
    given = drain(orders)
    assert [index for o in given for index in range(o.first, o.first + o.count)] == [0, 1, 2, 5, 6, 9]
    assert all((o.purpose, o.beta, o.version) == ("demo", 1.0, None) for o in given)


def test_a_round_evaluates_every_context_length_on_one_version() -> None:
    orders = make()
    orders.published(100)
    given = [o for o in drain(orders, newest=120) if o.purpose == "evaluation"]
    assert {o.version for o in given} == {100}
    episodes = {length: sum(o.count for o in given if o.context_length == length) for length in LENGTHS}
    assert episodes == dict.fromkeys(LENGTHS, 10)


def test_collecting_takes_the_newest_version_and_beta_decays() -> None:
    orders = make(**{"learner.steps": 1000, "actors.beta_until": 0.5, "evaluation.episodes": 0})
    orders.published(100)
    (order,) = drain(orders, newest=250)
    assert (order.purpose, order.version, order.beta) == ("correction", 250, 0.5)
    orders.finish(order, result(order))
    orders.published(600)
    (order,) = drain(orders, newest=600)
    assert order.beta == 0.0
    assert order.first == 8


def test_without_an_expert_the_policy_alone_collects() -> None:
    config = read_config(None, ["evaluation.episodes=0"])
    orders = Orders(config, SPEC, purpose="rollout", collected=0)
    orders.published(1)
    assert {(o.purpose, o.beta) for o in drain(orders, newest=1)} == {("rollout", 0.0)}


def test_evaluating_and_collecting_go_on_side_by_side() -> None:
    orders = make()
    orders.published(100)
    first, second = orders.take(100), orders.take(100)
    assert first is not None
    assert second is not None
    assert {first.purpose, second.purpose} == {"evaluation", "correction"}


def test_a_new_round_waits_for_the_last_one() -> None:
    orders = make(**{"actors.episodes_per_version": 0})
    orders.published(100)
    order = orders.take(100)
    assert order is not None
    orders.published(200)
    assert {o.version for o in drain(orders)} == {100}


def test_an_order_given_back_is_given_again() -> None:
    orders = make()
    orders.demonstrate(range(4))
    order = orders.take(None)
    assert order is not None
    orders.give_back(order)
    assert not orders.idle
    assert orders.take(None) == order


def test_the_last_evaluation_replaces_all_other_work() -> None:
    orders = make()
    orders.published(100)
    stale = orders.take(100)
    assert stale is not None
    orders.conclude(200, done={8})
    orders.give_back(stale)
    given = drain(orders)
    assert {(o.version, o.context_length) for o in given} == {(200, 1), (200, 64)}
    finished = [e for o in given if (e := orders.finish(o, result(o))) is not None]
    assert [(e.context_length, e.counts) for e in finished] == [
        (1, Counts(20, 20, 20)),
        (64, Counts(20, 20, 20)),
    ]
    assert orders.idle


def test_an_evaluation_tells_completion_from_memory_and_leaves_out_the_invalid() -> None:
    orders = make(**{"actors.episodes_per_version": 0, "evaluation.context_lengths": [8]})
    orders.published(100)
    given = drain(orders)
    assert [order.count for order in given] == [8, 2]
    assert orders.finish(given[0], Result({"success": 3, "wrong": 2, "invalid": 3}, 80)) is None
    evaluation = orders.finish(given[1], Result({"failure": 1, "invalid": 1}, 20))
    assert evaluation is not None
    outcomes = {"success": 3, "wrong": 2, "invalid": 4, "failure": 1}
    assert evaluation == Evaluation(100, 8, 10, outcomes, steps=100)
    assert evaluation.counts == Counts(3, 5, 6)


def test_results_of_a_replaced_round_are_ignored() -> None:
    orders = make(**{"actors.episodes_per_version": 0})
    orders.published(100)
    order = orders.take(100)
    assert order is not None
    orders.conclude(200)
    assert orders.finish(order, result(order)) is None
    assert all(evaluation.rolled_out == 0 for evaluation in orders.evaluations.values())
