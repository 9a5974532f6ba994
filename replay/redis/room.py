"""Room for more episodes: what the byte budget leaves, and the machine where Redis runs."""

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from longview.replay.errors import StoreError
from longview.replay.redis.client import Client
from longview.replay.stats import StoreStats

LOCAL: Final = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine."""
MEMORY: Final = Path("/proc/meminfo")
"""File that tells how much memory is free."""


def rooms(client: Client, stats: StoreStats, evicted: Collection[str]) -> dict[str, int]:
    """Return the bytes that more episodes may take, by what limits them.

    The byte budget always limits them. Memory and disk are known only if Redis runs on this machine; the disk
    also needs a Redis that writes a file and tells where.

    Args:
        client: connection to the store.
        stats: counts of the store's episodes.
        evicted: sources whose episodes make room.
    """
    kept = sum(count.bytes for source, count in stats.stored.items() if source not in evicted)
    found = {"replay.byte_budget": stats.byte_budget - kept}
    parts = urlsplit(client.shown)
    if parts.scheme != "unix" and parts.hostname not in LOCAL:
        return found
    with suppress(OSError):
        lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        found["the free memory of this machine"] = int(lines["MemAvailable"].split()[0]) << 10
    # A user who may not ask for the folder is common, and no reason to fail.
    with suppress(StoreError, OSError):
        config = client.call("asking for its folder", lambda: client.redis.config_get("dir", "appendonly"))
        if config["appendonly"] == "yes":
            found[f"the free disk space at {config['dir']}"] = shutil.disk_usage(config["dir"]).free
    return found
