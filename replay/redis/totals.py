"""Statistics of a namespace from the totals that Redis keeps per shard; `scripts.py` lists their fields."""

from collections.abc import Iterable, Mapping

from longview.replay.episode import SOURCES
from longview.replay.stats import Count, StoreStats


def stats_of(totals: Iterable[Mapping[bytes, bytes]], byte_budget: int) -> StoreStats:
    """Sum up the totals of all shards.

    Args:
        totals: the replies to HGETALL, one per shard.
        byte_budget: bytes that the namespace may hold.
    """
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
