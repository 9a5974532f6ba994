"""Reuse of memory that is filled again and again. Fresh memory is slow: the system clears each page on its
first use."""

import weakref
from collections import deque
from contextlib import suppress

import numpy as np

from longview.replay.episode import Array


class BlockPool:
    """Pool of byte blocks. Any number of threads may use it."""

    def __init__(self, max_bytes: int) -> None:
        """Make an empty pool.

        Args:
            max_bytes: limit on the bytes of unused blocks that the pool keeps, for blocks of one size.
        """
        self._max_bytes = max_bytes
        # A finalizer may run at any allocation, so a lock could deadlock. The methods of a deque need none.
        self._spare: deque[bytearray] = deque()
        """Unused blocks, the one that has been unused for the longest time first."""

    def take(self, size: int) -> Array:
        """Return a block (size,) uint8 of arbitrary content.

        The block goes back to the pool once nothing refers to it or to a view of it.
        """
        block = self._fitting(size) or bytearray(size)
        data = np.frombuffer(block, np.uint8, size)
        weakref.finalize(data, self._give_back, block).atexit = False
        return data

    def _fitting(self, size: int) -> bytearray | None:
        """Return an unused block of this size or up to twice as large. If there is none, drop the oldest: its
        size may be out of use."""
        with suppress(IndexError):  # other threads may take blocks meanwhile
            for _ in range(len(self._spare)):
                block = self._spare.popleft()
                if size <= len(block) <= 2 * size:
                    return block
                self._spare.append(block)
            self._spare.popleft()
        return None

    def _give_back(self, block: bytearray) -> None:
        if (len(self._spare) + 1) * len(block) <= self._max_bytes:
            self._spare.append(block)
