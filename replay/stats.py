"""What a store holds, in numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from longview.replay.episode import SOURCES


@dataclass(frozen=True)
class Count:
    """A number of episodes, with their steps and stored bytes."""

    episodes: int = 0
    steps: int = 0
    bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.episodes + other.episodes, self.steps + other.steps, self.bytes + other.bytes)


@dataclass(frozen=True)
class StoreStats:
    """What the store holds and what it ever did; exact, also under retries."""

    stored: Mapping[str, Count]
    """By source: what is there now."""
    committed: Mapping[tuple[str, str], Count]
    """By (source, outcome): what was ever committed, evicted or not."""
    evicted: Mapping[str, Count]
    """By source: what was ever removed to make room."""
    byte_budget: int
    quarantined: int = 0
    """Episodes that are damaged, and set aside."""

    @property
    def total(self) -> Count:
        """What is there now, of all sources."""
        return sum(self.stored.values(), Count())


def stats_of(totals: Iterable[Mapping[bytes, bytes]], byte_budget: int) -> StoreStats:
    """From the totals of every shard, as scripts.py describes them."""
    stored, evicted = dict.fromkeys(SOURCES, Count()), dict.fromkeys(SOURCES, Count())
    committed: dict[tuple[str, str], Count] = {}
    quarantined = 0
    for shard in totals:
        for field, value in shard.items():
            match field.decode().split(":"):
                case ["live", source, unit]:
                    stored[source] += Count(**{unit: int(value)})
                case ["quarantined"]:
                    quarantined += int(value)
                case ["evicted", source, unit]:
                    evicted[source] += Count(**{unit: int(value)})
                case ["ever", source, outcome, unit]:
                    so_far = committed.get((source, outcome), Count())
                    committed[source, outcome] = so_far + Count(**{unit: int(value)})
    return StoreStats(stored, dict(sorted(committed.items())), evicted, byte_budget, quarantined)
