"""Cache of decoded chunks in a reader's own memory."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longview.replay.codec import Record
from longview.replay.episode import Array, learnable, runs_of
from longview.replay.errors import CodecError
from longview.replay.pictures import Pictures, decode_pictures


class PartialEpisode:
    """Episode with some of its chunks loaded. Episodes are immutable, so chunks never become stale."""

    def __init__(self, record: Record) -> None:
        self.record = record
        """Record of the episode."""
        self.bytes = 0
        """Size of the loaded chunks in memory."""
        self._loaded: set[int] = set()
        """Numbers of the loaded chunks."""
        self._arrays: dict[str, Array] = {}
        """Arrays of the whole episode, (T, ...). Only rows that were written take memory."""
        self._pictures: dict[str, dict[int, Array]] = {}
        """Pictures that are stored as JPEG, by name and step. They are kept as they are stored, because large
        pictures would soon fill the cache if they were decoded."""
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
        run = np.searchsorted(self._before, number, side="right") - 1
        return int(self._first[run] + number - self._before[run])

    def is_learnable(self, step: int) -> bool:
        """Tell whether there is something to learn from a step."""
        run = np.searchsorted(self._first, step, side="right") - 1
        return bool(run >= 0 and step < self._stop[run])

    def _set_runs(self, runs: Sequence[int]) -> None:
        self._first, self._stop = np.array(runs, np.int64).reshape(-1, 2).T
        lengths = self._stop - self._first
        self._before = np.cumsum(lengths) - lengths
        """Learnable steps before each run."""

    def missing(self, rows: range) -> list[int]:
        """Return the numbers of the chunks that hold these rows and are not loaded."""
        steps = self.record.chunk_steps
        return [k for k in range(rows.start // steps, -(-rows.stop // steps)) if k not in self._loaded]

    def fill(self, number: int, chunk: Mapping[str, Array | Pictures]) -> None:
        """Load a chunk.

        Args:
            number: the chunk's position in the episode, from 0.
            chunk: its arrays, (K, ...) by name; the last chunk may hold fewer steps.

        Raises:
            CodecError: names, shapes or dtypes differ from what the episode holds at this position.
        """
        start = number * self.record.chunk_steps
        rows = min(self.record.chunk_steps, self.record.length - start)
        found = {name: (array.shape[1:], array.dtype, type(array)) for name, array in chunk.items()}
        steps = {array.shape[0] for array in chunk.values()}
        expected = self._kinds or found
        if found != expected or steps != {rows}:
            raise CodecError(
                f"chunk {number} holds {found} in {steps} steps, expected {expected} in {rows} steps"
            )
        self._kinds = found
        for name, array in chunk.items():
            if isinstance(array, Pictures):
                self._pictures.setdefault(name, {}).update(enumerate(array.frames, start))
                continue
            if name not in self._arrays:
                self._arrays[name] = np.empty((self.record.length, *array.shape[1:]), array.dtype)
            self._arrays[name][start : start + rows] = array
        self._loaded.add(number)
        self.bytes += sum(array.nbytes for array in chunk.values())

    def arrays(self, rows: range) -> dict[str, Array]:
        """Return these rows of every array, (rows, ...), read-only. Their chunks must be loaded.

        Raises:
            CodecError: a picture is damaged.
        """
        found = {name: array[rows.start : rows.stop] for name, array in self._arrays.items()}
        for name, frames in self._pictures.items():
            shape, *_ = self._kinds[name]
            found[name] = decode_pictures([frames[step] for step in rows], shape)
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
