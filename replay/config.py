"""Configuration of the episode store."""

import math
from dataclasses import dataclass, field
from typing import Literal

from longview.replay.episode import SOURCES


@dataclass(frozen=True)
class StoreConfig:
    """How episodes are stored and read; validated when it is made.

    Raises:
        ValueError: a value is out of range; the message holds it.
    """

    url: str | None = field(default=None, repr=False)
    """redis://, rediss:// or unix://; None: a Redis of the run's own. May hold a password: never shown."""
    shards: int = 4
    """P, for a namespace that is new; an existing one keeps the number it was made with."""
    chunk_steps: int = 64
    """K: an episode leaves the writer's process in chunks of so many steps."""
    compression: int = 1
    """zstd level of the chunks, 1 to 19; 0 stores them as they are."""
    byte_budget: int = 4 << 30
    """Bytes of stored chunks, P equal shares. When they are used up, the oldest episodes of sources that may
    be evicted give way to new ones. Redis itself needs up to twice as much memory."""
    evict: tuple[str, ...] = ("rollout", "dagger")
    """Sources that give way, oldest first."""
    cache_bytes: int = 1 << 30
    """Bytes of decoded episodes that a reader keeps in its own memory."""
    refresh_seconds: float = 1.0
    """A sampler looks for new episodes at most this often."""
    samples_per_insert: float | None = None
    """Steps that the learner may draw for each that was ever committed to what it draws from, all its ranks
    together; beyond that it waits for new ones. None: as many as it likes."""
    minimum_steps: int = 0
    """Steps that must be there for the learner to draw any."""
    limiter_seconds: float = 600.0
    """The learner waits for so long for what those two want, before it fails."""
    orphan_seconds: float = 3600.0
    """Chunks of an uncommitted episode expire when half to all of this has passed since the last of them."""
    call_seconds: float = 10.0
    """Redis is taken to be away when it does not answer a call for so long."""
    patience_seconds: float = 60.0
    """A call is repeated for so long while Redis is away, before it fails."""
    queue_bytes: int = 64 << 20
    """Bytes of steps that the writers of a client have on their way to Redis, before they wait for it; and of
    chunks that each keeps until its episode is committed, to send them again if Redis loses them."""
    fsync: Literal["everysec", "always"] = "everysec"
    """How often the run's own Redis makes sure that its file is on the disk: when the machine itself goes
    down, `everysec` loses the last second, `always` nothing, at a price."""
    max_connections: int = 8
    """Connections per client, and node of a cluster; threads beyond that wait for one."""
    replicas: int = 0
    """A commit returns once so many replicas hold it, for nothing to be lost when one of them takes over."""

    def __post_init__(self) -> None:
        for name in ("shards", "chunk_steps", "byte_budget", "max_connections", "queue_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "cache_bytes",
            "refresh_seconds",
            "patience_seconds",
            "minimum_steps",
            "limiter_seconds",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        for name in ("orphan_seconds", "call_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and positive, not {getattr(self, name)}")
        if self.samples_per_insert is not None and not 0 < self.samples_per_insert < math.inf:
            raise ValueError(f"samples_per_insert must be finite and positive, not {self.samples_per_insert}")
        if unknown := sorted(set(self.evict) - set(SOURCES)):
            raise ValueError(f"evict: unknown sources {unknown}, there are {', '.join(SOURCES)}")
        if self.replicas < 0:
            raise ValueError(f"replicas must not be negative, not {self.replicas}")
        if not 0 <= self.compression <= 19:
            raise ValueError(f"compression must be a zstd level from 0 to 19, not {self.compression}")
