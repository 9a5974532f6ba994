"""Weights that the driver holds for the actors."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

import ray
from ray.exceptions import ObjectLostError

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 0.1
"""Time that `refresh` waits for the board's answer and the copy of a new version. A thread asks and copies;
large weights take it longer."""


class HeldWeights:
    """Ray references to the weights of the newest version and of the versions still in use. The driver owns
    these copies, so that a round of evaluation outlives the board."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._held: dict[int, Any] = {}
        self._published: dict[int, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._coming: Future[tuple[int, Any] | None] | None = None
        """Copy under way of a newer version: the version and the reference."""
        self.newest: int | None = None
        """The newest version; None before the first."""

    def refresh(self, keep: set[int]) -> int | None:
        """Take over a newer version from the board, and drop the versions that are not in `keep`.

        Returns:
            The new version; None if there is no newer one, or its copy is still under way.
        """
        if self._coming is None:
            self._coming = self._thread.submit(self._newer)
        if not wait([self._coming], PATIENCE_SECONDS).done:
            return None
        coming, self._coming = self._coming, None
        if (found := coming.result()) is None:
            return None
        self.newest, reference = found
        self._held = {version: held for version, held in self._held.items() if version in keep}
        self._held[self.newest] = reference
        self._published = {version: self._published.get(version, time.monotonic()) for version in self._held}
        return self.newest

    def _newer(self) -> tuple[int, Any] | None:
        """Copy the board's version, if it is newer than the newest here. A board that takes over large
        weights answers late."""
        try:
            # A board that was started again has only the newest checkpoint, which may be older.
            if not self._is_newer(ray.get(self._board.version.remote())):
                return None
            found = ray.get(self._board.latest.remote())
            if found is None or not self._is_newer(found[0]):
                return None
            version, (reference,) = found
            return version, ray.put(ray.get(reference))
        except ObjectLostError as error:
            log.warning("the weight board died with its newest version: %s", error)
            return None

    def _is_newer(self, version: int | None) -> bool:
        return version is not None and (self.newest is None or version > self.newest)

    def of(self, version: int) -> tuple[list[Any], float]:
        """Return a version's reference, and the seconds since this process learned of the version. The
        reference is in a list so that Ray passes it on without fetching it."""
        return [self._held[version]], time.monotonic() - self._published[version]
