"""Starts and watches the learner ranks of a run, and restarts them from the newest checkpoint."""

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from longview.cluster.driver.dispatch import MAX_FAILURES, cause_of
from longview.cluster.roles.learner import LearnerRank
from longview.cluster.roles.rank import Demonstrations
from longview.cluster.roles.ray import Handle, start
from longview.cluster.run.config import RunConfig
from longview.cluster.run.ending import RunFailed
from longview.cluster.run.preflight import gpus_of_rank
from longview.learner.files import steps
from longview.replay.store import StoreAddress

log = logging.getLogger(__name__)

THREADS_VARIABLE = "LONGVIEW_LEARNER_THREADS"
"""Environment variable of the CPU threads that the learner ranks of a run have together. Ray sets
OMP_NUM_THREADS in its workers, one of which may be this process."""
STOP_SECONDS = 60.0
"""Time that the ranks get to save when the run is stopped. `longview stop` waits longer, and so do
Kubernetes' ends of a job and of a pod."""
DEATH_SECONDS = 5.0
"""Time within which Ray notices that a process has died."""
LATE_SECONDS = 600.0
"""Time that ranks wait for each other: to be started, to meet, and in every exchange. Compiling on one rank
takes minutes, and so does a node that the cluster has to add."""


class Training:
    """The learner ranks of a run as one; if a rank is lost, all restart from the newest checkpoint."""

    def __init__(
        self,
        config: RunConfig,
        checkpoints: Path,
        store: StoreAddress,
        late_seconds: float = LATE_SECONDS,
    ) -> None:
        """
        Args:
            config: the run's.
            checkpoints: folder of the checkpoints, which every rank 0 reaches.
            store: store of the episodes to train on.
            late_seconds: time after which a rank that the others wait for costs a restart.
        """
        self._config, self._checkpoints, self._store = config, checkpoints, store
        self._late_seconds = late_seconds
        self._ranks: list[Handle] = []
        self._under_way: list[Any] = []
        """Ray's references to what each rank does: start, and then train."""
        self._late_at: float | None = None
        """Monotonic time by which all ranks have to be ready; None once they train."""
        self._failures: dict[int | None, int] = {}
        """Restarts after a failure, by the newest version at that time."""
        self.restarts = Counter[str]()
        """Restarts of the ranks, by cause."""

    def prepare(self) -> None:
        """Start the ranks' processes before there is anything to train on: importing torch takes seconds."""
        self._start()

    def start(self, demonstrations: Demonstrations, board: Handle) -> None:
        """Start the ranks, if they were not prepared. They train as soon as all are ready: a rank that joined
        alone would wait in vain for one that has no room yet.

        Args:
            demonstrations: what the demonstrations are for.
            board: handle on the weight board.
        """
        self._demonstrations, self._board = demonstrations, board
        if not steps(self._checkpoints):
            measured, drawn = len(demonstrations.measured), demonstrations.drawn
            log.info("the normaliser's statistics are measured on %d of %d demonstrations", measured, drawn)
        cache_gib = self._config.replay.cache(self._config.learners) / 2**30
        log.info("each learner rank keeps %.3g GiB of decoded episodes, if its memory is as here", cache_gib)
        if self._ranks:
            self._late_at = time.monotonic() + self._late_seconds
        else:
            self._start()

    def _start(self) -> None:
        world, placement = self._config.learners, self._config.placement
        gpus = gpus_of_rank(self._config, ray.cluster_resources().get("GPU", 0))
        threads = 1 if gpus else max(1, self._threads() // world)
        # Two calls at a time, since `stop` has to get through while `train` runs.
        options = {"num_cpus": 1, "num_gpus": gpus, "resources": placement.learner, "max_concurrency": 2}
        self._ranks = [start(LearnerRank, rank, world, threads, gpus > 0, **options) for rank in range(world)]
        self._under_way = [rank.__ray_ready__.remote() for rank in self._ranks]
        self._late_at = time.monotonic() + self._late_seconds

    def _threads(self) -> int:
        """CPU threads of all ranks together."""
        given = os.environ.get(THREADS_VARIABLE, "")
        return int(given) if given.isdecimal() else (os.cpu_count() or 1) - self._config.rollout_actors

    def finished(self, newest: int | None) -> int | None:
        """Check on the ranks: have them train once all are ready, and restart them if one is lost or late.

        Args:
            newest: the newest published version; ranks that are lost without a newer one make no progress.

        Returns:
            The last version once all ranks are done; None before.

        Raises:
            RunFailed: training raised an error, or ranks were lost `MAX_FAILURES` times without progress.
        """
        if not self._under_way:
            return None
        if (error := self._error(timeout=0)) is not None:
            # The other ranks fail because of a dead one, and their errors may come first.
            self._failed(newest, self._error(timeout=DEATH_SECONDS) or error)
            return None
        _, waiting = ray.wait(self._under_way, num_returns=len(self._under_way), timeout=0)
        if self._late_at is None:
            return None if waiting else ray.get(self._under_way[0])
        if not waiting:
            self._train()
        elif time.monotonic() > self._late_at:
            # Ranks that wait give back what they hold: another run may hold what the late ones need.
            log.warning(
                "%d of %d learner ranks have no place after %.0f s, all start again: "
                "`ray status` says what the cluster has and what it lacks",
                len(waiting),
                len(self._ranks),
                self._late_seconds,
            )
            self._restart("late")
        return None

    def _train(self) -> None:
        """Have all ranks join and train."""
        address = self._ranks[0].address.remote()
        self._under_way = [
            rank.train.remote(
                self._config,
                address,
                self._checkpoints,
                self._store,
                self._demonstrations,
                self._board,
                self._late_seconds,
            )
            for rank in self._ranks
        ]
        self._late_at = None

    def _error(self, timeout: float) -> Exception | None:
        """Find the error of the ranks that have ended; None if none failed. The death of a rank comes before
        the errors of others, and an error of the training before that of a rank that lost another."""
        ended, _ = ray.wait(self._under_way, num_returns=len(self._under_way), timeout=timeout)
        errors: list[Exception] = []
        for rank in ended:
            try:
                ray.get(rank)
            except (RayActorError, RayTaskError) as error:
                errors.append(error)
        deaths = [error for error in errors if isinstance(error, RayActorError)]
        return next(iter(deaths or sorted(errors, key=_lost)), None)

    def _failed(self, newest: int | None, error: Exception) -> None:
        """Restart the ranks after the death of one, or after they lost each other."""
        if isinstance(error, RayTaskError) and not _lost(error):
            raise RunFailed(f"training failed: {error.cause}") from error
        cause = error.cause if isinstance(error, RayTaskError) else error
        log.warning("a learner rank was lost, training goes on from the newest checkpoint: %s", cause)
        self._failures[newest] = self._failures.get(newest, 0) + 1
        if self._failures[newest] >= MAX_FAILURES:
            message = f"learner ranks were lost {MAX_FAILURES} times without progress: {cause}"
            raise RunFailed(message) from error
        self._restart(cause_of(error) if isinstance(error, RayActorError) else "lost")

    def _restart(self, cause: str) -> None:
        self.restarts[cause] += 1
        self.kill()
        self._start()

    def stop(self) -> None:
        """Have every rank save its state, wait for that, and end the ranks."""
        if self._late_at is None:
            for rank in self._ranks:
                rank.stop.remote()
            if self._under_way:
                ray.wait(self._under_way, num_returns=len(self._under_way), timeout=STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the ranks at once, which gives back the resources that they hold."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks, self._under_way = [], []


def _lost(error: Exception) -> bool:
    """Tell whether a rank failed only because it had no answer from another."""
    if not isinstance(error, RayTaskError):
        return False
    # Imported here because it imports torch, which a driver needs only when training has failed.
    from longview.learner.ranks import RankLost

    return isinstance(error.cause, RankLost)
