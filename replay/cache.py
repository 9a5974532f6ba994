"""Decoded episodes in a reader's own memory, or the parts of them that were read so far."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from longview.replay.codec import Record
from longview.replay.episode import Array
from longview.replay.errors import CodecError


class PartialEpisode:
    """An episode, of which any chunks are here. It is immutable, so what is here never goes stale."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.bytes = 0
        """Of the chunks that are here, decoded."""
        self._present: set[int] = set()
        self._arrays: dict[str, Array] = {}
        """(T, ...); the system gives memory only to rows that were written."""

    def missing(self, rows: range) -> list[int]:
        """Numbers of the chunks that these rows are in and that are not here."""
        steps = self.record.chunk_steps
        return [k for k in range(rows.start // steps, -(-rows.stop // steps)) if k not in self._present]

    def fill(self, number: int, chunk: Mapping[str, Array]) -> None:
        """Take in a chunk.

        Raises:
            CodecError: it is not what belongs there.
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
        self._present.add(number)
        self.bytes += sum(array.nbytes for array in chunk.values())

    def arrays(self, rows: range) -> dict[str, Array]:
        """These rows of every array, read-only; their chunks must be here."""
        found = {name: array[rows.start : rows.stop] for name, array in self._arrays.items()}
        for array in found.values():
            array.flags.writeable = False
        return found


class EpisodeCache:
    """The most recently used episodes, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._episodes: OrderedDict[str, tuple[PartialEpisode, int]] = OrderedDict()
        """By id, each with its bytes when it was put here."""

    def get(self, id: str) -> PartialEpisode | None:
        """The episode, if it is here."""
        found = self._episodes.get(id)
        return found and found[0]

    def put(self, episode: PartialEpisode) -> None:
        """Keep an episode, which was just used; those that were not for longest give way."""
        id = episode.record.meta.id
        self.remove(id)
        self._episodes[id] = episode, episode.bytes
        self._bytes += episode.bytes
        while self._bytes > self._max_bytes:
            self.remove(next(iter(self._episodes)))

    def remove(self, id: str) -> None:
        """Forget an episode, if it is here."""
        _, size = self._episodes.pop(id, (None, 0))
        self._bytes -= size
