"""Cache of decoded chunks in a reader's own memory."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from longview.replay.codec import Record
from longview.replay.episode import Array
from longview.replay.errors import CodecError


class PartialEpisode:
    """Episode with some of its chunks loaded. Episodes are immutable, so chunks never become stale."""

    def __init__(self, record: Record) -> None:
        self.record = record
        """Record of the episode."""
        self.bytes = 0
        """Size of the loaded chunks, decoded."""
        self._loaded: set[int] = set()
        """Numbers of the loaded chunks."""
        self._arrays: dict[str, Array] = {}
        """Arrays of the whole episode, (T, ...). Only rows that were written take memory."""

    def missing(self, rows: range) -> list[int]:
        """Return the numbers of the chunks that hold these rows and are not loaded."""
        steps = self.record.chunk_steps
        return [k for k in range(rows.start // steps, -(-rows.stop // steps)) if k not in self._loaded]

    def fill(self, number: int, chunk: Mapping[str, Array]) -> None:
        """Load a chunk.

        Args:
            number: the chunk's position in the episode, from 0.
            chunk: its arrays, (K, ...) by name; the last chunk may hold fewer steps.

        Raises:
            CodecError: names, shapes or dtypes differ from what the episode holds at this position.
        """
        start = number * self.record.chunk_steps
        rows = min(self.record.chunk_steps, self.record.length - start)
        like = self._arrays or chunk
        expected = {name: ((rows, *a.shape[1:]), a.dtype) for name, a in like.items()}
        found = {name: (array.shape, array.dtype) for name, array in chunk.items()}
        if found != expected:
            raise CodecError(f"chunk {number} holds {found}, expected {expected}")
        if not self._arrays:
            length = self.record.length
            self._arrays = {n: np.empty((length, *a.shape[1:]), a.dtype) for n, a in chunk.items()}
        for name, array in chunk.items():
            self._arrays[name][start : start + rows] = array
        self._loaded.add(number)
        self.bytes += sum(array.nbytes for array in chunk.values())

    def arrays(self, rows: range) -> dict[str, Array]:
        """Return these rows of every array, (rows, ...), read-only. Their chunks must be loaded."""
        found = {name: array[rows.start : rows.stop] for name, array in self._arrays.items()}
        for array in found.values():
            array.flags.writeable = False
        return found


class EpisodeCache:
    """Cache of the most recently used episodes, at most `max_bytes` of decoded chunks."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._episodes: OrderedDict[str, tuple[PartialEpisode, int]] = OrderedDict()
        """Episodes by id, the least recently used first, each with its size when it was last put."""

    def get(self, id: str) -> PartialEpisode | None:
        """Return the cached episode, or None."""
        found = self._episodes.get(id)
        return found and found[0]

    def put(self, episode: PartialEpisode) -> None:
        """Keep an episode as the most recently used one, and drop the least recently used ones beyond the
        limit.

        Call it again when chunks were added to the episode, so that its size is counted anew.
        """
        id = episode.record.meta.id
        self.remove(id)
        self._episodes[id] = episode, episode.bytes
        self._bytes += episode.bytes
        while self._bytes > self._max_bytes:
            self.remove(next(iter(self._episodes)))

    def remove(self, id: str) -> None:
        """Drop an episode, if it is cached."""
        _, size = self._episodes.pop(id, (None, 0))
        self._bytes -= size
