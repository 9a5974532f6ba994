"""Human demonstrations from a replay buffer as Diffusion Policy publishes them: zarr, format 2, in which all
episodes stand end to end.

    data/<name>          (steps, ...); row t of every array belongs to step t
    meta/episode_ends    (episodes,); how many steps there are up to and including each

The format says neither how an episode ended nor what it was rewarded with. What was published to be imitated
counts as `success`, and the last step's reward is 1.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from replay.episode import (
    ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    Array,
    ArraySpec,
    Episode,
    EpisodeMeta,
    TaskSpec,
    episode_id,
)
from replay.errors import DatasetError

Columns = Mapping[str, tuple[str, Callable[[Array], Array]]]
"""By an array's name in the episode: the array of `data` it comes from, and how it follows from that."""

BLOSC_HEADER: Final = struct.Struct("<12xI")
"""In front of every compressed chunk; holds its size in bytes, this header included."""


def episodes(path: Path, spec: TaskSpec, columns: Columns) -> Iterator[Episode]:
    """The episodes of a replay buffer, one at a time, in their order, with their index as seed.

    Args:
        path: the folder.
        spec: the task's.
        columns: for arrays that are not there under their own name, without `observation.`, as they are.

    Raises:
        DatasetError: the folder is no replay buffer, or damaged, or does not fit the task.
    """
    import zarr

    try:
        buffer = zarr.open_group(path, mode="r", zarr_format=2)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is no zarr group of format 2: {error}") from None
    specs = spec.arrays()
    del specs[REWARD]
    columns = {name: (name.removeprefix(OBSERVATION_PREFIX), _as_it_is) for name in specs} | dict(columns)
    ends = _ends(path, _array(path, buffer, "meta/episode_ends"))
    data = {}
    for name in sorted({name for name, _ in columns.values()}):
        data[name] = _array(path, buffer, f"data/{name}")
        if data[name].shape[:1] != (ends[-1],):
            raise DatasetError(
                f"{path}: data/{name} is {list(data[name].shape)}, but meta/episode_ends end at {ends[-1]}"
            )
    for index, (start, end) in enumerate(pairwise([0, *ends])):
        where = f"{path}, episode {index} (steps {start} to {end - 1})"
        found = {name: _read(f"{where}: data/{name}", array, start, end) for name, array in data.items()}
        arrays = {
            name: _rows(f"{where}: data/{column}", rows_of, found[column], name, specs[name])
            for name, (column, rows_of) in columns.items()
        }
        _check_range(f"{where}: data/{columns[ACTION][0]}", arrays[ACTION], spec.action)
        arrays[REWARD] = np.zeros(end - start, np.float32)
        arrays[REWARD][-1] = 1.0
        meta = EpisodeMeta(episode_id("import", spec.name, index), spec.name, seed=index, source="import")
        yield Episode(meta, "success", arrays)


def _as_it_is(rows: Array) -> Array:
    return rows


def _array(path: Path, buffer: Any, name: str) -> Any:
    """An array of which every chunk is there as a whole: to zarr a missing one is zeros, and blosc reads on
    beyond the end of one that was cut short."""
    try:
        array = buffer[name]
        chunks, compressors = array.nchunks, array.compressors
    except (KeyError, AttributeError):
        raise DatasetError(f"{path}: there is no array {name}") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {name}/.zarray is damaged: {error}") from None
    files = [file for file in (path / name).rglob("[0-9]*") if file.is_file()]
    if len(files) < chunks:
        raise DatasetError(f"{path}: {name} has {len(files)} of its {chunks} chunks")
    if any(getattr(compressor, "codec_id", None) == "blosc" for compressor in compressors):
        for file in files:
            with file.open("rb") as chunk:
                head, size = chunk.read(BLOSC_HEADER.size), file.stat().st_size
            if len(head) < BLOSC_HEADER.size or BLOSC_HEADER.unpack(head) != (size,):
                raise DatasetError(f"{path}: {name}: chunk {file.name} is damaged or cut short, {size} bytes")
    return array


def _ends(path: Path, array: Any) -> list[int]:
    ends = _read(f"{path}: meta/episode_ends", array, 0, None)
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends) or np.diff(ends, prepend=0).min() < 1:
        raise DatasetError(f"{path}: meta/episode_ends must be whole numbers that ascend from 1, not {ends}")
    return [int(end) for end in ends]


def _read(where: str, array: Any, start: int, end: int | None) -> Array:
    try:
        rows: Array = array[start:end]
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{where} cannot be read: {error}") from None
    if not np.isfinite(rows).all():
        raise DatasetError(f"{where} holds values that are not finite")
    return rows


def _rows(where: str, rows_of: Callable[[Array], Array], found: Array, name: str, spec: ArraySpec) -> Array:
    shape = (len(found), *spec.shape)
    with suppress(IndexError, ValueError):
        if (rows := rows_of(found)).shape == shape:
            return rows.astype(spec.dtype)
    raise DatasetError(f"{where} is {list(found.shape)}, which gives no {name} of {list(shape)}")


def _check_range(where: str, action: Array, spec: ArraySpec) -> None:
    low, high = action.min(), action.max()
    if low < spec.low or high > spec.high:
        raise DatasetError(f"{where} must lie in [{spec.low:g}, {spec.high:g}], not {low:g} to {high:g}")
