"""Trainings and evaluations in this process, for benchmarks that measure them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from longview.actors.config import ActorsConfig
from longview.actors.task import Task
from longview.actors.worker import Order, Worker
from longview.cluster.run.services import redis_server
from longview.learner.config import LearnerConfig
from longview.learner.laps import TrainingProgress
from longview.learner.normalize import measure
from longview.learner.policy import Policy
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.monitoring.hub import Hub
from longview.monitoring.success import Rate
from longview.replay.config import StoreConfig
from longview.replay.episode import Episode
from longview.replay.store import EpisodeStore

SIMULATORS = 25


@contextmanager
def demonstrated(task: Task, actors: ActorsConfig, episodes: int, seed: int) -> Iterator[EpisodeStore]:
    """Provide a store with new demonstrations, collected with this seed."""
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        store = EpisodeStore.connect(url, task.spec.name, StoreConfig())
        store.register(task.spec)
        worker = Worker(task, actors, seed, "actor-0", store, Hub().report)
        worker.work(Order("demo", 0, episodes), None)
        yield store


def training(
    task: Task,
    store: EpisodeStore,
    config: LearnerConfig,
    seed: int,
    report: Callable[[TrainingProgress], None] = lambda _: None,
    validation: Sequence[Episode] = (),
) -> Policy:
    """Train on a store's demonstrations, as a learner rank does."""
    with TemporaryDirectory() as checkpoints:
        return train(
            config,
            task.spec,
            seed=seed,
            draw=lambda step, before, after, count: store.sample(
                config.mix, count, before, after, np.random.default_rng((seed, 0, step))
            ),
            statistics=lambda: measure(map(store.read, store.ids("demo")), task.spec),
            publish=lambda version, weights: None,
            report=report,
            validation=validation,
            should_stop=lambda: False,
            checkpoints=Path(checkpoints),
        )


def evaluated(
    task: Task, policy: Policy, lengths: Sequence[int], episodes: int
) -> Iterator[Mapping[str, int]]:
    """Evaluate a policy at each context length, on the same episodes, and yield the outcomes of each."""
    actors = ActorsConfig(simulators=SIMULATORS)
    worker = Worker(task, actors, 0, "actor-0", None, Hub().report)
    for length in lengths:
        order = Order("evaluation", 0, episodes, length, version=0)
        yield worker.work(order, PolicySession(policy, SIMULATORS)).outcomes


def success(outcomes: Mapping[str, int]) -> Rate:
    """Return successes as a share of all episodes."""
    return Rate(outcomes.get("success", 0), sum(outcomes.values()))
