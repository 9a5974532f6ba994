"""Chunks, and what is known of an episode beside them, as bytes and back.

A chunk is a header, then the body, which is compressed or not:

    magic "LVC" | version u8 | compression u8 | 3 zeros | body's size u32 | checksum u32 | body

The checksum, the low half of XXH3-64, covers everything but itself. The body is the arrays' names, dtypes and
shapes, then their bytes, each at a multiple of 8 from the body's start, little endian, in C order:

    size of what follows u32 | msgpack [[name, dtype, shape], ...] | bytes | bytes | ...

So an array that is read is a view of the body. Any bytes give a chunk or a CodecError, in time and memory
that the limits below bound: nothing is allocated that the bytes only claim.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as shown
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import numpy as np
import zstandard
from xxhash import xxh3_64

from longview.replay.episode import DTYPES, OUTCOMES, Array, EpisodeMeta, TaskSpec
from longview.replay.errors import CodecError, EpisodeError, UnknownFormat

MAX_CHUNK_BYTES: Final = 256 << 20
"""Largest body, before compression."""
MAX_CHUNKS: Final = 1 << 16
"""Of an episode."""
MAX_ARRAYS: Final = 64
MAX_DIMENSIONS: Final = 8
MAX_NAME: Final = 128
MAX_HEAD_BYTES: Final = 1 << 16
"""Names, dtypes and shapes of a chunk's arrays."""
MAX_PLAIN_BYTES: Final = 1 << 20
"""Largest record or task spec."""

_HEADER: Final = struct.Struct("<3sBB3xII")
_HEAD_SIZE: Final = struct.Struct("<I")
_MAGIC: Final = b"LVC"
_VERSION: Final = 2
_ALIGNMENT: Final = 8
_RAW, _ZSTD = 0, 1
_TYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_DAMAGED: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, msgpack.UnpackException)


@dataclass(frozen=True)
class Record:
    """What the store keeps of an episode beside its chunks."""

    meta: EpisodeMeta
    outcome: str
    length: int
    """T, in steps."""
    chunks: int
    bytes: int
    """Of all chunks, as stored."""
    token: str
    """Names the writer whose chunks these are: writers of one id never touch each other's."""
    chunk_steps: int
    """K: chunk k holds steps k * K to (k + 1) * K - 1, the last one as far as there are any."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """The episode's."""


