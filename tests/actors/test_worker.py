"""An actor's orders, with a real store and a real hub."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from longview.actors.config import ActorsConfig, CamerasConfig, CollectConfig
from longview.actors.task import Task, load_task
from longview.actors.worker import PURPOSES, Order, Worker, episode_seed
from longview.cluster.run.services import redis_server
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.episode import NO_PLAN
from longview.replay.store import EpisodeStore

TASK = load_task("return_point")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig(refresh_seconds=0))
        store.register(TASK.spec)
        yield store
        store.close()


class Still:
    """A policy that does not move."""

    execute = 4

    def act(self, slots: Sequence[int], *_: Any) -> NDArray[np.float32]:
        return np.zeros((len(slots), self.execute, *TASK.spec.action.shape), np.float32)


def make_worker(store: EpisodeStore, hub: Hub, task: Task = TASK, **collect: Any) -> Worker:
    config = ActorsConfig(simulators=4)
    return Worker(task, config, 7, "actor-0", store, hub.report, CollectConfig(**collect))


def test_an_order_done_twice_adds_nothing(store: EpisodeStore) -> None:
    hub = Hub()
    order = Order("demo", first=5, count=10)
    first = make_worker(store, hub).work(order, None)
    assert first.outcomes == {"success": 10}
    again = make_worker(store, hub).work(order, None)
    assert (again.outcomes, again.steps) == ({}, 0)
    assert store.ids("demo") == [f"demo.return_point.{index:09d}" for index in range(5, 15)]
    assert store.stats().total.steps == first.steps
    totals = hub.snapshot()
    assert totals["longview_episodes_total"] == {("return_point", "demo", "success"): 10}
    assert totals["longview_env_steps_total"] == {("return_point",): first.steps}
    simulated = first.steps / TASK.spec.control_hz
    assert totals["longview_simulated_seconds_total"] == {("return_point",): pytest.approx(simulated)}


def test_the_time_between_orders_is_waiting(store: EpisodeStore) -> None:
    hub = Hub()
    worker = make_worker(store, hub)
    worker.work(Order("demo", 0, 1), None)
    time.sleep(0.2)
    worker.work(Order("demo", 1, 1), None)
    spent = hub.snapshot()["longview_actor_seconds_total"]
    assert spent["waiting",] >= 0.2
    assert spent["simulator",] > 0


@pytest.mark.parametrize(("queue_bytes", "waits"), [(1 << 20, False), (1, True)])
def test_an_order_is_done_when_all_of_it_is_stored(tmp_path: Path, queue_bytes: int, waits: bool) -> None:
    with redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        store = EpisodeStore.connect(url, "test", StoreConfig(chunk_steps=8, queue_bytes=queue_bytes))
        store.register(TASK.spec)
        hub = Hub()
        worker = make_worker(store, hub)
        redis.client_pause(1000, all=False)  # nothing is written meanwhile
        result = worker.work(Order("demo", first=0, count=10), None)
        assert result.outcomes == {"success": 10}
        assert len(store.ids()) == 10
        totals = hub.snapshot()
        assert totals["longview_episodes_total"] == {("return_point", "demo", "success"): 10}
        assert totals["longview_store_queue_depth"] == {(): 0}
        assert (totals["longview_store_backpressure_seconds_total"][()] > 0) == waits
        store.close()


def test_demonstrations_are_labelled_without_noise(store: EpisodeStore) -> None:
    make_worker(store, Hub()).work(Order("demo", 0, 2), None)
    episode = store.read(store.ids("demo")[0])
    noise = episode.arrays["action"] - episode.arrays["expert_action"]
    inside = (abs(episode.arrays["expert_action"]) < 0.5).any(axis=1)
    assert 0.05 < noise[inside].std() < 0.2


def test_take_overs_are_learnable_where_the_expert_acted(store: EpisodeStore) -> None:
    order = Order("correction", 0, 8, 1, version=300, typical_steps=40.0)
    result = make_worker(store, Hub(), kind="takeover").work(order, Still())
    episodes = [store.read(id) for id in store.ids("correction")]
    by_expert = sum(int((episode.arrays["controller"] == 1).sum()) for episode in episodes)
    assert len(episodes) == 8
    for episode in episodes:
        arrays = episode.arrays
        before = arrays["controller"] == 0
        assert (arrays["action"][before] == 0).all()
        assert (np.diff(arrays["controller"].astype(int)) >= 0).all(), "the expert goes on to the end"
        assert arrays["plan_step"].tolist() == np.where(before, NO_PLAN, 0).tolist()
        assert (arrays["expert_action"][before] == arrays["action"][before]).all()
        assert (arrays["expert_action"][~before] != arrays["action"][~before]).any(), "labels have no noise"
    stored = store.stats().stored["correction"]
    assert result.expert_steps == by_expert == stored.learnable < stored.steps == result.steps
    assert len({int((episode.arrays["controller"] == 0).sum()) for episode in episodes}) > 4


def test_labels_are_plans_from_the_decisions_of_the_policy(store: EpisodeStore) -> None:
    result = make_worker(store, Hub(), kind="labels").work(Order("correction", 0, 3, 1, version=300), Still())
    episodes = [store.read(id).arrays for id in store.ids("correction")]
    for arrays in episodes:
        assert (arrays["controller"] == 0).all()
        assert (arrays["action"] == 0).all(), "the expert only plans"
        assert arrays["plan_step"].tolist() == [step % 4 for step in range(len(arrays["action"]))]
        assert (arrays["expert_action"] != 0).any(axis=1).all()
    stored = store.stats().stored["correction"]
    assert stored.steps == result.expert_steps == 4 * stored.learnable


def test_corrections_need_a_kind(store: EpisodeStore) -> None:
    worker = make_worker(store, Hub(), kind="rollout")
    with pytest.raises(ValueError, match=r"collect\.kind=rollout makes no corrections, which Order\("):
        worker.work(Order("correction", 0, 1, 1, version=300), Still())
    worker.work(Order("rollout", 0, 2, 1, version=300), Still())
    stored = store.stats().stored["rollout"]
    assert stored.learnable == 0 < stored.steps


def test_no_seed_is_both_trained_on_and_evaluated() -> None:
    seeds = {purpose: {episode_seed(3, purpose, index) for index in range(2000)} for purpose in PURPOSES}
    trained = seeds["demo"] | seeds["correction"] | seeds["rollout"]
    assert not trained & seeds["evaluation"]
    assert len(seeds["demo"]) == len(seeds["evaluation"]) == 2000
    assert all(seed % 2 for seed in seeds["evaluation"])
    assert episode_seed(3, "demo", 1) != episode_seed(4, "demo", 1)


def test_bad_ends_are_counted_and_kept_out_of_training(
    store: EpisodeStore, fragile: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store.register(fragile.spec)
    hub, order = Hub(), Order("demo", first=0, count=40)
    worker = make_worker(store, hub, fragile)
    assert hub.snapshot()["longview_invalid_episodes_total"] == {("fragile",): 0}
    cases = [fragile.case(episode_seed(7, "demo", index)) for index in range(40)]
    recorded = Counter(case.outcome for case in cases if case.steps)
    assert len(recorded) == 3
    assert worker.work(order, None).outcomes == recorded

    metrics = hub.snapshot()
    invalid = sum(case.outcome == "invalid" for case in cases)
    refused = sum(case.event == "action refused" for case in cases)
    assert metrics["longview_invalid_episodes_total"] == {("fragile",): invalid}
    assert metrics["longview_refused_actions_total"] == {("fragile",): refused}
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{refused} actions refused, the first: action[0] is refused" in message
    committed = {outcome: count.episodes for (_, outcome), count in store.stats().committed.items()}
    assert committed == recorded

    segments = store.sample({"demo": 1.0}, 2000, 0, 0, np.random.default_rng(0))
    drawn = {segment.meta.id for segment in segments}
    assert drawn == {id for id in store.ids("demo") if store.read(id).outcome != "invalid"}
    # Recorded episodes are not rolled out again, whatever their outcome.
    assert worker.work(order, None).outcomes == {}


def test_every_evaluation_episode_ends_somehow(store: EpisodeStore, fragile: Any) -> None:
    result = make_worker(store, Hub(), fragile).work(Order("evaluation", 0, 40, 1), None)
    cases = [fragile.case(episode_seed(7, "evaluation", index)) for index in range(40)]
    assert result.endings == {index: case.outcome for index, case in enumerate(cases)}
    assert result.outcomes == Counter(result.endings.values())
    assert store.ids() == []


@pytest.mark.parametrize(("cameras", "worn"), [(("agentview",), [False, True]), ((), [False, False])])
def test_only_an_actor_that_renders_wears_out(cameras: tuple[str, ...], worn: list[bool]) -> None:
    config = ActorsConfig(simulators=1, cameras=CamerasConfig(cameras, size=16), recycle=2)
    worker = Worker(load_task("lift", config.cameras), config, 0, "actor-0", None, lambda _: None)
    assert [worker.work(Order("demo", index, 1), None).worn for index in range(2)] == worn


def test_a_result_adds_up_the_largest_reward_of_each_episode() -> None:
    result = make_worker(None, Hub()).work(Order("evaluation", 0, 10), None)
    assert result.best_rewards == result.outcomes["success"] == 10
