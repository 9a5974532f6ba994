"""Learner ranks in real processes, over real gloo, on Ray nodes in this machine; some come late, some die."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.driver.dispatch import MAX_FAILURES
from longview.cluster.driver.training import LATE_SECONDS, THREADS_VARIABLE, Training
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.rank import share_out
from longview.cluster.roles.ray import ALWAYS_BACK, start
from longview.cluster.run.config import read_config
from longview.cluster.run.ending import RunFailed
from longview.cluster.run.services import redis_server
from longview.learner.files import steps
from longview.monitoring.hub import Hub
from longview.replay.store import StoreAddress
from tests.cluster.nodes import LEAN_HEAD

CONFIG = [
    "learners=2",
    "placement.learner.learner=1",
    "placement.learner_gpus=0",
    "learner.batch_size=8",
    "learner.warmup=1",
    "learner.validation_episodes=2",
    "learner.publish_every=20",
    "learner.checkpoint_every=20",
    "learner.policy={widths: [16], token_size: 16}",
]
ENDLESS = 1_000_000


class Ranks:
    """Two learner ranks as a run's driver has them: a training, its weights, and its checkpoints."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.store = folder, StoreAddress(url, "ranks")
        self.checkpoints = folder / "checkpoints"
        self.board = start(WeightBoard, self.checkpoints, **ALWAYS_BACK)
        task, config = load_task("return_point"), read_config(None, CONFIG)
        store = self.store.connect(config.replay)
        store.register(task.spec)
        Worker(task, config.actors, 0, "actor-0", store, Hub().report).work(Order("demo", 0, 8), None)
        self.task, self.episodes = task, store

    def train(self, steps: int, *settings: str, late_seconds: float = LATE_SECONDS) -> Training:
        config = read_config(None, [*CONFIG, f"learner.steps={steps}", *settings])
        self.training = Training(config, self.checkpoints, self.store, late_seconds)
        held_out = config.learner.validation_episodes
        self.training.start(share_out(self.episodes, self.task.spec, held_out), self.board)
        return self.training

    def newest(self) -> int | None:
        """Return the newest published version."""
        version: int | None = ray.get(self.board.version.remote())
        return version

    def until(self, condition: Callable[[], Any], seconds: float = 250.0) -> Any:
        """Look after the training until something is true, or it is done."""
        deadline = time.monotonic() + seconds
        while (found := self.training.finished(self.newest()) or condition()) in (None, False):
            assert time.monotonic() < deadline, self.training.restarts
            time.sleep(0.1)
        return found

    def finish(self) -> int:
        """Look after the training until it is done, and return its last version."""
        last: int = self.until(lambda: None)
        return last

    def saved(self) -> int:
        """Return the step of the newest checkpoint; 0 without any."""
        return max(steps(self.checkpoints), default=0)

    def pid(self, rank: int) -> int:
        found: int = ray.get(self.training._ranks[rank].__ray_call__.remote(lambda _: os.getpid()))
        return found


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head with room for one rank, or for as many as the test says."""
    room = getattr(request, "param", 1)
    head = {"num_cpus": room, "resources": {"learner": room}, **LEAN_HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, namespace="ranks", log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ranks(tmp_path: Path, cluster: Cluster) -> Iterator[Ranks]:
    with redis_server(tmp_path / "redis") as url:
        ranks = Ranks(tmp_path, url)
        yield ranks
        ranks.training.kill()
        ranks.episodes.close()


@pytest.mark.slow
def test_no_rank_joins_before_all_are_ready(ranks: Ranks, cluster: Cluster, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    training = ranks.train(20, late_seconds=12)
    # Late ranks are started again, however often: a run does not fail because a cluster is full.
    ranks.until(lambda: training.restarts["late"] == 2)
    assert "statistics are measured on 6 of 6 demonstrations" in caplog.text
    assert "1 of 2 learner ranks have no place" in caplog.text
    assert ranks.newest() is None
    cluster.add_node(num_cpus=1, resources={"learner": 1})
    assert ranks.finish() == 20
    assert set(training.restarts) == {"late"}
    assert ranks.newest() == ranks.saved() == 20


@pytest.mark.slow
def test_a_rank_that_dies_twice_costs_two_restarts(ranks: Ranks, cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, resources={"learner": 1})
    training = ranks.train(ENDLESS)
    for rank in (1, 0):
        reached = ranks.saved()
        ranks.until(lambda reached=reached: ranks.saved() > reached)
        restarts = training.restarts.total()
        os.kill(ranks.pid(rank), signal.SIGKILL)
        ranks.until(lambda restarts=restarts: training.restarts.total() == restarts + 1)
    assert training.restarts == {"died": 2}
    reached = ranks.saved()
    training.stop()
    ranks.train(reached + 20)
    assert ranks.finish() == reached + 20
    assert ranks.newest() == ranks.saved() == reached + 20


@pytest.mark.slow
def test_a_rank_that_does_not_answer_costs_a_restart(ranks: Ranks, cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, resources={"learner": 1})
    training = ranks.train(ENDLESS, late_seconds=8)
    ranks.until(ranks.saved)
    hung = ranks.pid(1)
    os.kill(hung, signal.SIGSTOP)
    try:
        ranks.until(lambda: training.restarts["lost"])
        reached = ranks.saved()
        ranks.until(lambda: ranks.saved() > reached)
    finally:
        with suppress(ProcessLookupError):  # Ray has ended it, as it should
            os.kill(hung, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_that_are_lost_again_and_again_end_the_run(ranks: Ranks, cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, resources={"learner": 1})
    training = ranks.train(ENDLESS, "learner.publish_every=1000000")
    for failures in range(1, MAX_FAILURES):
        os.kill(ranks.pid(1), signal.SIGKILL)
        ranks.until(lambda failures=failures: training.restarts["died"] == failures)
    os.kill(ranks.pid(1), signal.SIGKILL)
    with pytest.raises(RunFailed, match=f"lost {MAX_FAILURES} times without progress"):
        ranks.finish()


@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_the_ranks_share_the_threads_of_the_environment_and_an_error_of_one_ends_the_run(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = (os.cpu_count() or 1) + 1
    monkeypatch.setenv(THREADS_VARIABLE, str(2 * each))
    training = ranks.train(ENDLESS, "learner.validation_episodes=8")
    threads = [rank.__ray_call__.remote(lambda _: torch.get_num_threads()) for rank in training._ranks]
    assert ray.get(threads) == [each, each]
    with pytest.raises(RunFailed, match=r"training failed: .*no episodes to measure"):
        ranks.finish()
    assert training.restarts == {}
