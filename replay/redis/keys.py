"""Every Redis key of the store, a function each.

All keys of a shard carry the hash tag {namespace:shard}, so that they share a slot of a Redis Cluster and one
script may touch them together.
"""

import re
import zlib
from collections.abc import Iterable

_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


def check_namespace(namespace: str) -> str:
    """The namespace itself.

    Raises:
        ValueError: it holds a character that could forge a key, or is empty or too long.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"namespace must match {_NAMESPACE.pattern}, not {namespace!r}")
    return namespace


def shard_of(episode_id: str, shards: int) -> int:
    """The shard that an episode lives in: the same in every process."""
    return zlib.crc32(episode_id.encode()) % shards


def layout(namespace: str) -> str:
    """Hash: what every client of the namespace must agree on (`format`, `shards`)."""
    return f"{{{namespace}}}:layout"


def tasks(namespace: str) -> str:
    """Hash: task name -> its spec."""
    return f"{{{namespace}}}:tasks"


def tag(namespace: str, shard: int) -> str:
    """The hash tag of a shard, which its keys are made from."""
    return f"{{{namespace}:{shard}}}"


def episodes(tag: str) -> str:
    """Hash: episode id -> record. An episode is committed if and only if it is in here."""
    return f"{tag}:episodes"


def index(tag: str, source: str) -> str:
    """Sorted set of one source: `<id>:<length>:<outcome>:<task>`, scored by the time of its commit."""
    return f"{tag}:index:{source}"


def priorities(tag: str) -> str:
    """Hash: episode id -> its priority, of those that were given one."""
    return f"{tag}:priorities"


def prioritized(tag: str) -> str:
    """Sorted set: ids of the same episodes, scored by the time of the last change."""
    return f"{tag}:prioritized"


def removed(tag: str) -> str:
    """Sorted set: ids of removed episodes, scored by the time of their removal."""
    return f"{tag}:removed"


def quarantine(tag: str) -> str:
    """Hash: episode id -> its record and what is wrong, of episodes that are damaged and set aside."""
    return f"{tag}:quarantine"


def totals(tag: str) -> str:
    """Hash of counters and of the shard's clock; see scripts.py."""
    return f"{tag}:totals"


def chunks(tag: str, episode_id: str, token: str, numbers: Iterable[int]) -> list[str]:
    """Strings: the bytes of these chunks, of one writer of one episode; they expire until it is committed."""
    prefix = writer_prefix(tag, episode_id, token)
    return [f"{prefix}{number}" for number in numbers]


def writer_prefix(tag: str, episode_id: str, token: str) -> str:
    """What the keys of a writer's chunks begin with; the rest is the number."""
    return f"{chunks_prefix(tag)}{episode_id}:{token}:"


def chunks_prefix(tag: str) -> str:
    """What the chunk keys of a shard begin with; the rest is `<id>:<token>:<number>`."""
    return f"{tag}:chunks:"


def chunks_pattern(namespace: str) -> str:
    """What SCAN takes to find the chunks of all shards."""
    return f"{{{namespace}:*}}:chunks:*"
