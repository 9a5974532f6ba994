"""Conversion of chunks, episode records and task specs to bytes and back.

A chunk is a header and a body, which may be compressed:

    magic "LVC" | version u8 | compression u8 | 3 zeros | body's size u32 | checksum u32 | body

The checksum is the low half of XXH3-64 and covers everything but itself. The body lists the arrays' names,
dtypes and shapes, followed by the bytes of each array, little endian, in C order, at a multiple of 8 from the
body's start:

    size of the list u32 | msgpack [[name, dtype, shape], ...] | bytes | bytes | ...

A decoded array is therefore a view of the body. Pictures (K, H, W, 3) uint8 may be stored as JPEG. Then their
entry in the list is [name, "jpeg", shape, number of bytes], and their bytes are:

    size of each picture u32 x K | picture | picture | ...

Any bytes decode to a chunk or raise a CodecError. The limits
below bound the time and memory: no memory is allocated for sizes that the bytes only claim.
"""

import math
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from reprlib import repr as shown
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import numpy as np
import zstandard
from numpy.typing import NDArray
from xxhash import xxh3_64

from longview.replay.episode import DTYPES, OUTCOMES, Array, EpisodeMeta, TaskSpec, runs_of
from longview.replay.errors import CodecError, EpisodeError, UnknownFormat
from longview.replay.pictures import SMALLEST, Pictures, decode_pictures, encode_pictures

MAX_CHUNK_BYTES: Final = 256 << 20
"""Largest size of a chunk's body, before compression."""
MAX_CHUNKS: Final = 1 << 16
"""Largest number of chunks of an episode."""
MAX_ARRAYS: Final = 64
"""Largest number of arrays in a chunk."""
MAX_DIMENSIONS: Final = 8
"""Largest number of dimensions of an array, the time axis included."""
MAX_NAME: Final = 128
"""Longest name of an array, in bytes of UTF-8."""
MAX_HEAD_BYTES: Final = 1 << 16
"""Largest size of the list of a chunk's arrays."""
MAX_PLAIN_BYTES: Final = 1 << 20
"""Largest size of a record or task spec."""

_HEADER: Final = struct.Struct("<3sBB3xII")
_HEAD_SIZE: Final = struct.Struct("<I")
_MAGIC: Final = b"LVC"
_VERSION: Final = 2
_ALIGNMENT: Final = 8
_JPEG: Final = "jpeg"
_FRAME_SIZE: Final = np.dtype("<u4")
_RAW, _ZSTD = 0, 1
_TYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
Row = tuple[str, str, tuple[int, ...]] | tuple[str, str, tuple[int, ...], int]
"""Entry of a chunk's list: name, dtype and shape (K, ...), and for a JPEG the number of bytes."""
_DAMAGED: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, msgpack.UnpackException)


@dataclass(frozen=True)
class Record:
    """Facts about an episode that the store keeps apart from its chunks."""

    meta: EpisodeMeta
    """Description of the episode: id, task, seed, source."""
    outcome: str
    """Outcome of the episode, one of `OUTCOMES`."""
    length: int
    """Number of steps T."""
    learnable: int
    """Number of steps that there is something to learn from, as `episode.learnable` tells."""
    chunks: int
    """Number of chunks."""
    bytes: int
    """Bytes of all chunks, as stored."""
    token: str
    """Random name of the writer of the chunks. It is part of the chunks' keys, so that two writers of one id
    never touch each other's chunks."""
    chunk_steps: int
    """Steps per chunk K: chunk k holds the steps from k * K to (k + 1) * K - 1, or to the episode's end."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Further facts from the data set that the episode was imported from."""
    runs: tuple[int, ...] = ()
    """Runs of the learnable steps, as `episode.runs_of` returns them. Empty if all steps or none are
    learnable, and in episodes of early versions."""


def longer(record: Record, learnable: NDArray[np.bool_], chunk_bytes: int) -> Record:
    """Return the record of an episode once a chunk is added.

    Args:
        record: the record before.
        learnable: tells which of the chunk's steps (K,) there is something to learn from.
        chunk_bytes: size of the chunk, as stored.
    """
    runs, more = record.runs, tuple(record.length + step for step in runs_of(learnable))
    if runs and more and runs[-1] == more[0]:  # one run goes on in the next chunk
        runs, more = runs[:-1], more[1:]
    return replace(
        record,
        length=record.length + len(learnable),
        learnable=record.learnable + int(learnable.sum()),
        chunks=record.chunks + 1,
        bytes=record.bytes + chunk_bytes,
        runs=runs + more,
    )


