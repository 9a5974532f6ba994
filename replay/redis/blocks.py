"""Memory that writers fill, used again: pages that are new to a process take longer to get than to fill."""

import weakref

import numpy as np

from longview.replay.episode import Array


class BlockPool:
    """Blocks of bytes, of one size at a time, for any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        """
        Args:
            max_bytes: what is kept of blocks that nobody uses.
        """
        self._max_bytes = max_bytes
        self._spare: tuple[int, list[bytearray]] = 0, []
        """The size, and blocks of it; together, as another thread may want another size at any time."""

    def take(self, size: int) -> Array:
        """A block (size,) uint8 of whatever was there; once nothing refers to it or a view of it, it is taken
        again."""
        kept, spare = self._spare
        if kept != size:
            spare = []
            self._spare = size, spare
        try:
            block = spare.pop()
        except IndexError:
            block = bytearray(size)
        # A finalizer may run at any allocation, so there is no lock: a list's own methods need none.
        data = np.frombuffer(block, np.uint8)
        weakref.finalize(data, self._give_back, block, spare).atexit = False
        return data

    def _give_back(self, block: bytearray, spare: list[bytearray]) -> None:
        if (len(spare) + 1) * len(block) <= self._max_bytes:
            spare.append(block)
