"""The weights that the driver holds."""

import time
from typing import Any

import ray


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