def new_chunk(
    rows: Sequence[Row],
    memory: Callable[[int], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Allocate an uncompressed chunk whose arrays are still to be filled; `seal` completes it.

    Args:
        rows: name, dtype and shape (K, ...) of each array. Pictures as JPEG are a name, `jpeg`, the shape of
            the decoded pictures and a number of bytes.
        memory: returns a block (size,) uint8 of any content for a size; None: allocate new memory.

    Returns:
        The chunk's bytes, and its arrays by name, which are views of the bytes; (bytes,) uint8 for a JPEG.

    Raises:
        CodecError: the arrays exceed a limit, or have dtypes or shapes that a chunk may not hold.
    """
    _check_shapes(rows)
    head = msgpack.packb(rows)
    end, places = _HEAD_SIZE.size + len(head), []
    for row in rows:
        start = end + -end % _ALIGNMENT
        end = start + _size(row)
        places.append(slice(_HEADER.size + start, _HEADER.size + end))
    if end > MAX_CHUNK_BYTES:
        raise CodecError(f"chunk has {end} bytes, at most {MAX_CHUNK_BYTES}: lower replay.chunk_bytes")
    data = memory(_HEADER.size + end) if memory else np.empty(_HEADER.size + end, np.uint8)
    data[: places[0].start] = 0
    for before, after in pairwise(places):
        data[before.stop : after.start] = 0
    _HEAD_SIZE.pack_into(data.data, _HEADER.size, len(head))
    data[_HEADER.size + _HEAD_SIZE.size :][: len(head)] = np.frombuffer(head, np.uint8)
    arrays = {}
    for place, (name, dtype, shape, *jpeg) in zip(places, rows, strict=True):
        arrays[name] = data[place] if jpeg else data[place].view(_TYPES[dtype]).reshape(shape)
    return data, arrays


def seal(data: Array, compression: int) -> bytes | memoryview:
    """Complete a chunk from `new_chunk` whose arrays are filled.

    Args:
        data: the chunk's bytes.
        compression: zstd level, 0 for none. Without compression nothing is copied.
    """
    body: bytes | memoryview = data.data[_HEADER.size :]
    fields = (_MAGIC, _VERSION, _ZSTD if compression else _RAW, len(body))
    if compression:
        body = zstandard.ZstdCompressor(compression).compress(body)
        return b"".join((_HEADER.pack(*fields, _checksum(fields, body)), body))
    _HEADER.pack_into(data.data, 0, *fields, _checksum(fields, body))
    return data.data


def encode_chunk(arrays: Mapping[str, Array], compression: int, as_jpeg: Collection[str] = ()) -> bytes:
    """Encode arrays (K, ...) of K >= 1 consecutive steps as a chunk.

    Args:
        arrays: the arrays by name.
        compression: zstd level, 0 for none.
        as_jpeg: names of pictures (K, H, W, 3) uint8 to store as JPEG, which loses a little.

    Raises:
        CodecError: the arrays exceed a limit, or have dtypes or shapes that a chunk may not hold.
    """
    rows: list[Row] = []
    stored = dict(arrays)
    for name, array in arrays.items():
        if name in as_jpeg:
            frames = encode_pictures(array)
            packed = b"".join([np.array([len(frame) for frame in frames], _FRAME_SIZE).tobytes(), *frames])
            stored[name] = np.frombuffer(packed, np.uint8)
            rows.append((name, _JPEG, array.shape, len(packed)))
        else:
            rows.append((name, array.dtype.name, array.shape))
    data, places = new_chunk(rows)
    for name, array in stored.items():
        places[name][...] = array
    return bytes(seal(data, compression))


def _fresh(size: int) -> Array:
    return np.empty(size, np.uint8)


def decode_chunk(data: bytes) -> dict[str, Array]:
    """Decode a chunk into its arrays (K, ...), read-only.

    Raises:
        UnknownFormat, CodecError: as for `open_chunk`; or a picture is damaged.
    """
    return {name: _decoded(array) for name, array in open_chunk(data).items()}


def open_chunk(data: bytes, memory: Callable[[int], Array] = _fresh) -> dict[str, Array | Pictures]:
    """Decode a chunk into its arrays (K, ...), read-only views of one buffer. Pictures stored as JPEG are not
    decoded yet.

    Args:
        data: the chunk.
        memory: makes the buffer of a body that is compressed: bytes (size,), which may hold anything.

    Raises:
        UnknownFormat: the chunk was written in another version of the format.
        CodecError: the bytes are not a chunk, or are damaged.
    """
    if len(data) < _HEADER.size:
        raise CodecError(f"{len(data)} bytes are too few for a chunk")
    *fields, checksum = _HEADER.unpack_from(data)
    magic, version, compression, size = fields
    stored = memoryview(data)[_HEADER.size :]
    if magic != _MAGIC:
        raise CodecError(f"expected a chunk, found {magic!r}")
    intact = checksum == _checksum((magic, _VERSION, compression, size), stored)
    # `intact` assumes this version. If only the version byte of a chunk of this version was damaged, the
    # checksum still matches; if the chunk really has another version, it does not.
    if version != _VERSION and not intact:
        raise UnknownFormat(f"expected a chunk of version {_VERSION}, found version {version}")
    if version != _VERSION or not intact or data[5:8] != bytes(3):
        raise CodecError("chunk is damaged: its checksum does not match")
    if size > MAX_CHUNK_BYTES:
        raise CodecError(f"chunk claims {size} bytes, at most {MAX_CHUNK_BYTES} are accepted")
    try:
        return _arrays(_decompress(stored, compression, size, memory))
    except (*_DAMAGED, zstandard.ZstdError) as error:
        raise CodecError(f"chunk is malformed: {error}") from None


def join_chunks(chunks: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Concatenate the arrays of an episode's chunks to (T, ...), read-only.

    Raises:
        CodecError: the chunks differ in names, dtypes or shapes.
    """
    names = chunks[0].keys()
    if any(chunk.keys() != names for chunk in chunks):
        raise CodecError(f"chunks hold different arrays: {[sorted(chunk) for chunk in chunks]}")
    if any(chunk[name].dtype != chunks[0][name].dtype for chunk in chunks for name in names):
        raise CodecError("chunks hold arrays of different dtypes")
    if len(chunks) == 1:
        return dict(chunks[0])
    try:
        arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}
    except ValueError as error:
        raise CodecError(f"chunks do not fit together: {error}") from None
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def encode_record(record: Record) -> bytes:
    """Encode an episode's record as bytes.

    Raises:
        EpisodeError: the record holds values that are not plain or do not fit 64 bits, or is too large.
    """
    try:
        plain = {**vars(record), "meta": vars(record.meta)}
        if record.learnable in (0, record.length):
            del plain["runs"]
        return _pack(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise EpisodeError(f"episode {record.meta.id}: {error}") from error


def decode_record(data: bytes) -> Record:
    """Decode a record, and check its values.

    Raises:
        CodecError: the bytes are not a valid record.
    """
    try:
        plain = _unpack(data)
        meta = plain["meta"]
        _require(plain, meta=dict, outcome=str, length=int, chunks=int, bytes=int, token=str, extras=dict)
        _require(plain, learnable=int, chunk_steps=int)
        _require(meta, id=str, task=str, seed=int, source=str, policy_versions=list, context_length=int)
        versions, runs = tuple(meta["policy_versions"]), tuple(plain.get("runs", ()))
        described = EpisodeMeta(**{**meta, "policy_versions": versions})
        record = Record(**{**plain, "meta": described, "runs": runs})
        if record.outcome not in OUTCOMES:
            raise CodecError(f"outcome is {shown(record.outcome)}, expected {', '.join(OUTCOMES)}")
        if min(record.length, record.chunks, record.bytes, record.chunk_steps) < 1:
            raise CodecError(
                f"{record.length} steps, {record.chunks} chunks of {record.chunk_steps}, {record.bytes} bytes"
            )
        if not 0 <= record.learnable <= record.length:
            raise CodecError(f"{record.learnable} learnable steps of {record.length}")
        if runs and not _are_runs(runs, record):
            raise CodecError(
                f"runs {shown(runs)} of {record.learnable} learnable steps among {record.length}"
            )
        if record.chunks > min(MAX_CHUNKS, -(-record.length // record.chunk_steps)):
            raise CodecError(f"{record.chunks} chunks of {record.chunk_steps} for {record.length} steps")
        if any(type(version) is not int for version in versions):
            raise CodecError(f"policy_versions are {shown(versions)}, expected integers")
        return record
    except _DAMAGED as error:
        raise CodecError(f"record of an episode is malformed: {error}") from None


def _are_runs(runs: tuple[Any, ...], record: Record) -> bool:
    """Tell whether runs ascend, lie within the episode, and are of as many steps as are learnable."""
    if len(runs) % 2 or any(type(step) is not int for step in runs):
        return False
    ascending = all(before < after for before, after in pairwise((-1, *runs, record.length + 1)))
    return ascending and sum(runs[1::2]) - sum(runs[::2]) == record.learnable


def encode_spec(spec: TaskSpec) -> bytes:
    """Encode a task's spec."""
    return _pack(spec.to_dict())


def decode_spec(data: bytes) -> TaskSpec:
    """Decode a task's spec, and check its values.

    Raises:
        CodecError: the bytes are not a valid spec.
    """
    try:
        plain = _unpack(data)
        _require(plain, name=str, observation=dict, action=dict, control_hz=float | int, max_steps=int)
        _require(plain, context_lengths=list, demonstrations=int, chance=float | int | None)
        for array in (plain["action"], *plain["observation"].values()):
            _require(array, shape=list, dtype=str, low=float | int, high=float | int)
            if any(type(size) is not int or size < 0 for size in array["shape"]):
                raise CodecError(f"shape is {shown(array['shape'])}, expected sizes")
        if any(type(length) is not int for length in plain["context_lengths"]):
            raise CodecError(f"context_lengths are {shown(plain['context_lengths'])}, expected integers")
        return TaskSpec.from_dict(plain)
    except _DAMAGED as error:
        raise CodecError(f"task spec is malformed: {error}") from None


def _checksum(fields: Sequence[Any], body: bytes | memoryview) -> int:
    checksum = xxh3_64(_HEADER.pack(*fields, 0))
    checksum.update(body)
    return checksum.intdigest() & 0xFFFFFFFF


def _decompress(
    stored: memoryview, compression: int, size: int, memory: Callable[[int], Array]
) -> memoryview:
    if compression == _RAW:
        claimed = len(stored)
    elif compression == _ZSTD:
        claimed = zstandard.frame_content_size(stored)
    else:
        raise CodecError(f"unknown compression {compression}")
    if claimed != size:
        raise CodecError(f"body has {claimed} bytes, the header says {size}")
    if compression == _RAW:
        return stored
    body = memory(size)
    with zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as reader:
        # There is room for all of it, so zstd writes straight to the buffer.
        found = reader.readinto(body) + len(reader.read(1))
    if found != size:
        raise CodecError(f"body has other than the {size} bytes that its header says")
    return body.data.toreadonly()


def _arrays(body: memoryview) -> dict[str, Array | Pictures]:
    if len(body) < _HEAD_SIZE.size:
        raise CodecError(f"{len(body)} bytes are too few for arrays")
    end = _HEAD_SIZE.size + _HEAD_SIZE.unpack_from(body)[0]
    if end > min(len(body), MAX_HEAD_BYTES):
        raise CodecError(
            f"{end} bytes of names and shapes, at most {MAX_HEAD_BYTES} are accepted in a body of {len(body)}"
        )
    rows = msgpack.unpackb(
        body[_HEAD_SIZE.size : end],
        max_map_len=0,
        max_array_len=MAX_ARRAYS,
        max_str_len=MAX_NAME,
        max_bin_len=0,
        max_ext_len=0,
    )
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) in (3, 4) for row in rows):
        raise CodecError("expected names, dtypes and shapes of arrays")
    _check_shapes(rows)
    arrays: dict[str, Array | Pictures] = {}
    for row in rows:
        name, dtype, shape, *jpeg = row
        start, size = end + -end % _ALIGNMENT, _size(row)
        end = start + size
        if end > len(body):
            raise CodecError(f"{name}: {dtype}{shape} needs {size} bytes of data")
        found = np.frombuffer(body, np.uint8, size, start)
        arrays[name] = _pictures(found, shape) if jpeg else found.view(_TYPES[dtype]).reshape(shape)
    if end != len(body):
        raise CodecError(f"{len(body) - end} bytes belong to no array")
    return arrays


def _pictures(data: Array, shape: Sequence[int]) -> Pictures:
    """Divide the bytes of pictures of this shape (K, H, W, 3).

    Raises:
        CodecError: the bytes are not divided into K pictures.
    """
    head = shape[0] * _FRAME_SIZE.itemsize
    ends = head + np.cumsum(data[:head].view(_FRAME_SIZE), dtype=np.int64)
    if ends[-1] != len(data):
        raise CodecError(f"pictures have {len(data)} bytes, not {ends[-1]}")
    return Pictures([data[a:b] for a, b in pairwise([head, *ends.tolist()])], tuple(shape))


def _decoded(array: Array | Pictures) -> Array:
    if isinstance(array, Pictures):
        array = decode_pictures(array.frames, array.shape[1:])
        array.flags.writeable = False
    return array


def _size(row: Sequence[Any]) -> int:
    """Return the number of bytes that an array takes in a chunk."""
    _, dtype, shape, *jpeg = row
    return int(jpeg[0]) if jpeg else math.prod(shape) * _TYPES[dtype].itemsize


def _check_shapes(rows: Sequence[Sequence[Any]]) -> None:
    """Check the names, dtypes and shapes (K, ...) of a chunk's arrays: within limits, no empty axis, one K.

    Raises:
        CodecError: a check failed.
    """
    if not 1 <= len(rows) <= MAX_ARRAYS:
        raise CodecError(f"a chunk has 1 to {MAX_ARRAYS} arrays, not {len(rows)}")
    for name, dtype, shape, *jpeg in rows:
        if not isinstance(name, str) or len(name.encode()) > MAX_NAME:
            raise CodecError(f"array names are strings of at most {MAX_NAME} bytes, not {shown(name)}")
        if dtype not in DTYPES and (dtype != _JPEG or not jpeg):
            raise CodecError(f"{name}: dtype must be one of {', '.join(DTYPES)}, not {shown(dtype)}")
        if not isinstance(shape, tuple | list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
            raise CodecError(f"{name}: expected 1 to {MAX_DIMENSIONS} dimensions, not {shown(shape)}")
        if not all(type(size) is int and size >= 1 for size in shape):
            raise CodecError(f"{name}: dimensions are positive integers, not {shown(shape)}")
        if jpeg:
            _check_pictures(name, dtype, shape, jpeg[0])
    if len({name for name, *_ in rows}) != len(rows):
        raise CodecError(f"array names must differ, not be {[name for name, *_ in rows]}")
    if len({shape[0] for _, _, shape, *_ in rows}) != 1:
        steps = {name: shape[0] for name, _, shape, *_ in rows}
        raise CodecError(f"arrays must have the same number of steps, not {steps}")


def _check_pictures(name: str, dtype: str, shape: Sequence[int], size: Any) -> None:
    """Check the shape (K, H, W, 3) and the number of bytes of pictures that are stored as JPEG.

    Raises:
        CodecError: a check failed.
    """
    if dtype != _JPEG or len(shape) != 4 or shape[3] != 3 or math.prod(shape) > MAX_CHUNK_BYTES:
        raise CodecError(f"{name}: expected pictures of at most {MAX_CHUNK_BYTES} bytes, not {dtype}{shape}")
    if type(size) is not int or size < shape[0] * (_FRAME_SIZE.itemsize + SMALLEST):
        raise CodecError(f"{name}: {shape[0]} pictures cannot have {shown(size)} bytes")


def _pack(plain: dict[str, Any]) -> bytes:
    data: bytes = msgpack.packb(plain)
    if len(data) > MAX_PLAIN_BYTES:
        raise ValueError(f"{len(data)} bytes are too many, at most {MAX_PLAIN_BYTES}")
    return data


def _unpack(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_PLAIN_BYTES:
        raise CodecError(f"{len(data)} bytes are too many, at most {MAX_PLAIN_BYTES}")
    plain = msgpack.unpackb(data, max_ext_len=0)
    if not isinstance(plain, dict):
        raise CodecError(f"expected a map, found {type(plain).__name__}")
    return plain


def _require(plain: dict[str, Any], **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = plain[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CodecError(f"{name} is {shown(value)}, expected {kind}")
