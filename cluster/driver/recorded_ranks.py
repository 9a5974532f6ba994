"""Training on recorded data by learner ranks, through Ray."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import ray

from longview.cluster.driver.conduct import ignore_interrupts
from longview.cluster.driver.launch import TICK_SECONDS, ray_cluster, start_roles
from longview.cluster.driver.places import LearnerPlaces
from longview.cluster.driver.reports import reporting
from longview.cluster.driver.training import Training
from longview.cluster.roles.rank import Demonstrations
from longview.cluster.run.ending import ending
from longview.cluster.run.progress import RunProgress
from longview.replay.store import EpisodeStore, StoreAddress


def train_on_ray(
    progress: RunProgress,
    store: EpisodeStore,
    address: StoreAddress,
    cluster: str | None,
    demonstrations: Demonstrations,
    show: Callable[[RunProgress], None],
) -> None:
    """Train by the run's learner ranks, and show it. When interrupted, the ranks save.

    Args:
        progress: the run's progress.
        store: store of the episodes to train on.
        address: its address, which every rank reaches.
        cluster: address of an existing Ray cluster; None starts one on this machine.
        demonstrations: what the episodes are for.
        show: shows progress.

    Raises:
        ConfigError: the cluster has no room for the ranks, or cannot reach the store.
        RunFailed: the training raised an error, or ranks were lost again and again.
    """
    config, run, alone = progress.config, progress.run, cluster is None
    with ExitStack() as services:
        services.enter_context(ray_cluster(config, cluster, store_is_local=config.replay.url is None))
        places = LearnerPlaces(config, alone=alone)
        places.wait()
        places.withdraw()
        roles = start_roles(config, run, alone=alone)
        reporter = services.enter_context(reporting(roles.hub, store, progress))
        training = Training(config, run.checkpoints.absolute(), address)
        services.enter_context(ending(training.stop))
        services.callback(ignore_interrupts)
        training.start(demonstrations, roles.board)
        last: int | None = None
        while last is None:
            time.sleep(TICK_SECONDS)
            progress.version = ray.get(roles.board.version.remote())
            last = training.finished(progress.version)
            progress.restarts = {"learner": training.restarts}
            progress.update(reporter.report())
            show(progress)
        progress.version = last
