"""The weight board as a Ray actor. It owns the newest weights, so that the learner may die."""

from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from longview.cluster.roles.reporting import restarted, send


class WeightBoard:
    """Holder of the newest version of the weights."""

    def __init__(self, checkpoints: Path) -> None:
        """Start with the weights of the newest checkpoint, if there is one.

        Args:
            checkpoints: folder of the run's checkpoints.
        """
        self._version: int | None = None
        self._reference: Any = None
        if (message := restarted("board")) is not None:
            send(message)
        from longview.learner.files import newest  # not `checkpoint`, which imports torch

        if (found := newest(checkpoints)) is not None:
            self.publish(found.step, np.frombuffer(found.policy, np.uint8))

    def publish(self, version: int, weights: NDArray[np.uint8]) -> None:
        """Take over weights, unless they are older than the newest: a resumed learner may publish a version
        again.

        Args:
            version: their version.
            weights: their bytes, as an array. Ray hands out an array from its shared memory without a copy.
        """
        if self._version is None or version > self._version:
            # One object a version, which others pull; dropping the old reference frees its memory.
            self._version, self._reference = version, ray.put(weights)

    def version(self) -> int | None:
        """Return the newest version; None before the first."""
        return self._version

    def latest(self) -> tuple[int, list[Any]] | None:
        """Return the newest version with a Ray reference to its bytes; None before the first. The reference
        is in a list so that Ray does not fetch it."""
        return None if self._version is None else (self._version, [self._reference])
