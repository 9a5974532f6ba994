"""Starts and watches the learner ranks of a run, and restarts them from the newest checkpoint."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from longview.cluster.driver.dispatch import MAX_FAILURES, RunFailed, cause_of
from longview.cluster.roles.learner import LearnerRank
from longview.cluster.roles.ray import Handle, start
from longview.cluster.run.config import RunConfig
from longview.replay.store import StoreAddress

log = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""Time that the ranks get to save when the run is stopped."""
DEATH_SECONDS = 5.0
"""Time within which Ray notices that a process has died."""


class Training:
    """The learner ranks of a run as one; if a rank dies, all restart from the newest checkpoint."""

    def __init__(self, config: RunConfig, checkpoints: Path, store: StoreAddress, board: Handle) -> None:
        self._config, self._checkpoints, self._store, self._board = config, checkpoints, store, board
        self._ranks: list[Handle] = []
        self._under_way: list[Any] = []
        self._deaths: dict[int | None, int] = {}
        self.restarts = Counter[str]()
        """Restarts of the ranks, by cause."""

    def start(self) -> None:
        """Start the ranks and have them train."""
        world, placement = self._config.learners, self._config.placement
        gpus = placement.learner_gpus
        if gpus is None:
            gpus = int(ray.cluster_resources().get("GPU", 0) >= world)
        threads = 1 if gpus else max(1, ((os.cpu_count() or 1) - self._config.actors.count) // world)
        # Two calls at a time, since `stop` has to get through while `train` runs.
        options = {"num_cpus": 1, "num_gpus": gpus, "resources": placement.learner, "max_concurrency": 2}
        self._ranks = [start(LearnerRank, rank, world, threads, gpus > 0, **options) for rank in range(world)]
        address = self._ranks[0].address.remote()
        self._under_way = [
            rank.train.remote(self._config, address, self._checkpoints, self._store, self._board)
            for rank in self._ranks
        ]

    def finished(self, newest: int | None) -> int | None:
        """Check on the ranks, and restart them if one died.

        Args:
            newest: the newest published version; ranks that die without a newer one make no progress.

        Returns:
            The last version once all ranks are done; None while they train.

        Raises:
            RunFailed: training raised an error, or ranks died `MAX_FAILURES` times without progress.
        """
        if not self._under_way:
            return None
        if (error := self._error(timeout=0)) is not None:
            # The other ranks fail because of a dead one, and their errors may come first.
            self._restart(newest, self._error(timeout=DEATH_SECONDS) or error)
            return None
        _, waiting = ray.wait(self._under_way, num_returns=len(self._under_way), timeout=0)
        return None if waiting else ray.get(self._under_way[0])

    def _error(self, timeout: float) -> Exception | None:
        """Find the error of the ranks that have ended, preferably the death of one; None if none failed."""
        ended, _ = ray.wait(self._under_way, num_returns=len(self._under_way), timeout=timeout)
        errors: list[Exception] = []
        for rank in ended:
            try:
                ray.get(rank)
            except (RayActorError, RayTaskError) as error:
                errors.append(error)
        return max(errors, key=lambda error: isinstance(error, RayActorError), default=None)

    def _restart(self, newest: int | None, error: Exception) -> None:
        if isinstance(error, RayTaskError):
            raise RunFailed(f"training failed: {error.cause}") from error
        log.warning("a learner rank died, training goes on from the newest checkpoint: %s", error)
        self.restarts[cause_of(error)] += 1
        self._deaths[newest] = self._deaths.get(newest, 0) + 1
        if self._deaths[newest] >= MAX_FAILURES:
            raise RunFailed(f"learner ranks died {MAX_FAILURES} times without progress: {error}") from error
        self.kill()
        self.start()

    def stop(self) -> None:
        """Have every rank save its state, wait for that, and end the ranks."""
        for rank in self._ranks:
            rank.stop.remote()
        if self._under_way:
            ray.wait(self._under_way, num_returns=len(self._under_way), timeout=STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the ranks at once."""
        for rank in self._ranks:
            ray.kill(rank)
