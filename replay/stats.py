"""Counts of what a store holds."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Number of episodes, with their steps, learnable steps and stored bytes."""

    episodes: int = 0
    """Number of episodes."""
    steps: int = 0
    """Steps of all the episodes."""
    learnable: int = 0
    """Steps of them that there is something to learn from, as `episode.learnable` tells."""
    bytes: int = 0
    """Bytes of all their chunks, as stored."""

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.episodes + other.episodes,
            self.steps + other.steps,
            self.learnable + other.learnable,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True)
class StoreStats:
    """Counts of a namespace's episodes. They are exact, also after retries."""

    stored: Mapping[str, Count]
    """Episodes that are stored now, by source."""
    committed: Mapping[tuple[str, str], Count]
    """Episodes that were ever committed, evicted or not, by (source, outcome)."""
    evicted: Mapping[str, Count]
    """Episodes that were ever evicted to make room, by source."""
    byte_budget: int
    """Bytes of chunks that the namespace may hold."""
    quarantined: int = 0
    """Number of damaged episodes in the quarantine."""

    @property
    def total(self) -> Count:
        """Episodes of all sources that are stored now."""
        return sum(self.stored.values(), Count())
