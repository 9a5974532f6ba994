"""Chunks, and what is known of an episode beside them, as bytes and back.

A chunk is a header, then the body, which is compressed or not:

    magic "LVC" | version u8 | compression u8 | body's size u32 | crc32 u32 | body

The checksum covers everything but itself. The body is msgpack: {name: [dtype, shape, raw bytes]}, little
endian, C order. Any bytes give a chunk or a CodecError, in time and memory that the limits below bound.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import numpy as np
import zstandard

from replay.episode import DTYPES, OUTCOMES, Array, EpisodeMeta, TaskSpec
from replay.errors import CodecError, EpisodeError

MAX_CHUNK_BYTES: Final = 256 << 20
"""Largest body, before compression."""
MAX_ARRAYS: Final = 64
MAX_DIMENSIONS: Final = 8
MAX_NAME: Final = 128
MAX_PLAIN_BYTES: Final = 1 << 20
"""Largest record or task spec."""

_HEADER: Final = struct.Struct("<3sBBII")
_MAGIC: Final = b"LVC"
_VERSION: Final = 1
_RAW, _ZSTD = 0, 1
_TYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_DAMAGED: Final = (ValueError, TypeError, KeyError, msgpack.UnpackException, EpisodeError)


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


def encode_chunk(arrays: Mapping[str, Array], compression: int) -> bytes:
    """Arrays (K, ...) of K >= 1 consecutive steps as bytes; compression as in `StoreConfig`.

    Raises:
        CodecError: the arrays exceed a limit, or are not what a chunk may hold.
    """
    body = msgpack.packb(
        {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}
    )
    if len(body) > MAX_CHUNK_BYTES:
        raise CodecError(f"chunk has {len(body)} bytes, at most {MAX_CHUNK_BYTES}: lower replay.chunk_steps")
    _check_shapes({name: (array.dtype.name, array.shape) for name, array in arrays.items()})
    stored = zstandard.ZstdCompressor(compression).compress(body) if compression else body
    head = (_MAGIC, _VERSION, _ZSTD if compression else _RAW, len(body))
    return _HEADER.pack(*head, _checksum(*head, stored)) + stored


def decode_chunk(data: bytes) -> dict[str, Array]:
    """Inverse of `encode_chunk`; the arrays are read-only.

    Raises:
        CodecError: these bytes are no chunk of ours, or damaged.
    """
    if len(data) < _HEADER.size:
        raise CodecError(f"{len(data)} bytes are too few for a chunk")
    magic, version, compression, size, checksum = _HEADER.unpack_from(data)
    stored = memoryview(data)[_HEADER.size :]
    if (magic, version) != (_MAGIC, _VERSION):
        raise CodecError(f"expected a chunk of version {_VERSION}, found {magic!r} version {version}")
    if checksum != _checksum(magic, version, compression, size, stored):
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
        return _pack(asdict(record))
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
        versions = tuple(int(version) for version in meta["policy_versions"])
        record = Record(**{**plain, "meta": EpisodeMeta(**{**meta, "policy_versions": versions})})
        if record.outcome not in OUTCOMES:
            raise CodecError(f"outcome is {record.outcome!r:.200}, expected {', '.join(OUTCOMES)}")
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
        return TaskSpec.from_dict(_unpack(data))
    except (*_DAMAGED, AttributeError) as error:
        raise CodecError(f"task spec is malformed: {error}") from None


def _checksum(magic: bytes, version: int, compression: int, size: int, stored: bytes | memoryview) -> int:
    return zlib.crc32(stored, zlib.crc32(_HEADER.pack(magic, version, compression, size, 0)))


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
    fields = msgpack.unpackb(
        body,
        max_map_len=MAX_ARRAYS,
        max_array_len=MAX_DIMENSIONS,
        max_str_len=MAX_NAME,
        max_bin_len=MAX_CHUNK_BYTES,
        max_ext_len=0,
    )
    if not isinstance(fields, dict):
        raise CodecError(f"expected a map of arrays, found {type(fields).__name__}")
    rows = {name: (dtype, shape) for name, (dtype, shape, _) in fields.items()}
    _check_shapes(rows)
    arrays = {}
    for name, (dtype, shape, raw) in fields.items():
        expected = math.prod(shape) * _TYPES[dtype].itemsize
        if not isinstance(raw, bytes) or len(raw) != expected:
            raise CodecError(f"{name}: {dtype}{shape} needs {expected} bytes of data")
        arrays[name] = np.frombuffer(raw, _TYPES[dtype]).reshape(shape)
    return arrays


def _check_shapes(arrays: Mapping[str, tuple[Any, Any]]) -> None:
    """Check names, dtypes and shapes (K, ...): known, within limits, no dimension 0, the same K."""
    if not 1 <= len(arrays) <= MAX_ARRAYS:
        raise CodecError(f"a chunk has 1 to {MAX_ARRAYS} arrays, not {len(arrays)}")
    for name, (dtype, shape) in arrays.items():
        if not isinstance(name, str) or len(name.encode()) > MAX_NAME:
            raise CodecError(f"array names are strings of at most {MAX_NAME} bytes, not {name!r:.200}")
        if dtype not in DTYPES:
            raise CodecError(f"{name}: dtype must be one of {', '.join(DTYPES)}, not {dtype!r:.200}")
        if not isinstance(shape, tuple | list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
            raise CodecError(f"{name}: expected 1 to {MAX_DIMENSIONS} dimensions, not {shape!r:.200}")
        if not all(type(size) is int and size >= 1 for size in shape):
            raise CodecError(f"{name}: dimensions are positive integers, not {shape!r:.200}")
    if len({shape[0] for _, shape in arrays.values()}) != 1:
        raise CodecError(
            f"arrays differ in steps: { {name: shape[0] for name, (_, shape) in arrays.items()} }"
        )


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
