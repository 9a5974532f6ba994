"""Episodes are collected as fast as the limiter allows, and nobody waits for ever."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.actors.task import load_task
from longview.actors.worker import Order, Result
from longview.cluster.driver.collection import NOTHING, Collection
from longview.cluster.roles.rank import limiter_of
from longview.cluster.run.config import ConfigError, RunConfig, read_config
from longview.replay.stats import Count

SPEC = load_task("return_point").spec
MANY = 10**9, 10**9
"""Steps committed and stored, of which there are enough for every limit."""


def configured(*settings: str) -> RunConfig:
    base = ["actors.simulators=4", "collect.kind=takeover", "evaluation.context_lengths=[1, 8, 64]"]
    return read_config(None, [*base, *settings])


def make(
    *settings: str, first: int = 0, before: Count = NOTHING, expert_steps: int = 0, typical: float = 50.0
) -> Collection:
    return Collection(
        configured(*settings),
        SPEC,
        first=first,
        before=before,
        expert_steps=expert_steps,
        sizes=lambda: MANY,
        typical=lambda: typical,
    )


def taken(collection: Collection, newest: int | None = 0, trained: int = 0) -> Order:
    order = collection.take(newest, trained)
    assert order is not None
    return order


def result(order: Order, expert_steps: int = 0) -> Result:
    return Result({"success": order.count}, 50 * order.count, expert_steps=expert_steps)


def test_nothing_is_collected_unless_it_is_wanted_and_there_is_a_policy() -> None:
    assert make("collect.kind=off").take(5, 5) is None
    assert make("collect.kind=human").take(5, 5) is None
    collection = make()
    assert collection.take(None, 0) is None
    assert collection.held == ("waiting", "the learner has published no version yet")


@pytest.mark.parametrize(("kind", "source"), [("rollout", "rollout"), ("takeover", "correction")])
def test_orders_follow_each_other_with_the_newest_version(kind: str, source: str) -> None:
    collection = make(f"collect.kind={kind}", first=8)
    orders = [taken(collection, newest, trained=10_000) for newest in (100, 100, 300)]
    assert [(o.purpose, o.first, o.count, o.version) for o in orders] == [
        (source, 8, 4, 100),
        (source, 12, 4, 100),
        (source, 16, 4, 300),
    ]


def test_every_context_length_has_its_turn() -> None:
    collection = make()
    lengths = [taken(collection, 0, 10_000).context_length for _ in range(6)]
    assert lengths == [1, 8, 64, 1, 8, 64]


def test_context_lengths_may_have_weights() -> None:
    collection = make("collect.context_lengths={8: 3, 64: 1}")
    lengths = [taken(collection, 0, 100_000).context_length for _ in range(400)]
    assert set(lengths) == {8, 64}
    assert 0.68 < lengths.count(8) / 400 < 0.82


def test_an_order_given_back_is_given_again_with_the_newest_version() -> None:
    collection = make()
    order = taken(collection, 100, 100)
    collection.give_back(order)
    again = taken(collection, 200, 200)
    assert (again.first, again.context_length, again.version) == (order.first, order.context_length, 200)


def test_actors_wait_once_they_are_ahead_of_training() -> None:
    collection = make("collect.steps_per_training_step=10")
    order = taken(collection)  # 4 episodes of about 50 steps
    assert collection.take(0, 0) is None
    assert collection.held is not None
    assert collection.held.part == "limited"
    assert "200 steps are collected or under way after 0 training steps" in collection.held.reason
    assert "collect.steps_per_training_step is 10" in collection.held.reason
    assert collection.take(0, 19) is None
    collection.finish(order, result(order))
    taken(collection, 0, 20)
    assert collection.held is None


@pytest.mark.parametrize(
    ("setting", "asks"),
    [("seed=0", False), ("replay.minimum_steps=1", True), ("replay.samples_per_insert=1", True)],
)
def test_the_store_is_asked_for_its_steps_only_if_the_learner_may_wait_for_them(
    setting: str, asks: bool
) -> None:
    """The driver would keep a list of all stored episodes, and grow with it."""
    asked = list[bool]()

    def sizes() -> tuple[int, int]:
        asked.append(True)
        return MANY

    config = configured("collect.steps_per_training_step=10", setting)
    collection = Collection(config, SPEC, sizes=sizes, typical=lambda: 50.0)
    taken(collection)
    assert collection.take(0, 0) is None
    assert bool(asked) == asks


def test_what_an_earlier_launch_has_collected_counts() -> None:
    before = Count(episodes=4, steps=200, learnable=100)
    collection = make("collect.steps_per_training_step=10", before=before)
    assert collection.take(10, 19) is None
    assert collection.take(10, 20) is not None
    assert make("collect.expert_steps=100", before=before, expert_steps=100).take(10, 10_000) is None
    assert make("collect.expert_steps=100", before=before, expert_steps=99).take(10, 10_000) is not None


def test_actors_do_not_collect_with_a_policy_that_is_too_old() -> None:
    collection = make("collect.max_staleness=600")
    taken(collection, 1000, 1600)
    assert collection.take(1000, 1601) is None
    reason = "the newest version is 601 training steps old, collect.max_staleness is 600"
    assert collection.held == ("limited", reason)
    taken(collection, 1600, 1601)


def test_a_limit_that_no_version_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"collect\.max_staleness 100 is less than learner\.publish_every"):
        configured("collect.max_staleness=100", "learner.publish_every=300")


def test_collection_ends_when_the_expert_has_given_enough() -> None:
    collection = make("collect.expert_steps=120")
    for _ in range(2):
        order = taken(collection, 0, 10_000)
        collection.finish(order, result(order, expert_steps=60))
    assert collection.take(0, 10_000) is None
    assert collection.held == ("ended", "the expert has made 120 steps, collect.expert_steps is 120")


def test_orders_under_way_count_towards_the_experts_steps() -> None:
    """The first orders are counted as demonstrations, later ones as the episodes so far."""
    collection = make("collect.expert_steps=300")
    first = [
        taken(collection, 0, 10_000) for _ in range(2)
    ]  # an episode is 50 steps, and there is room for 6
    assert [(order.first, order.count) for order in first] == [(0, 4), (4, 2)]
    assert [order.context_length for order in first] == [1, 8]
    assert collection.take(0, 10_000) is None
    assert collection.held == (
        "ended",
        "the expert's last steps of collect.expert_steps 300 are under way",
    )
    for order in first:
        collection.finish(order, result(order, expert_steps=10 * order.count))
    more = []  # an episode costs 10 steps, and there is room for 24
    while (order := collection.take(0, 10_000)) is not None:
        more.append(order)
    assert sum(order.count for order in more) == 24
    for order in more:
        collection.finish(order, result(order, expert_steps=9 * order.count))
    last = taken(collection, 0, 10_000)
    assert last.count == 2, "24 steps are left, and an episode costs 9.2"


def test_an_expert_that_is_not_needed_does_not_end_the_collection() -> None:
    collection = make("collect.expert_steps=100")
    order = taken(collection, 0, 10_000)
    collection.finish(order, result(order, expert_steps=0))
    assert taken(collection, 0, 10_000).count == 4


CONFIG = configured("learner.batch_size=16", "learner.warmup=1")


@given(
    spi=st.one_of(st.none(), st.floats(0.01, 100)),
    ahead=st.floats(0.01, 100),
    minimum=st.integers(0, 500),
    demonstrated=st.integers(0, 1000),
    report_every=st.integers(1, 40),
    publish_every=st.integers(1, 40),
    first_version=st.integers(1, 40),
    loaders=st.integers(1, 16),
    compiled=st.booleans(),
)
def test_learner_and_actors_never_wait_for_each_other(
    spi: float | None,
    ahead: float,
    minimum: int,
    demonstrated: int,
    report_every: int,
    publish_every: int,
    first_version: int,
    loaders: int,
    compiled: bool,
) -> None:
    """The learner draws ahead, and tells its step only now and then. Until it publishes, nobody can act."""
    committed, told, steps, newest = demonstrated, 0, 60, None
    config = replace(
        CONFIG,
        replay=replace(CONFIG.replay, samples_per_insert=spi, minimum_steps=minimum),
        collect=replace(CONFIG.collect, steps_per_training_step=ahead, max_staleness=publish_every),
        learner=replace(
            CONFIG.learner,
            report_every=report_every,
            publish_every=publish_every,
            steps=50 * first_version,
            loaders=loaders,
            compile=compiled,
        ),
    )
    assert config.first_version == min(first_version, publish_every)
    limiter = limiter_of(config, SPEC, 0, lambda: False)
    collection = Collection(config, SPEC, sizes=lambda: (committed, committed), typical=lambda: 50.0)
    while told < steps:
        learner_waits = limiter.refusal(16, committed, committed)
        if not learner_waits:
            limiter.drawn += 16
            trained = max(0, limiter.drawn // 16 - config.learner.drawn_ahead)
            told = max(told, trained // report_every * report_every)
            first = config.first_version if trained >= config.first_version else None
            newest = trained // publish_every * publish_every or first
        order = collection.take(newest, told)
        assert order is not None or not learner_waits, collection.held
        if order is not None and learner_waits:
            committed += 200
            collection.finish(order, result(order))
        elif order is not None:
            collection.give_back(order)
