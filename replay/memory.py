"""Memory of a process: how much it may use, and blocks that it uses again."""

import os
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

GROUPS: Final = Path("/proc/self/cgroup")
"""File that lists the control groups of this process. A container limits its memory by a control group."""
LIMITS: Final = Path("/sys/fs/cgroup")
"""Folder of all control groups and their limits."""
KEPT_BLOCKS: Final = 64
"""Most unused blocks that are kept."""
KEPT_SIZES: Final = range(128 << 10, 8 << 20)
"""Sizes of blocks that are kept, in bytes. Smaller ones the process takes from memory that it has."""


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


class Blocks:
    """Blocks of memory that are used again once nothing refers to them.

    The system clears fresh memory page by page when it is first written, which takes about half as long as to
    decompress pictures into it. Several threads may take blocks.
    """

    def __init__(self) -> None:
        # A deque's methods are atomic. A lock could be held by the very thread whose garbage collection gives
        # a block back.
        self._unused: deque[NDArray[np.uint8]] = deque(maxlen=KEPT_BLOCKS)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return memory of this many bytes, which hold anything.

        It is given back when the last view of it has gone.
        """
        if size not in KEPT_SIZES:
            return np.empty(size, np.uint8)
        block = self._unused_block(size)
        if block is None:
            block = np.empty(size, np.uint8)
        taken = np.frombuffer(block.data, np.uint8, size)  # views of it refer to it, and not to the block
        weakref.finalize(taken, self._unused.append, block).atexit = False
        return taken

    def _unused_block(self, size: int) -> NDArray[np.uint8] | None:
        for _ in range(len(self._unused)):
            try:
                block = self._unused.popleft()
            except IndexError:  # other threads were faster
                return None
            if size <= block.nbytes <= 2 * size:
                return block
            self._unused.append(block)
        return None
