"""Configuration of the episode store."""

import math
import os
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from longview.replay.episode import SOURCES, unknown_sources
from longview.replay.memory import usable_memory

PASSWORD_VARIABLE: Final = "LONGVIEW_REDIS_PASSWORD"
"""Name of the environment variable with the password of a Redis whose URL has none."""
CACHE_PART: Final = 8
"""Part of the memory that caches take by default, as its divisor. On one machine Redis, simulators and torch
need the rest: Redis alone takes up to twice the byte budget, 8 GiB by default."""


@dataclass(frozen=True)
class StoreConfig:
    """Settings of the episode store, checked when the config is made.

    Raises:
        ValueError: a value is out of range; the message holds the key and the value.
    """

    url: str | None = field(default=None, repr=False)
    """Address of Redis: redis://, rediss:// or unix://. None: the run starts a Redis of its own. The URL may
    hold a password, so it is never shown."""
    shards: int = 4
    """Number of shards P of a new namespace, at least 1. An existing namespace keeps its number."""
    chunk_steps: int = 64
    """Largest number of steps per chunk, at least 1. A writer sends each chunk as soon as it is full."""
    chunk_bytes: int = 4 << 20
    """Largest size of a chunk before compression, at least 1; a single step may exceed it. It bounds what a
    reader fetches and decodes beyond the steps that it needs."""
    compression: int = 1
    """zstd level of the chunks, 1 to 19; 0: no compression."""
    pictures: Literal["auto", "raw", "jpeg"] = "auto"
    """Form in which pictures are stored. `auto`: as JPEG if they were imported from a video, which has lost
    something already, and have more than 128x128 pixels; else exactly, as `raw` stores all. `jpeg`: all as
    JPEG, which loses a little."""
    byte_budget: int = 4 << 30
    """Bytes of chunks that a namespace may hold, at least 1, divided equally among its shards. When a shard
    is full, a commit evicts the shard's oldest episodes of the sources in `evict`. Redis needs up to twice as
    much memory."""
    evict: tuple[str, ...] = ("rollout", "correction")
    """Sources whose episodes may be evicted, oldest first."""
    cache_bytes: int | None = None
    """Bytes of decoded chunks that a reader keeps in its own memory, at least 0. None: an eighth of the
    memory that the process may use; the learner ranks of a run share it."""
    refresh_seconds: float = 1.0
    """Shortest time between two looks of a sampler for new episodes, in seconds, at least 0."""
    samples_per_insert: float | None = None
    """Steps that the learner's ranks together may draw per step that was ever committed to the strata they
    draw from, above 0; at the limit the learner waits for new episodes. None: no limit."""
    minimum_steps: int = 0
    """Steps that must be stored before the learner draws any, at least 0."""
    limiter_seconds: float = 600.0
    """Seconds that the learner may wait for the two limits above before it fails, at least 0."""
    orphan_seconds: float = 3600.0
    """Life time of the chunks of an uncommitted episode, above 0: they expire between half of it and all of
    it after the writer's last chunk."""
    call_seconds: float = 10.0
    """Seconds that Redis may take to answer one call, above 0; after that it counts as unreachable."""
    patience_seconds: float = 60.0
    """Seconds for which a call is repeated while Redis is unreachable, at least 0; after that it fails."""
    queue_bytes: int = 64 << 20
    """Bytes of steps that a client's writers may have in the queue to Redis before they wait, at least 1. It
    also bounds the chunks that each writer keeps until its commit, to send them again if Redis loses them."""
    fsync: Literal["everysec", "always"] = "everysec"
    """Policy by which the run's own Redis writes its file to the disk. When the machine goes down, `everysec`
    loses about the last second and `always` loses nothing, but is slower."""
    max_connections: int = 8
    """Connections that a client may open to each Redis node, at least 1. When all are busy, threads wait."""
    replicas: int = 0
    """Replicas that must hold a commit before it returns, at least 0, so that no commit is lost when a
    replica takes over."""

    def steps_per_chunk(self, step_bytes: int) -> int:
        """Return the number of steps K in each chunk of an episode but the last.

        Args:
            step_bytes: size of one step before compression.
        """
        return min(self.chunk_steps, max(1, self.chunk_bytes // step_bytes))

    def cache(self, readers: int = 1) -> int:
        """Return the bytes of decoded chunks that a reader keeps.

        Args:
            readers: readers that share the memory, unless `cache_bytes` says how much each one takes.
        """
        if self.cache_bytes is not None:
            return self.cache_bytes
        return usable_memory() // CACHE_PART // readers

    def __post_init__(self) -> None:
        for name in ("shards", "chunk_steps", "chunk_bytes", "byte_budget", "max_connections", "queue_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "refresh_seconds",
            "patience_seconds",
            "minimum_steps",
            "limiter_seconds",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, not {self.cache_bytes}")
        for name in ("orphan_seconds", "call_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and positive, not {getattr(self, name)}")
        if self.samples_per_insert is not None and not 0 < self.samples_per_insert < math.inf:
            raise ValueError(f"samples_per_insert must be finite and positive, not {self.samples_per_insert}")
        if unknown := set(self.evict) - set(SOURCES):
            raise ValueError(f"evict: {unknown_sources(unknown)}")
        if self.replicas < 0:
            raise ValueError(f"replicas must not be negative, not {self.replicas}")
        if not 0 <= self.compression <= 19:
            raise ValueError(f"compression must be a zstd level from 0 to 19, not {self.compression}")


def with_password(url: str) -> str:
    """Return the URL of a Redis with the environment's password, unless the URL has a password or the
    environment has none."""
    parts, password = urlsplit(url), os.environ.get(PASSWORD_VARIABLE)
    if not password or parts.password is not None or "password" in parse_qs(parts.query):
        return url
    netloc = f"{parts.username or ''}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc))
