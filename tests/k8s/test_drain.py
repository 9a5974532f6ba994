"""Tests of what happens to an actor in the middle of an episode when its pod is told to end.

The pod's preStop hook runs `ray stop`, which sends SIGTERM.
"""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from redis import Redis

from longview.actors.worker import Order
from longview.cluster.driver.launch import ray_cluster
from longview.cluster.roles.ray import start
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import read_config, task_of
from longview.cluster.run.services import redis_server
from longview.replay.store import EpisodeStore, StoreAddress


class Slow(RolloutActor):
    """A rollout actor with slowed-down simulators, which tells its process id."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        for env in self._worker.envs:
            env.step = slowly(env.step)  # type: ignore[method-assign]

    def pid(self) -> int:
        return os.getpid()


def slowly(step: object) -> object:
    def slow(action: object) -> object:
        time.sleep(0.002)
        return step(action)  # type: ignore[operator]

    return slow


def test_an_actor_that_is_told_to_end_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "RAY_memory_monitor_refresh_ms", "0"
    )  # other work on this machine must not make Ray kill the actor
    config = read_config(None, ["actors.simulators=2", "replay.chunk_steps=4", "actors.count=1"])
    with redis_server(tmp_path / "redis") as url, ray_cluster(config, None):
        store = EpisodeStore.connect(url, "run", config.replay)
        store.register(task_of(config).spec)
        actor = start(Slow, config, "actor-0", StoreAddress(url, "run"), num_cpus=1, max_restarts=0)
        pid = ray.get(actor.pid.remote())
        work = actor.work.remote(Order("demo", first=0, count=1000), None, [], 0.0, 0.0)
        with Redis.from_url(url) as redis:
            deadline = time.monotonic() + 60
            while len(store.ids("demo")) < 3 or not pending(redis):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(pid, signal.SIGTERM)
            with pytest.raises(RayActorError):
                ray.get(work, timeout=30)
            # The chunks of unfinished episodes are removed; committed episodes are whole.
            assert not pending(redis)
        ids = store.ids("demo")
        assert len(ids) >= 3
        assert sum(store.read(id).length for id in ids) == store.stats().total.steps
        store.close()


def pending(redis: Redis) -> bool:
    """Tell whether the store holds chunks of uncommitted episodes: no other keys expire."""
    return any(redis.ttl(key) > 0 for key in redis.scan_iter())
