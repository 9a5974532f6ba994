"""Functions of the roles that need no Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from longview.actors.config import ActorsConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.roles.rank import (
    Demonstrations,
    held_out,
    limiter_of,
    priorities,
    sampled,
    share_out,
    share_out_recorded,
    whole,
)
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import read_config
from longview.cluster.run.services import redis_server
from longview.learner.config import policy_config
from longview.learner.policy import policy_to_bytes
from longview.learner.reporter import by_position
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.episode import Episode, EpisodeMeta, episode_id
from longview.replay.store import EpisodeStore


def test_the_last_demonstrations_are_held_out(tmp_path: Path) -> None:
    task = load_task("counting")
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(task.spec)
        assert held_out(store, 4) == []
        worker = Worker(task, ActorsConfig(simulators=4, noise=0), 0, "actor-0", store, Hub().report)
        for purpose in ("demo", "rollout"):
            worker.work(Order(purpose, 0, 12), None)
        demos = [episode_id("demo", "counting", index) for index in range(12)]
        assert held_out(store, 4) == demos[8:]
        assert held_out(store, 0) == []

        imported = []
        for index in range(9):
            meta = EpisodeMeta(episode_id("import", "counting", index), "counting", 0, "import")
            store.add(Episode(meta, "success", store.read(demos[index]).arrays))
            imported.append(meta.id)
            of_imported = imported[5:] if index == 8 else []
            assert held_out(store, 4) == [*demos[8:], *of_imported]
        store.close()


def test_episodes_that_were_held_out_stay_so_when_the_store_grows(tmp_path: Path) -> None:
    task = load_task("counting")
    shapes = task.spec.arrays(()).items()
    arrays = {name: np.zeros((3, *array.shape), array.dtype) for name, array in shapes}
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(task.spec)
        for index in range(5, 11):
            store.add(Episode(EpisodeMeta(f"demo.{index}", "counting", 0, "demo"), "success", arrays))
        first = share_out_recorded(store, task.spec, 2)
        for index in range(40, 50):
            store.add(Episode(EpisodeMeta(f"demo.{index}", "counting", 0, "demo"), "success", arrays))
        again = share_out_recorded(store, task.spec, 2, first.held_out)
        assert again.held_out == first.held_out != share_out_recorded(store, task.spec, 2).held_out
        assert again.drawn == 14
        assert not set(again.measured) & set(again.held_out)
        store.close()


def test_statistics_are_measured_on_a_sample_spread_evenly() -> None:
    ids = [f"{index:06}" for index in range(50_000)]
    assert sampled(ids[:2_000], episode_bytes=1e4) == ids[:2_000]
    assert sampled(ids, episode_bytes=1e4) == ids[::25]
    pictures = sampled(ids, episode_bytes=10e6)
    assert len(pictures) == 429
    gaps = np.diff([int(id) for id in pictures])
    assert (gaps.min(), gaps.max()) == (116, 117)
    assert len(sampled(ids, episode_bytes=1e9)) == 16
    assert sampled(ids[:3], episode_bytes=1e9) == ids[:3]
    assert sampled([], episode_bytes=0) == []


def test_demonstrations_are_for_validation_or_for_statistics(tmp_path: Path) -> None:
    task = load_task("counting")
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(task.spec)
        worker = Worker(task, ActorsConfig(simulators=4, noise=0), 0, "actor-0", store, Hub().report)
        for purpose in ("demo", "rollout"):
            worker.work(Order(purpose, 0, 12), None)
        demos = [episode_id("demo", "counting", index) for index in range(12)]
        assert share_out(store, task.spec, 4) == Demonstrations(demos[8:], 8, demos[:8])
        store.close()


def test_what_is_damaged_or_of_another_task_is_left_out(tmp_path: Path, caplog: Any) -> None:
    tasks = [load_task(name) for name in ("counting", "return_point")]
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig(shards=1))
        for task in tasks:
            store.register(task.spec)
            Worker(task, ActorsConfig(simulators=2, noise=0), 0, "actor-0", store, Hub().report).work(
                Order("demo", 0, 2), None
            )
        counting = [episode_id("demo", "counting", index) for index in range(2)]
        with Redis(unix_socket_path=url.removeprefix("unix://")) as redis:
            (key,) = redis.scan_iter(f"*:chunks:{counting[0]}:*")
            redis.delete(key)
        ids = [*store.ids(), "nobody"]
        assert [episode.meta.id for episode in whole(store, ids, "counting")] == counting[1:]
        assert [counting[0] in caplog.text, "nobody" in caplog.text] == [True, True]
        store.close()


def test_an_actor_executes_as_many_actions_as_its_policy_decides_on() -> None:
    config = read_config(None, ["actors.simulators=2"])
    assert config.learner.policy.execute == 8
    policy = policy_config(widths=(8,), groups=4, token_size=8, execute=3)
    actor = RolloutActor(config, "actor-0", None)
    actor._load(7, policy_to_bytes(policy.make(load_task("return_point").spec)))
    result = actor.work(Order("evaluation", 0, 3, context_length=4, version=7), 7, [], 0.0, {})
    assert sum(result.outcomes.values()) == 3


def test_ranks_share_what_may_be_drawn() -> None:
    settings = ["learners=2", "replay.samples_per_insert=8", "replay.minimum_steps=100"]
    spec = load_task("return_point").spec
    limiter = limiter_of(read_config(None, settings), spec, 0, lambda: False)
    assert (limiter.samples_per_insert, limiter.minimum_steps, limiter.timeout_seconds) == (4, 100, 600)
    assert not limiter_of(read_config(None), spec, 0, lambda: False).limits


def test_what_was_drawn_before_a_resumption_counts() -> None:
    settings = ["learner.batch_size=16", "replay.samples_per_insert=8"]
    limiter = limiter_of(read_config(None, settings), load_task("return_point").spec, 100, lambda: False)
    assert limiter.drawn == 1600
    assert limiter.refusal(16, 201, 201)
    assert not limiter.refusal(16, 202, 202)


def test_positions_of_metrics_are_few() -> None:
    series = by_position({-2: 1.0, -1: 2.0, 0: 3.0, 1: 4.0, 63: 5.0, 64: 7.0, 200: 9.0})
    assert series == pytest.approx({"past": 1.5, "0": 3.0, "1": 4.0, "63": 7.0})


def test_priorities_follow_the_loss_relative_to_the_mean() -> None:
    losses = {"a": 1.0, "b": 4.0, "c": 1.0}
    assert priorities(losses, 1.0) == {"a": 0.5, "b": 2.0, "c": 0.5}
    assert priorities(losses, 0.5) == pytest.approx({"a": 0.5**0.5, "b": 2**0.5, "c": 0.5**0.5})
    assert priorities({"a": 0.0}, 1.0) == {"a": 1.0}
