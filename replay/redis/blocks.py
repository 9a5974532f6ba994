"""Reuse of the memory that writers fill. Fresh memory is slow: the system clears each page on its first
use."""

import weakref

import numpy as np

from longview.replay.episode import Array


class BlockPool:
    """Pool of byte blocks of one size at a time. Any number of threads may use it."""

    def __init__(self, max_bytes: int) -> None:
        """Make an empty pool.

        Args:
            max_bytes: limit on the bytes of unused blocks that the pool keeps.
        """
        self._max_bytes = max_bytes
        self._spare: tuple[int, list[bytearray]] = 0, []
        """Size and unused blocks of that size. They are one tuple, since another thread may want another size
        at any time."""

    def take(self, size: int) -> Array:
        """Return a block (size,) uint8 of arbitrary content.

        The block goes back to the pool once nothing refers to it or to a view of it.
        """
        kept, spare = self._spare
        if kept != size:
            spare = []
            self._spare = size, spare
        try:
            block = spare.pop()
        except IndexError:
            block = bytearray(size)
        # A finalizer may run at any allocation, so a lock could deadlock. The methods of a list need none.
        data = np.frombuffer(block, np.uint8)
        weakref.finalize(data, self._give_back, block, spare).atexit = False
        return data

    def _give_back(self, block: bytearray, spare: list[bytearray]) -> None:
        if (len(spare) + 1) * len(block) <= self._max_bytes:
            spare.append(block)
