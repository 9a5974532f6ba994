import struct
import tracemalloc
import zlib
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from replay import codec
from replay.codec import Record, decode_chunk, decode_record, decode_spec, encode_chunk, encode_record
from replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from replay.errors import CodecError, EpisodeError

NAMES = st.text(min_size=1, max_size=30)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    steps = draw(st.integers(1, 5))
    return {
        name: draw(
            arrays(
                draw(st.sampled_from([np.float32, np.uint8])),
                (steps, *draw(array_shapes(min_dims=0, max_dims=3, max_side=4))),
            )
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    }


@given(chunks(), st.integers(0, 3))
def test_round_trip(chunk: dict[str, Any], compression: int) -> None:
    decoded = decode_chunk(encode_chunk(chunk, compression))
    assert decoded.keys() == chunk.keys()
    for name, array in chunk.items():
        assert (decoded[name].dtype, decoded[name].shape) == (array.dtype, array.shape)
        assert decoded[name].tobytes() == array.tobytes()
        assert not decoded[name].flags.writeable


@given(st.binary(max_size=200))
def test_random_bytes_are_no_chunk(data: bytes) -> None:
    for noise in (data, b"LVC" + data):
        with pytest.raises(CodecError):
            decode_chunk(noise)


@given(chunks(), st.integers(0, 1), st.data())
def test_a_damaged_chunk_is_noticed(chunk: dict[str, Any], compression: int, data: st.DataObject) -> None:
    whole = encode_chunk(chunk, compression)
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
    for damaged in (flipped, whole[:place], whole + b"\0"):
        with pytest.raises(CodecError):
            decode_chunk(damaged)


def forge(body: bytes, compression: int = 0, size: int | None = None) -> bytes:
    """A chunk with a correct checksum around any body: what only an enemy would write."""
    size = len(body) if size is None else size
    head = struct.pack("<3sBBII", b"LVC", 1, compression, size, 0)
    return head[:-4] + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def test_the_forge_makes_good_chunks_too() -> None:
    body = msgpack.packb({"a": ["uint8", [2, 1], b"\1\2"]})
    assert decode_chunk(forge(body))["a"].tolist() == [[1], [2]]
    assert decode_chunk(forge(zstandard.compress(body), 1, len(body)))["a"].tolist() == [[1], [2]]


@given(st.binary(max_size=100) | PLAIN.map(msgpack.packb))
def test_forged_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(body))
    with pytest.raises(CodecError):
        decode_chunk(forge(body, compression=1))


@pytest.mark.parametrize(
    "array",
    [
        ["float64", [1], b"\0" * 8],
        ["float32", [2], b"\0" * 4],
        ["float32", [-1, -1], b"\0" * 4],
        ["float32", [0], b""],
        ["float32", [2**62, 2**62], b"\0" * 4],
        ["float32", [True], b"\0" * 4],
        ["float32", [1] * 9, b"\0" * 4],
        ["float32", [], b"\0" * 4],
        ["float32", [1], "\0" * 4],
        ["float32", "1", b"\0" * 4],
        [["float32"], [1], b"\0" * 4],
        ["float32", [1]],
        None,
    ],
)
def test_forged_arrays_are_refused(array: object) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(msgpack.packb({"a": array})))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {str(number): ["uint8", [1], b"\0"] for number in range(codec.MAX_ARRAYS + 1)},
        {"n" * (codec.MAX_NAME + 1): ["uint8", [1], b"\0"]},
        {b"bytes": ["uint8", [1], b"\0"]},
        {"a": ["uint8", [1], b"\0"], "b": ["uint8", [2], b"\0\0"]},
        {"a": msgpack.ExtType(1, b"x")},
        {"a": ["uint8", [1], msgpack.ExtType(1, b"x")]},
    ],
)
def test_forged_maps_are_refused(fields: object) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(msgpack.packb(fields)))


def test_a_decompression_bomb_does_not_go_off() -> None:
    bomb = zstandard.compress(bytes(codec.MAX_CHUNK_BYTES + 1))
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    tracemalloc.start()
    try:
        for size in (10, codec.MAX_CHUNK_BYTES, codec.MAX_CHUNK_BYTES + 1):
            for body in (bomb, endless):
                with pytest.raises(CodecError):
                    decode_chunk(forge(body, compression=1, size=size))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nothing_may_follow_the_compressed_body() -> None:
    body = msgpack.packb({"a": ["uint8", [1], b"\1"]})
    with pytest.raises(CodecError):
        decode_chunk(forge(zstandard.compress(body) + b"more", 1, len(body)))


def test_other_versions_and_codecs_are_named() -> None:
    whole = encode_chunk({"a": np.zeros(1, np.uint8)}, 0)
    with pytest.raises(CodecError, match="expected a chunk of version 1, found b'LVC' version 2"):
        decode_chunk(whole[:3] + b"\2" + whole[4:])
    with pytest.raises(CodecError, match="unknown compression 7"):
        decode_chunk(forge(whole[13:], compression=7))


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"a": np.zeros(2, np.float64)},
        {"a": np.zeros((0, 2), np.float32)},
        {"a": np.zeros((), np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)},
    ],
)
def test_what_could_not_be_read_is_not_written(chunk: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        encode_chunk(chunk, 1)


def test_record_round_trip() -> None:
    meta = EpisodeMeta("rollout.walk.000000001", "walk", 2**64 - 1, "rollout", (3, 4), 8)
    record = Record(meta, "wrong", length=70, chunks=2, bytes=1234, token="ab")
    assert decode_record(encode_record(record)) == record


def test_a_record_of_values_that_are_not_plain_is_refused() -> None:
    for seed in (2**64, np.int64(3)):
        meta = EpisodeMeta("x", "walk", seed, "rollout")  # type: ignore[arg-type]
        with pytest.raises(EpisodeError, match="episode x"):
            encode_record(Record(meta, "success", 1, 1, 1, "ab"))


@given(st.binary(max_size=100) | PLAIN.map(msgpack.packb))
def test_random_bytes_are_no_record_and_no_spec(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_record(data)
    with pytest.raises(CodecError):
        decode_spec(data)


def test_spec_round_trip(spec: TaskSpec) -> None:
    assert decode_spec(codec.encode_spec(spec)) == spec
    assert decode_spec(codec.encode_spec(spec)).observation["position"] == ArraySpec((2,))
