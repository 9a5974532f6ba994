"""Reuse of memory that is filled again and again. Fresh memory is slow: the system clears each page on its
first use."""

import weakref
from collections import deque
from contextlib import suppress
from typing import Final

import numpy as np

from longview.replay.episode import Array

TRIED: Final = 16
"""Most unused blocks that are tried for a size. There may be thousands of small ones."""


class BlockPool:
    """Pool of byte blocks. Any number of threads may use it."""

    def __init__(self, max_bytes: int) -> None:
        """Make an empty pool.

        Args:
            max_bytes: limit on the bytes of unused blocks that the pool keeps, for blocks of one size.
        """
        self._max_bytes = max_bytes
        # A finalizer may run at any allocation, so a lock could deadlock. The methods of a deque need none.
        self._spare: deque[memoryview] = deque()
        """Unused blocks, the one that has been unused for the longest time first."""

    def take(self, size: int) -> Array:
        """Return a block (size,) uint8 of arbitrary content.

        The block goes back to the pool once nothing refers to it or to a view of it.
        """
        block = self._fitting(size)
        if block is None:  # a bytearray would be cleared, while the interpreter's lock is held
            block = np.empty(size, np.uint8).data
        data = np.frombuffer(block, np.uint8, size)
        weakref.finalize(data, self._give_back, block).atexit = False
        return data

    def _fitting(self, size: int) -> memoryview | None:
        """Return an unused block of this size or up to a quarter larger. If none of those tried fits, drop
        the next one: its size may be out of use."""
        with suppress(IndexError):  # other threads may take blocks meanwhile
            for _ in range(min(TRIED, len(self._spare))):
                block = self._spare.popleft()
                if size <= len(block) <= size + size // 4:
                    return block
                self._spare.append(block)
            self._spare.popleft()
        return None

    def _give_back(self, block: memoryview) -> None:
        if (len(self._spare) + 1) * len(block) <= self._max_bytes:
            self._spare.append(block)
