"""Reader of replay buffers as Diffusion Policy publishes them: zarr format 2, all episodes one after the
other.

    data/<name>          (steps, ...): row t of every array belongs to step t
    meta/episode_ends    (episodes,): number of steps up to and including each episode

The format holds no outcomes, no rewards and no rate.
"""

import itertools
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import EVERY, DatasetReader, EpisodeInfo
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, Array
from longview.replay.errors import DatasetError

BLOSC_HEADER: Final = struct.Struct("<12xI")
"""Header of every compressed chunk; it holds the chunk's size in bytes, the header included."""
CHANNELS: Final = (1, 3, 4)
"""Numbers of channels that pictures may have. Some buffers hold pictures as floats with values from 0 to
255."""
SMALLEST: Final = 16
"""Smallest side in pixels of an array of floats that counts as a picture."""


class ZarrReader(DatasetReader):
    """Reader of a replay buffer; see `DatasetReader`."""

    def __init__(self, path: Path) -> None:
        """Open a replay buffer.

        Raises:
            DatasetError: the folder is not a replay buffer.
        """
        import zarr

        self.path = path
        try:
            self._group = zarr.open_group(path, mode="r", zarr_format=2)
            names = sorted(self._group["data"].array_keys())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DatasetError(f"{path} is no zarr group of format 2 with data in it: {error}") from None
        self._chunks: dict[str, tuple[int, Array]] = {}
        self._arrays = {_column(name): self._array(f"data/{name}") for name in names}
        self._pictures = {
            column
            for column, array in self._arrays.items()
            if array.dtype.kind == "f"
            and len(array.shape) == 4
            and array.shape[-1] in CHANNELS
            and min(array.shape[1:3]) >= SMALLEST
        }
        self.columns = {
            column: (array.shape[1:], np.dtype(np.uint8) if column in self._pictures else array.dtype)
            for column, array in self._arrays.items()
        }
        self._ends = [0, *self._episode_ends()]
        self.count = len(self._ends) - 1
        for column, array in self._arrays.items():
            if array.shape[0] != self._ends[-1]:
                raise DatasetError(
                    f"{path}: {_name(column)} is {list(array.shape)}, but meta/episode_ends end at "
                    f"{self._ends[-1]}"
                )

    def location(self, index: int, column: str) -> str:
        start, end = self._ends[index : index + 2]
        return f"episode {index} (steps {start} to {end - 1}): {_name(column)}"

    def length(self, index: int) -> int:
        start, end = self._ends[index : index + 2]
        return end - start

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        start, end, _ = span.indices(self.length(index))
        start, end = start + self._ends[index], end + self._ends[index]
        size = self._arrays[column].chunks[0]
        where = f"{self.path}, {self.location(index, column)}"
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
            array = self._arrays[column]
            size = array.chunks[0]
            check_chunks(where, self.path / _name(column), array, number)
            rows = _read(where, array, number * size, (number + 1) * size)
            self._chunks[column] = number, _pixels(where, rows) if column in self._pictures else rows
        return self._chunks[column][1]

    def _array(self, name: str) -> Any:
        try:
            array = self._group[name]
            if len(array.shape) < 1:
                raise DatasetError(f"{self.path}: {name} is a single value, expected one row a step")
        except (KeyError, AttributeError):
            raise DatasetError(f"{self.path}: there is no array {name}") from None
        except ValueError as error:
            raise DatasetError(f"{self.path}: {name}/.zarray is damaged: {error}") from None
        return array

    def _episode_ends(self) -> list[int]:
        name = "meta/episode_ends"
        array, where = self._array(name), f"{self.path}: {name}"
        for number in range(-(-array.shape[0] // array.chunks[0])):
            check_chunks(where, self.path / name, array, number)
        ends = _read(where, array, 0, None)
        if (
            ends.ndim != 1
            or ends.dtype.kind not in "iu"
            or not len(ends)
            or np.diff(ends, prepend=0).min() < 1
        ):
            raise DatasetError(f"{where} must be whole numbers that ascend from 1, not {ends}")
        return [int(end) for end in ends]


def check_chunks(where: str, folder: Path, array: Any, number: int) -> None:
    """Check that the files of the number-th chunk of steps exist and are complete.

    zarr itself reads a missing file as zeros, and blosc reads beyond the end of a file that was cut short.

    Args:
        where: file and array, for the error.
        folder: folder of the array.
        array: the zarr array.
        number: number of the chunk along the time axis.

    Raises:
        DatasetError: a file is missing or cut short.
    """
    blosc = any(getattr(compressor, "codec_id", None) == "blosc" for compressor in array.compressors)
    beside = [range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for key in itertools.product([number], *beside):
        file = folder / array.metadata.encode_chunk_key(key)
        if not file.is_file():
            raise DatasetError(f"{where}: there is no chunk {file.name}")
        with file.open("rb") as chunk:
            head, size = chunk.read(BLOSC_HEADER.size), file.stat().st_size
        if blosc and (len(head) < BLOSC_HEADER.size or BLOSC_HEADER.unpack(head) != (size,)):
            raise DatasetError(f"{where}: chunk {file.name} is damaged or cut short, {size} bytes")


def _column(name: str) -> str:
    return name if name == ACTION else OBSERVATION_PREFIX + name


def _name(column: str) -> str:
    return f"data/{column.removeprefix(OBSERVATION_PREFIX)}"


def _read(where: str, array: Any, start: int, end: int | None) -> Array:
    try:
        rows: Array = array[start:end]
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{where} cannot be read: {error}") from None
    return rows


def _pixels(where: str, rows: Array) -> Array:
    with np.errstate(invalid="ignore"):
        pixels = rows.astype(np.uint8)
    if not np.array_equal(pixels, rows):
        raise DatasetError(
            f"{where} has the shape of pictures, but holds more than whole numbers of 0 to 255"
        )
    return pixels