def frame(
    rows: Sequence[tuple[str, str, tuple[int, ...]]],
    memory: Callable[[int], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """A chunk that is yet to be filled: its bytes, and by name its arrays, which are views of them.

    Args:
        rows: name, dtype and shape (K, ...) of each array.
        memory: gives so many bytes, (size,) uint8, whatever is in them; None: new ones.

    Raises:
        CodecError: the arrays exceed a limit, or are not what a chunk may hold.
    """
    _check_shapes(rows)
    head = msgpack.packb(rows)
    end, places = _HEAD_SIZE.size + len(head), []
    for _, dtype, shape in rows:
        start = end + -end % _ALIGNMENT
        end = start + math.prod(shape) * _TYPES[dtype].itemsize
        places.append(slice(_HEADER.size + start, _HEADER.size + end))
    if end > MAX_CHUNK_BYTES:
        raise CodecError(f"chunk has {end} bytes, at most {MAX_CHUNK_BYTES}: lower replay.chunk_steps")
    data = memory(_HEADER.size + end) if memory else np.empty(_HEADER.size + end, np.uint8)
    data[: places[0].start] = 0
    for before, after in pairwise(places):
        data[before.stop : after.start] = 0
    _HEAD_SIZE.pack_into(data.data, _HEADER.size, len(head))
    data[_HEADER.size + _HEAD_SIZE.size :][: len(head)] = np.frombuffer(head, np.uint8)
    arrays = {
        name: data[place].view(_TYPES[dtype]).reshape(shape)
        for place, (name, dtype, shape) in zip(places, rows, strict=True)
    }
    return data, arrays


def seal(data: Array, compression: int) -> bytes | memoryview:
    """A frame whose arrays are filled, as a chunk; compression as in `StoreConfig`. Without it nothing is
    copied."""
    body: bytes | memoryview = data.data[_HEADER.size :]
    fields = (_MAGIC, _VERSION, _ZSTD if compression else _RAW, len(body))
    if compression:
        body = zstandard.ZstdCompressor(compression).compress(body)
        return b"".join((_HEADER.pack(*fields, _checksum(fields, body)), body))
    _HEADER.pack_into(data.data, 0, *fields, _checksum(fields, body))
    return data.data


def encode_chunk(arrays: Mapping[str, Array], compression: int) -> bytes:
    """Arrays (K, ...) of K >= 1 consecutive steps as a chunk.

    Raises:
        CodecError: as `frame`.
    """
    data, places = frame([(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    for name, array in arrays.items():
        places[name][...] = array
    return bytes(seal(data, compression))


def decode_chunk(data: bytes) -> dict[str, Array]:
    """Inverse of `encode_chunk`; the arrays are read-only views of one buffer.

    Raises:
        UnknownFormat: these bytes begin like a chunk of another version of ours.
        CodecError: these bytes are no chunk of ours, or damaged.
    """
    if len(data) < _HEADER.size:
        raise CodecError(f"{len(data)} bytes are too few for a chunk")
    *fields, checksum = _HEADER.unpack_from(data)
    magic, version, compression, size = fields
    stored = memoryview(data)[_HEADER.size :]
    if magic != _MAGIC:
        raise CodecError(f"expected a chunk, found {magic!r}")
    intact = checksum == _checksum((magic, _VERSION, compression, size), stored)
    if version != _VERSION and not intact:  # one of ours would be intact, were it not for this very byte
        raise UnknownFormat(f"expected a chunk of version {_VERSION}, found version {version}")
    if version != _VERSION or not intact or data[5:8] != bytes(3):
        raise CodecError("chunk is damaged: its checksum does not match")
    if size > MAX_CHUNK_BYTES:
        raise CodecError(f"chunk claims {size} bytes, at most {MAX_CHUNK_BYTES} are accepted")
    try:
        return _arrays(_decompress(stored, compression, size))
    except (*_DAMAGED, zstandard.ZstdError) as error:
        raise CodecError(f"chunk is malformed: {error}") from None


def join_chunks(chunks: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays of an episode's chunks end to end, read-only.

    Raises:
        CodecError: they do not belong together.
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
    """A record as bytes.

    Raises:
        EpisodeError: its meta holds values that are not plain, or do not fit 64 bits.
    """
    try:
        return _pack({**vars(record), "meta": vars(record.meta)})
    except (ValueError, TypeError, OverflowError) as error:
        raise EpisodeError(f"episode {record.meta.id}: {error}") from error


def decode_record(data: bytes) -> Record:
    """Inverse of `encode_record`.

    Raises:
        CodecError: these bytes are no record.
    """
    try:
        plain = _unpack(data)
        meta = plain["meta"]
        _require(plain, meta=dict, outcome=str, length=int, chunks=int, bytes=int, token=str, extras=dict)
        _require(plain, chunk_steps=int)
        _require(meta, id=str, task=str, seed=int, source=str, policy_versions=list, context_length=int)
        versions = tuple(meta["policy_versions"])
        record = Record(**{**plain, "meta": EpisodeMeta(**{**meta, "policy_versions": versions})})
        if record.outcome not in OUTCOMES:
            raise CodecError(f"outcome is {shown(record.outcome)}, expected {', '.join(OUTCOMES)}")
        if min(record.length, record.chunks, record.bytes, record.chunk_steps) < 1:
            raise CodecError(
                f"{record.length} steps, {record.chunks} chunks of {record.chunk_steps}, {record.bytes} bytes"
            )
        if record.chunks > min(MAX_CHUNKS, -(-record.length // record.chunk_steps)):
            raise CodecError(f"{record.chunks} chunks of {record.chunk_steps} for {record.length} steps")
        if any(type(version) is not int for version in versions):
            raise CodecError(f"policy_versions are {shown(versions)}, expected integers")
        return record
    except _DAMAGED as error:
        raise CodecError(f"record of an episode is malformed: {error}") from None


def encode_spec(spec: TaskSpec) -> bytes:
    """A task's spec as bytes."""
    return _pack(spec.to_dict())


def decode_spec(data: bytes) -> TaskSpec:
    """Inverse of `encode_spec`.

    Raises:
        CodecError: these bytes are no spec.
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


def _decompress(stored: memoryview, compression: int, size: int) -> bytes | memoryview:
    if compression == _RAW:
        claimed = len(stored)
    elif compression == _ZSTD:
        # The decompressor allocates what the frame claims, so the claim is checked first.
        claimed = zstandard.frame_content_size(stored)
    else:
        raise CodecError(f"unknown compression {compression}")
    if claimed != size:
        raise CodecError(f"body has {claimed} bytes, the header says {size}")
    if compression == _RAW:
        return stored
    return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)


def _arrays(body: bytes | memoryview) -> dict[str, Array]:
    if len(body) < _HEAD_SIZE.size:
        raise CodecError(f"{len(body)} bytes are too few for arrays")
    end = _HEAD_SIZE.size + _HEAD_SIZE.unpack_from(body)[0]
    if end > min(len(body), MAX_HEAD_BYTES):
        raise CodecError(f"{end} bytes of names and shapes; at most {MAX_HEAD_BYTES}, and {len(body)} here")
    rows = msgpack.unpackb(
        memoryview(body)[_HEAD_SIZE.size : end],
        max_map_len=0,
        max_array_len=MAX_ARRAYS,
        max_str_len=MAX_NAME,
        max_bin_len=0,
        max_ext_len=0,
    )
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise CodecError("expected names, dtypes and shapes of arrays")
    _check_shapes(rows)
    arrays: dict[str, Array] = {}
    for name, dtype, shape in rows:
        start, count = end + -end % _ALIGNMENT, math.prod(shape)
        end = start + count * _TYPES[dtype].itemsize
        if end > len(body):
            raise CodecError(f"{name}: {dtype}{shape} needs {end - start} bytes of data")
        arrays[name] = np.frombuffer(body, _TYPES[dtype], count, start).reshape(shape)
    if end != len(body):
        raise CodecError(f"{len(body) - end} bytes belong to no array")
    return arrays


def _check_shapes(rows: Sequence[Sequence[Any]]) -> None:
    """Check names, dtypes and shapes (K, ...): known, within limits, no dimension 0, the same K."""
    if not 1 <= len(rows) <= MAX_ARRAYS:
        raise CodecError(f"a chunk has 1 to {MAX_ARRAYS} arrays, not {len(rows)}")
    for name, dtype, shape in rows:
        if not isinstance(name, str) or len(name.encode()) > MAX_NAME:
            raise CodecError(f"array names are strings of at most {MAX_NAME} bytes, not {shown(name)}")
        if dtype not in DTYPES:
            raise CodecError(f"{name}: dtype must be one of {', '.join(DTYPES)}, not {shown(dtype)}")
        if not isinstance(shape, tuple | list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
            raise CodecError(f"{name}: expected 1 to {MAX_DIMENSIONS} dimensions, not {shown(shape)}")
        if not all(type(size) is int and size >= 1 for size in shape):
            raise CodecError(f"{name}: dimensions are positive integers, not {shown(shape)}")
    if len({name for name, *_ in rows}) != len(rows):
        raise CodecError(f"two arrays of one name among {[name for name, *_ in rows]}")
    if len({shape[0] for _, _, shape in rows}) != 1:
        raise CodecError(f"arrays differ in steps: { {name: shape[0] for name, _, shape in rows} }")


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
