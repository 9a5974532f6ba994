"""Reader of replay buffers as Diffusion Policy publishes them: zarr format 2, all episodes one after the
other, in a folder or in a zip file.

    data/<name>          (steps, ...): row t of every array belongs to step t
    meta/episode_ends    (episodes,): number of steps up to and including each episode

An array in a group below data, `data/a/b`, becomes the observation `a/b`; a group `obs` is left out of the
name. The format holds no outcomes, no rewards and no rate.
"""

import itertools
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import EVERY, Column, DatasetReader, EpisodeInfo
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, Array
from longview.replay.errors import DatasetError

BLOSC_HEADER: Final = struct.Struct("<12xI")
"""Header of every compressed chunk; it holds the chunk's size in bytes, the header included."""
ENDS: Final = "meta/episode_ends"
"""Array with the ends of the episodes."""


class ZarrReader(DatasetReader):
    """Reader of a replay buffer; see `DatasetReader`."""

    def __init__(self, path: Path) -> None:
        """Open a replay buffer.

        Raises:
            DatasetError: the file or folder is not a replay buffer, or its episodes' ends are damaged.
        """
        self.path = path
        self._root: Any = zipfile.Path(path) if path.is_file() else path
        if not (self._root / ".zgroup").is_file():
            raise DatasetError(f"{path} is zarr of format 3: write it again with zarr_format=2")
        names = list(_array_names(self._root))
        data = [name for name in names if name.startswith("data/")]
        if not data:
            raise DatasetError(f"{path} is no zarr group of format 2 with arrays in data")
        self._chunks: dict[str, tuple[int, Array]] = {}
        self._filled: dict[str, set[int]] = {}
        """Numbers of the chunks that are not there and were read as their fill value, by name."""
        self._arrays: dict[str, Any] = {}
        self.columns = {}
        # A short name that two arrays would share is given to neither.
        short = [name.removeprefix("data/").removeprefix("obs/") for name in data]
        for name, brief in zip(data, short, strict=True):
            key = brief if short.count(brief) == 1 else name.removeprefix("data/")
            column = key if key == ACTION else OBSERVATION_PREFIX + key
            self.columns[column] = self._column(name, column)
        self.left_out = {
            name: "not in data" for name in names if not name.startswith("data/") and name != ENDS
        }
        self._ends = [0, *self._episode_ends()]
        self.count = len(self._ends) - 1
        self.problems = self._unfinished()

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        return [
            f"{name}: {len(numbers)} chunks are not there, and were read as the fill value "
            f"{self._arrays[column].fill_value}, as zarr leaves out such chunks"
            for column, numbers in self._filled.items()
            for name in [self.columns[column].place]
        ]

    def location(self, index: int, column: str) -> str:
        start, end = self._ends[index : index + 2]
        name = self.columns[column].place if column in self.columns else column
        return f"episode {index} (steps {start} to {end - 1}): {name}"

    def length(self, index: int) -> int:
        return self._ends[index + 1] - self._ends[index]

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        where = f"{self.path}, {self.location(index, column)}"
        if column not in self._arrays:
            raise DatasetError(f"{where} {self.columns[column].problem}")
        array, steps = self._arrays[column], range(*self._ends[index : index + 2])
        if array.shape[0] < steps.stop:
            raise DatasetError(f"{where} is {list(array.shape)}, it ends before the episode")
        start, end = steps[span].start, steps[span].stop
        if start == end:
            return np.zeros((0, *array.shape[1:]), array.dtype)
        size = array.chunks[0]
        parts = [
            self._chunk(where, column, number)[max(start - number * size, 0) : end - number * size]
            for number in range(start // size, -(-end // size))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def info(self, index: int) -> EpisodeInfo:
        return EpisodeInfo(seed=index)

    def _chunk(self, where: str, column: str, number: int) -> Array:
        """Read the rows of one chunk, and keep them: most chunks hold parts of two episodes."""
        if self._chunks.get(column, (None,))[0] != number:
            array, folder = self._arrays[column], self._root / self.columns[column].place
            if missing := missing_chunks(where, folder, array, number):
                if not _is_left_out(where, folder, array, number):
                    raise DatasetError(f"{where}: there is no chunk {missing[0]}")
                self._filled.setdefault(column, set()).add(number)
            rows = _read(where, array, number * array.chunks[0], (number + 1) * array.chunks[0])
            self._chunks[column] = number, rows
        return self._chunks[column][1]

    def _column(self, name: str, column: str) -> Column:
        """Open an array, and describe it. What is wrong with one array leaves the others as they are."""
        try:
            array = self._open(name)
        except DatasetError as error:
            return Column(name, (), np.dtype(object), problem=str(error))
        if not array.shape:
            return Column(name, (), array.dtype, rule="a single value, not one row a step")
        self._arrays[column] = array
        rule = "text" if array.dtype.kind in "OSU" else ""
        return Column(name, tuple(array.shape[1:]), array.dtype, rule)

    def _open(self, name: str) -> Any:
        """Open an array.

        Raises:
            DatasetError: its description is damaged, or its codecs are not installed.
        """
        import zarr
        from zarr.storage import ZipStore

        store = ZipStore(self.path, mode="r") if self.path.is_file() else self.path
        try:
            if unknown := _unknown_codecs((self._root / name / ".zarray").read_text()):
                raise DatasetError(
                    f"is compressed by {', '.join(unknown)}, which is not known here: where it is, copy the "
                    "array with another compressor, such as Blosc"
                )
            return zarr.open_array(store, path=name, mode="r", zarr_format=2)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"has a damaged .zarray: {error}") from None

    def _episode_ends(self) -> list[int]:
        where = f"{self.path}: {ENDS}"
        if not (self._root / ENDS / ".zarray").is_file():
            raise DatasetError(f"{self.path}: there is no array {ENDS}")
        try:
            array = self._open(ENDS)
        except DatasetError as error:
            raise DatasetError(f"{where} {error}") from None
        for number in range(-(-array.shape[0] // array.chunks[0])) if array.shape else ():
            if missing := missing_chunks(where, self._root / ENDS, array, number):
                raise DatasetError(f"{where}: there is no chunk {missing[0]}")
        ends = _read(where, array, 0, None) if array.shape else np.zeros(0)
        if (
            ends.ndim != 1
            or ends.dtype.kind not in "iu"
            or not len(ends)
            or np.diff(ends.astype(np.int64), prepend=0).min() < 0
        ):
            raise DatasetError(f"{where} must be whole numbers that ascend from 0, not {ends}")
        return [int(end) for end in ends]

    def _unfinished(self) -> list[str]:
        """Find steps behind the last episode: a recording that was cut off leaves some."""
        rows = self._arrays[ACTION].shape[0] if ACTION in self._arrays else 0
        if rows <= self._ends[-1]:
            return []
        return [f"steps {self._ends[-1]} to {rows - 1} belong to no episode: {ENDS} end at {self._ends[-1]}"]


def recognises(path: Path) -> bool:
    """Tell whether a path is a zarr group, in a folder or a zip file."""
    if path.is_file():
        return zipfile.is_zipfile(path) and zipfile.Path(path, ".zgroup").is_file()
    return (path / ".zgroup").is_file() or (path / "zarr.json").is_file()


def missing_chunks(where: str, folder: Any, array: Any, number: int) -> list[str]:
    """Return the names of the files that are missing of the number-th chunk of steps.

    zarr itself reads a missing file as the array's fill value, and blosc reads beyond the end of a file that
    was cut short.

    Args:
        where: file and array, for the error.
        folder: folder of the array, a path or a `zipfile.Path`.
        array: the zarr array.
        number: number of the chunk along the time axis.

    Raises:
        DatasetError: a file is cut short.
    """
    blosc = any(getattr(compressor, "codec_id", None) == "blosc" for compressor in array.compressors)
    beside = [range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    missing = []
    for key in itertools.product([number], *beside):
        name = array.metadata.encode_chunk_key(key)
        file = folder / name
        if not file.is_file():
            missing.append(name)
        elif blosc:
            with file.open("rb") as chunk:
                head, size = chunk.read(BLOSC_HEADER.size), chunk.seek(0, 2)
            if len(head) < BLOSC_HEADER.size or BLOSC_HEADER.unpack(head) != (size,):
                raise DatasetError(f"{where}: chunk {name} is damaged or cut short, {size} bytes")
    return missing


def _unknown_codecs(zarray: str) -> list[str]:
    """Return the codecs of an array that are not installed, given its .zarray.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the text is damaged.
    """
    from zarr.registry import get_numcodec

    about, unknown = json.loads(zarray), []
    for codec in (about["compressor"], *(about.get("filters") or ())):
        try:
            if codec is not None:
                get_numcodec(codec)
        except ValueError:  # numcodecs' UnknownCodecError
            unknown.append(str(codec["id"]))
    return unknown


def _is_left_out(where: str, folder: Any, array: Any, number: int) -> bool:
    """Tell whether zarr left out a chunk because it is all fill value; else its file was lost.

    It counts as left out if no chunk of the array is there, or if the nearest one on either side has a row
    that is all fill value as well: a signal that rests there for a whole chunk mostly rests a little longer.

    Raises:
        DatasetError: a file of the nearest chunks is cut short.
    """
    if array.metadata.fill_value is None:
        return False
    size, count = array.chunks[0], -(-array.shape[0] // array.chunks[0])
    nearest = []
    for numbers in (range(number - 1, -1, -1), range(number + 1, count)):
        there = (n for n in numbers if not missing_chunks(where, folder, array, n))
        nearest += [n for n in [next(there, None)] if n is not None]
    rows = [_read(where, array, n * size, (n + 1) * size) for n in nearest]
    return not nearest or any(
        (chunk == array.fill_value).reshape(len(chunk), -1).all(axis=1).any() for chunk in rows
    )


def _array_names(folder: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of the arrays below a folder, sorted. Folders of arrays, full of chunks, are not
    listed."""
    for entry in sorted(folder.iterdir(), key=lambda entry: str(entry.name)):
        if entry.is_dir():
            name = prefix + entry.name
            if (entry / ".zarray").is_file():
                yield name
            else:
                yield from _array_names(entry, f"{name}/")


def _read(where: str, array: Any, start: int, end: int | None) -> Array:
    try:
        rows: Array = array[start:end]
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{where} cannot be read: {error}") from None
    return rows
