"""Tests of what happens when a pod is told to end.

The pod's preStop hook runs k8s/drain.sh: a head stops its run, and then every pod runs `ray stop`. That sends
SIGTERM, also to an actor in the middle of an episode.
"""

import os
import shlex
import signal
import subprocess
import sys
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
from longview.cluster.run.folder import create_run
from longview.cluster.run.services import redis_server
from longview.replay.store import EpisodeStore, StoreAddress
from tests.conftest import COMMAND
from tests.k8s.conftest import ROOT


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
        work = actor.work.remote(Order("demo", first=0, count=1000), None, [], 0.0, {})
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


HOLDER = """
import signal, sys, time
from pathlib import Path
from longview.cluster.run.folder import Run
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
run = Run(Path(sys.argv[1]))
run.lock()
run.write_state()
if sys.argv[2:]:
    state = run.path / "run.json"
    state.write_text(state.read_text().replace(run.state()["host"], sys.argv[2]))
print("ready", flush=True)
time.sleep(600)
"""
"""A driver as far as the drain knows it: it has a run's lock, and wrote down where it is."""


def test_the_drain_of_a_head_stops_the_runs_of_that_head_only(tmp_path: Path) -> None:
    # The live config may name another run by now; the drain does not read it.
    runs = tmp_path / "runs"
    drivers = {}
    for name, host in {"mine": [], "mine too": [], "of another head": ["another"]}.items():
        create_run(read_config(None, [f"name={name}"]), runs).unlock()
        drivers[name] = subprocess.Popen(
            [sys.executable, "-c", HOLDER, runs / name, *host], stdout=subprocess.PIPE, text=True
        )
    try:
        for driver in drivers.values():
            assert driver.stdout is not None
            assert driver.stdout.readline() == "ready\n"
        longview = shlex.join([sys.executable, "-c", COMMAND])
        for command, does in {"longview": f'exec {longview} "$@"', "ray": "true"}.items():
            (tmp_path / command).write_text(f"#!/bin/sh\n{does}\n")
            (tmp_path / command).chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LONGVIEW_RUNS": str(runs)}
        drain = [ROOT / "k8s" / "drain.sh", "head"]
        done = subprocess.run(["sh", *drain], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {name: driver.poll() for name, driver in drivers.items()} == {
            "mine": 0,
            "mine too": 0,
            "of another head": None,
        }
    finally:
        for driver in drivers.values():
            driver.kill()
            driver.communicate()
