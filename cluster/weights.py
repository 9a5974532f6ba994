"""The weight board, which owns the newest weights so that their publisher may die; what the driver holds."""

import time
from pathlib import Path
from typing import Any

import ray

from cluster.reports import restarted, send


class WeightBoard:
    """Holds one version; a Ray actor by way of `cluster.roles`."""

    def __init__(self, checkpoints: Path) -> None:
        """Starts from the newest checkpoint, if there is one: after its own restart as after a run's."""
        self._version: int | None = None
        self._reference: Any = None
        if (message := restarted("board")) is not None:
            send(message)
        # Here, because it imports torch, which nothing else in this process needs.
        from learner.checkpoint import latest

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


class HeldWeights:
    """References to the weights of the newest version and of those still in use. They are this process's
    own copies, so that a round of evaluation outlives the board."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._held: dict[int, Any] = {}
        self._published: dict[int, float] = {}
        self.newest: int | None = None

    def refresh(self, keep: set[int]) -> int | None:
        """Take over a newer version if there is one, and let go of all others but `keep`."""
        version = ray.get(self._board.version.remote())
        if version is None or version == self.newest:
            return None
        newest, (reference,) = ray.get(self._board.latest.remote())
        self._held = {version: held for version, held in self._held.items() if version in keep}
        self._held[newest] = ray.put(ray.get(reference))
        self._published = {version: self._published.get(version, time.monotonic()) for version in self._held}
        self.newest = newest
        return int(newest)

    def of(self, version: int) -> tuple[list[Any], float]:
        """A version's reference, in a list so that Ray passes it on unfetched, and how many seconds ago it
        was published, going by when we heard of it."""
        return [self._held[version]], time.monotonic() - self._published[version]
