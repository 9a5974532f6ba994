"""Weights that the driver holds for the actors."""

import time
from typing import Any

import ray


class HeldWeights:
    """Ray references to the weights of the newest version and of the versions still in use. The driver owns
    these copies, so that a round of evaluation outlives the board."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._held: dict[int, Any] = {}
        self._published: dict[int, float] = {}
        self.newest: int | None = None
        """The newest version; None before the first."""

    def refresh(self, keep: set[int]) -> int | None:
        """Take over a newer version from the board, and drop the versions that are not in `keep`.

        Returns:
            The new version; None if the board has no newer one.
        """
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
        """Return a version's reference, and the seconds since this process learned of the version. The
        reference is in a list so that Ray passes it on without fetching it."""
        return [self._held[version]], time.monotonic() - self._published[version]
