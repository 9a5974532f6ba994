"""Cache of decoded chunks in a reader's own memory."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longview.replay.codec import Record
from longview.replay.episode import Array, Rows, learnable, runs_of
from longview.replay.errors import CodecError
from longview.replay.pictures import Pictures, decode_pictures


class PartialEpisode:
    """Episode with some of its chunks loaded. Episodes are immutable, so chunks never become stale.

    Several threads may read an episode; only one at a time may change it.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        """Record of the episode."""
        self.bytes = 0
        """Size of the loaded chunks in memory."""
        self._chunks: dict[int, Mapping[str, Array | Pictures]] = {}
        """Loaded chunks by number: arrays (K, ...) by name. Pictures that are stored as JPEG are kept as they
        are stored, because large pictures would soon fill the cache if they were decoded."""
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any], type]] = {}
        """Shape of one step, dtype and class of each array; empty before the first chunk."""
        self.unclear = not record.runs and 0 < record.learnable < record.length
        """Whether the record leaves open which steps are learnable, as in early versions."""
        self._set_runs(record.runs or (0, record.learnable))

    def look_up_runs(self) -> None:
        """Find the learnable steps in the arrays. All chunks must be loaded.

        Raises:
            CodecError: a picture is damaged, or the record counts other learnable steps.
        """
        found = learnable(self.arrays(range(self.record.length)))
        if found.sum() != self.record.learnable:
            raise CodecError(f"{found.sum()} steps are learnable, the record says {self.record.learnable}")
        self._set_runs(runs_of(found))
        self.unclear = False

    def learnable_step(self, number: int) -> int:
        """Return the learnable step of this number, counted from 0."""
        first, _, before = self._runs
        run = np.searchsorted(before, number, side="right") - 1
        return int(first[run] + number - before[run])

    def is_learnable(self, step: int) -> bool:
        """Tell whether there is something to learn from a step."""
        first, stop, _ = self._runs
        run = np.searchsorted(first, step, side="right") - 1
        return bool(run >= 0 and step < stop[run])

    def _set_runs(self, runs: Sequence[int]) -> None:
        first, stop = np.array(runs, np.int64).reshape(-1, 2).T
        self._runs = first, stop, np.cumsum(stop - first) - (stop - first)
        """First step of each run of learnable steps, the step after its last, and the learnable steps before
        it. They are one tuple, since other threads may read them meanwhile."""

    def missing(self, rows: range) -> list[int]:
        """Return the numbers of the chunks that hold these rows and are not loaded."""
        steps = self.record.chunk_steps
        return [k for k in range(rows.start // steps, -(-rows.stop // steps)) if k not in self._chunks]

    def fill(self, number: int, chunk: Mapping[str, Array | Pictures]) -> None:
        """Load a chunk.

        Args:
            number: the chunk's position in the episode, from 0.
            chunk: its arrays, (K, ...) by name; the last chunk may hold fewer steps.

        Raises:
            CodecError: names, shapes or dtypes differ from what the episode holds at this position.
        """
        rows = min(self.record.chunk_steps, self.record.length - number * self.record.chunk_steps)
        found = {name: (array.shape[1:], array.dtype, type(array)) for name, array in chunk.items()}
        steps = {array.shape[0] for array in chunk.values()}
        expected = self._kinds or found
        if found != expected or steps != {rows}:
            raise CodecError(
                f"chunk {number} holds {found} in {steps} steps, expected {expected} in {rows} steps"
            )
        self._kinds = found
        if number not in self._chunks:
            self._chunks[number] = chunk
            self.bytes += sum(array.nbytes for array in chunk.values())

    def arrays(self, rows: range) -> Rows:
        """Return these rows of every array, (rows, ...), read-only. Their chunks must be loaded.

        Raises:
            CodecError: a picture is damaged.
        """
        steps = self.record.chunk_steps
        parts = [
            (self._chunks[number], slice(max(0, rows.start - number * steps), rows.stop - number * steps))
            for number in range(rows.start // steps, -(-rows.stop // steps))
        ]
        return Rows({name: [_cut(chunk[name], part) for chunk, part in parts] for name in self._kinds})


def _cut(array: Array | Pictures, part: slice) -> Array:
    """Return a part of a chunk's array, decoded, read-only."""
    if isinstance(array, Pictures):
        found = decode_pictures(array.frames[part], array.shape[1:])
    else:
        found = array[part]
    found.flags.writeable = False
    return found


class EpisodeCache:
    """Cache of the most recently used episodes, at most `max_bytes` of decoded chunks. Only one thread at a
    time may use it."""

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
