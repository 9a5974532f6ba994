"""Names of all Redis keys of the store, one function per key.

All keys of a shard carry the hash tag {namespace:shard}. They share a slot of a Redis Cluster, so one script
may touch them together. A namespace is percent-encoded in keys, and so cannot forge one.
"""

import zlib
from collections.abc import Iterable

from longview.replay.names import encode_name


def shard_of(episode_id: str, shards: int) -> int:
    """Return the shard of an episode, 0 to shards - 1; it follows from the id alone."""
    return zlib.crc32(episode_id.encode()) % shards


def layout(namespace: str) -> str:
    """Name the hash of what all clients of the namespace share: `format`, `shards`, `owner`, and while it is
    brought over to another format `migrating`."""
    return f"{{{encode_name(namespace)}}}:layout"


def tasks(namespace: str) -> str:
    """Name the hash from task names to encoded task specs."""
    return f"{{{encode_name(namespace)}}}:tasks"


def tag(namespace: str, shard: int) -> str:
    """Return the hash tag of a shard, with which all its keys begin."""
    return f"{{{encode_name(namespace)}:{shard}}}"


def episodes(tag: str) -> str:
    """Name the hash from episode ids to encoded records. It holds exactly the committed episodes."""
    return f"{tag}:episodes"


def index(tag: str, source: str) -> str:
    """Name the sorted set of a source's episodes: `<id>:<length>:<learnable>:<outcome>:<task>`, with the
    commit's time. `learnable` is the number of learnable steps."""
    return f"{tag}:index:{source}"


def priorities(tag: str) -> str:
    """Name the hash from episode ids to priorities; episodes without an entry have priority 1."""
    return f"{tag}:priorities"


def prioritized(tag: str) -> str:
    """Name the sorted set of ids with a priority, each with the time of its last change."""
    return f"{tag}:prioritized"


def removed(tag: str) -> str:
    """Name the sorted set of ids of removed episodes, each with the time of the removal."""
    return f"{tag}:removed"


def quarantine(tag: str) -> str:
    """Name the hash from ids of damaged episodes to their record and the damage."""
    return f"{tag}:quarantine"


def totals(tag: str) -> str:
    """Name the hash of the shard's counters and clock; `scripts.py` lists its fields."""
    return f"{tag}:totals"


def chunks(tag: str, episode_id: str, token: str, numbers: Iterable[int]) -> list[str]:
    """Name the strings with the bytes of these chunks of an episode, as one writer stored them. They expire
    unless the episode is committed."""
    prefix = writer_prefix(tag, episode_id, token)
    return [f"{prefix}{number}" for number in numbers]


def writer_prefix(tag: str, episode_id: str, token: str) -> str:
    """Return the prefix of the keys of a writer's chunks; the chunk's number follows."""
    return f"{chunks_prefix(tag)}{episode_id}:{token}:"


def chunks_prefix(tag: str) -> str:
    """Return the prefix of all chunk keys of a shard; `<id>:<token>:<number>` follows."""
    return f"{tag}:chunks:"


def chunks_pattern(namespace: str) -> str:
    """Return the pattern by which SCAN finds the chunks of all shards."""
    return f"{{{encode_name(namespace)}:*}}:chunks:*"
