"""The weight board as a Ray actor: it owns the newest weights, so that their publisher may die."""

from pathlib import Path
from typing import Any

import ray

from longview.cluster.roles.reporting import restarted, send


class WeightBoard:
    """Holds one version; a Ray actor by way of `longview.cluster.roles.roles`."""

    def __init__(self, checkpoints: Path) -> None:
        """Starts from the newest checkpoint, if there is one: after its own restart as after a run's."""
        self._version: int | None = None
        self._reference: Any = None
        if (message := restarted("board")) is not None:
            send(message)
        # Here, because it imports torch, which nothing else in this process needs.
        from longview.learner.checkpoint import latest

        if (newest := latest(checkpoints)) is not None:
            self.publish(newest.step, newest.policy)

    def publish(self, version: int, weights: bytes) -> None:
        """Take over weights; an older version than the newest is ignored (a learner that resumes may
        publish one again)."""
        if self._version is None or version > self._version:
            # One object a version, pulled by whoever wants it; dropping the old reference frees it.
            self._version, self._reference = version, ray.put(weights)

    def version(self) -> int | None:
        """The newest version; ask for it before pulling."""
        return self._version

    def latest(self) -> tuple[int, list[Any]] | None:
        """The newest version with a reference to its bytes, in a list so that Ray does not fetch them."""
        return None if self._version is None else (self._version, [self._reference])
