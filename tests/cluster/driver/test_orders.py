"""Sequence of the orders; none is lost or doubled."""

from collections import Counter

from longview.actors.task import load_task
from longview.actors.worker import Order, Result
from longview.cluster.driver.collection import Collection
from longview.cluster.driver.orders import Orders
from longview.cluster.run.config import read_config
from longview.monitoring.success import Counts, Evaluation

SPEC = load_task("return_point").spec
LENGTHS = [1, 8, 64]


def make(**settings: object) -> Orders:
    base = {
        "actors.simulators": 4,
        "evaluation.episodes": 10,
        "evaluation.final_episodes": 20,
        "evaluation.context_lengths": LENGTHS,
    }
    config = read_config(None, [f"{key}={value}" for key, value in (base | settings).items()])
    return Orders(config, SPEC, Collection(config, SPEC, sizes=lambda: (10**9, 10**9)))


def drain(orders: Orders, newest: int | None = None) -> list[Order]:
    given = []
    while (order := orders.take(newest)) is not None:
        given.append(order)
    return given


def result(order: Order) -> Result:
    endings = dict.fromkeys(range(order.first, order.first + order.count), "success")
    return Result({"success": order.count}, 10 * order.count, endings=endings)


def test_only_missing_demonstrations_are_asked_for() -> None:
    orders = make()
    orders.demonstrate([0, 1, 2, 5, 6, 9])
    given = drain(orders)
    assert [index for o in given for index in range(o.first, o.first + o.count)] == [0, 1, 2, 5, 6, 9]
    assert all((o.purpose, o.version) == ("demo", None) for o in given)


def test_a_round_evaluates_every_context_length_on_one_version() -> None:
    orders = make()
    orders.published(100)
    given = [o for o in drain(orders, newest=120) if o.purpose == "evaluation"]
    assert {o.version for o in given} == {100}
    episodes = {length: sum(o.count for o in given if o.context_length == length) for length in LENGTHS}
    assert episodes == dict.fromkeys(LENGTHS, 10)


def test_evaluations_have_the_delay_of_the_settings() -> None:
    orders = make(**{"evaluation.delay": 3})
    orders.demonstrate(range(3))
    orders.published(100)
    assert {(o.purpose, o.delay) for o in drain(orders)} == {("demo", 0), ("evaluation", 3)}


def test_a_share_of_the_actors_collects_while_the_others_evaluate() -> None:
    orders = make(**{"collect.kind": "takeover", "collect.share": 0.25, "evaluation.episodes": 100})
    orders.published(100)
    given = [order for _ in range(36) if (order := orders.take(100)) is not None]
    episodes = Counter[str]()
    for order in given:
        episodes[order.purpose] += order.count
    assert 0.2 < episodes["correction"] / episodes.total() < 0.3


def test_a_single_actor_evaluates_and_collects_by_turns() -> None:
    orders = make(**{"actors.count": 1, "collect.kind": "takeover", "evaluation.episodes": 100})
    for version in (100, 200):
        orders.published(version)
        kinds, evaluated = [], 0
        while evaluated < 3:
            order = orders.take(version, trained=10_000)
            assert order is not None
            kinds.append(order.purpose)
            evaluated += orders.finish(order, result(order)) is not None
        assert (
            0.45
            < sum(kind == "correction" for kind in kinds) * 4 / (300 + 4 * kinds.count("correction"))
            < 0.55
        )


def test_all_actors_collect_while_nothing_is_evaluated() -> None:
    orders = make(**{"collect.kind": "takeover", "evaluation.episodes": 0})
    orders.published(100)
    assert {order.purpose for _ in range(5) if (order := orders.take(100)) is not None} == {"correction"}


def test_nothing_is_collected_once_the_last_evaluation_has_begun() -> None:
    orders = make(**{"collect.kind": "takeover"})
    orders.conclude(200)
    assert {order.purpose for order in drain(orders, newest=200)} == {"evaluation"}
    assert orders.held is None


def test_a_new_round_waits_for_the_last_one() -> None:
    orders = make()
    orders.published(100)
    order = orders.take(100)
    assert order is not None
    orders.published(200)
    assert {o.version for o in drain(orders)} == {100}


def test_the_last_orders_are_small_so_that_all_actors_work_to_the_end() -> None:
    orders = make(**{"actors.count": 4, "evaluation.final_episodes": 100})
    orders.conclude(300)
    given = drain(orders)
    counts = [order.count for order in given]
    assert sum(counts) == 300
    assert max(counts) == 8
    assert counts[-8:] == [1] * 8
    indices = [(o.context_length, i) for o in given for i in range(o.first, o.first + o.count)]
    assert indices == [(length, index) for length in LENGTHS for index in range(100)]


def test_orders_are_cut_for_the_actors_that_there_are() -> None:
    """`longview scale` changes their number."""
    orders = make(**{"actors.count": 1, "evaluation.final_episodes": 8})
    orders.actors = 12
    orders.conclude(300)
    assert [order.count for order in drain(orders)] == [1] * 24


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
    orders.conclude(200, {8: Evaluation(200, 8, 20, {"success": 20})})
    orders.give_back(stale)
    given = drain(orders)
    assert {(o.version, o.context_length) for o in given} == {(200, 1), (200, 64)}
    finished = [e for o in given if (e := orders.finish(o, result(o))) is not None]
    assert [(e.context_length, e.counts) for e in finished] == [
        (1, Counts(20, 20, 20)),
        (64, Counts(20, 20, 20)),
    ]
    assert orders.idle


def test_a_final_evaluation_goes_on_after_the_episodes_of_an_earlier_one() -> None:
    orders = make(**{"evaluation.context_lengths": [8]})
    earlier = dict.fromkeys(range(15), "wrong")
    orders.conclude(200, {8: Evaluation(200, 8, 15, {"wrong": 15}, 150, endings=earlier)})
    given = drain(orders)
    assert [index for o in given for index in range(o.first, o.first + o.count)] == [15, 16, 17, 18, 19]
    (evaluation,) = [e for o in given if (e := orders.finish(o, result(o))) is not None]
    assert evaluation.outcomes == {"wrong": 15, "success": 5}
    assert (evaluation.steps, evaluation.to_dict()["endings"]) == (200, 15 * "w" + 5 * "s")


def test_an_evaluation_tells_completion_from_memory_and_leaves_out_the_invalid() -> None:
    orders = make(**{"evaluation.context_lengths": [8]})
    orders.published(100)
    given = drain(orders)
    assert [order.first for order in given] == [0, 2, 4, 5, 6, 7, 8, 9]
    for order in given[:-2]:
        assert orders.finish(order, Result({}, 0)) is None
    assert orders.finish(given[-2], Result({"success": 3, "wrong": 2, "invalid": 3}, 80)) is None
    evaluation = orders.finish(given[-1], Result({"failure": 1, "invalid": 1}, 20))
    assert evaluation is not None
    outcomes = {"success": 3, "wrong": 2, "invalid": 4, "failure": 1}
    assert evaluation == Evaluation(100, 8, 10, outcomes, steps=100)
    assert evaluation.counts == Counts(3, 5, 6)


def test_results_of_a_replaced_round_are_ignored() -> None:
    orders = make()
    orders.published(100)
    order = orders.take(100)
    assert order is not None
    orders.conclude(200)
    assert orders.finish(order, result(order)) is None
    assert all(evaluation.rolled_out == 0 for evaluation in orders.evaluations.values())
