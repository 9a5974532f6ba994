"""Memory that a process may use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

GROUPS: Final = Path("/proc/self/cgroup")
"""File that lists the control groups of this process. A container limits its memory by a control group."""
LIMITS: Final = Path("/sys/fs/cgroup")
"""Folder of all control groups and their limits."""


def usable_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or what its control groups allow
    if that is less."""
    usable = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _limit_files():
        with suppress(OSError, ValueError):  # a group may have no such file, or say "max"
            usable = min(usable, int(file.read_text()))
    return usable


def _limit_files() -> Iterator[Path]:
    """Yield the files that may hold a limit, in versions 1 and 2 of control groups. A group obeys the limits
    of the groups above it, too."""
    with suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                group = Path(path.lstrip("/"))
                for folder in (group, *group.parents):
                    yield LIMITS / controllers / folder / name
