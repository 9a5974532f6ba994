import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from xxhash import xxh3_64_intdigest

from longview.replay import codec
from longview.replay.codec import (
    MAX_CHUNKS,
    Record,
    decode_chunk,
    decode_record,
    decode_spec,
    encode_chunk,
    encode_record,
    open_chunk,
)
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.errors import CodecError, EpisodeError, UnknownFormat
from longview.replay.redis.blocks import BlockPool

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


def test_large_chunks_stay_as_they_were_decoded() -> None:
    """The memory of chunks that nobody needs any more is used again."""
    memory = BlockPool(1 << 30)
    pictures = np.random.default_rng(0).integers(0, 9, (6, 64, 64, 3), np.uint8)
    whole = [encode_chunk({"a": np.tile(picture, (32, 1, 1, 1))}, 1) for picture in pictures]
    for _ in range(2):
        for first in range(4):
            held = [np.asarray(open_chunk(chunk, memory.take)["a"]) for chunk in whole[first : first + 3]]
            for picture, array in zip(pictures[first:], held, strict=False):
                assert (array == picture).all()
                assert not array.flags.writeable


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
        with pytest.raises(CodecError) as caught:
            decode_chunk(damaged)
        assert caught.type is CodecError, "what is damaged is not taken for another version's"


def forge(body: bytes, compression: int = 0, size: int | None = None) -> bytes:
    """Make a chunk with a correct checksum around any body, as only an attacker would."""
    size = len(body) if size is None else size
    head = struct.pack("<3sBB3xII", b"LVC", 2, compression, size, 0)
    return head[:-4] + struct.pack("<I", xxh3_64_intdigest(head + body) & 0xFFFFFFFF) + body


def forge_body(rows: object, data: bytes = b"") -> bytes:
    """Make a body from any list of arrays and any data."""
    head = msgpack.packb(rows)
    return struct.pack("<I", len(head)) + head + bytes(-(4 + len(head)) % 8) + data


def test_the_forge_makes_good_chunks_too() -> None:
    body = forge_body([["a", "uint8", [2, 1]]], b"\1\2")
    assert decode_chunk(forge(body))["a"].tolist() == [[1], [2]]
    assert decode_chunk(forge(zstandard.compress(body), 1, len(body)))["a"].tolist() == [[1], [2]]


@given(st.binary(max_size=100) | PLAIN.map(msgpack.packb) | PLAIN.map(forge_body))
def test_forged_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(body))
    with pytest.raises(CodecError):
        decode_chunk(forge(body, compression=1))


ROWS = st.lists(
    st.tuples(
        NAMES | PLAIN,
        st.sampled_from(["float32", "uint8"]) | PLAIN,
        st.lists(st.integers(0, 3) | st.integers(-(2**63), 2**64 - 1), max_size=3) | PLAIN,
    ).map(list)
    | PLAIN,
    max_size=4,
)


@given(ROWS, st.binary(max_size=64))
def test_any_rows_and_data_are_arrays_of_them_or_refused(rows: Any, data: bytes) -> None:
    try:
        chunk = decode_chunk(forge(forge_body(rows, data)))
    except CodecError:
        return
    assert [[name, array.dtype.name, list(array.shape)] for name, array in chunk.items()] == rows
    assert sum(array.nbytes for array in chunk.values()) <= len(data)


@given(chunks(), st.integers(0, 1), st.data())
def test_a_body_that_was_tampered_with_is_arrays_or_refused(
    chunk: dict[str, Any], compression: int, data: st.DataObject
) -> None:
    body = bytearray(encode_chunk(chunk, 0)[16:])
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    stored = zstandard.compress(bytes(body)) if compression else bytes(body)
    try:
        decoded = decode_chunk(forge(stored, compression, len(body)))
    except CodecError:
        return
    assert sum(array.nbytes for array in decoded.values()) <= len(body)


@pytest.mark.parametrize(
    ("row", "data"),
    [
        (["a", "float64", [1]], 8),
        (["a", "float32", [2]], 4),
        (["a", "float32", [1]], 8),
        (["a", "float32", [-1, -1]], 4),
        (["a", "float32", [0]], 0),
        (["a", "float32", [2**62, 2**62]], 4),
        (["a", "float32", [2**62] * 8], 4),
        (["a", "float32", [True]], 4),
        (["a", "float32", [1] * 9], 4),
        (["a", "float32", []], 4),
        (["a", "float32", "1"], 4),
        (["a", ["float32"], [1]], 4),
        (["a", "float32"], 4),
        (["a", "float32", [1], 0], 4),
        ([b"a", "float32", [1]], 4),
        (["n" * (codec.MAX_NAME + 1), "float32", [1]], 4),
        (["a", "float32", {}], 4),
        ([msgpack.ExtType(1, b"x"), "float32", [1]], 4),
        (None, 0),
    ],
)
def test_forged_arrays_are_refused(row: object, data: int) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(forge_body([row], bytes(data))))


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        ([], 0),
        ({}, 0),
        ([[str(number), "uint8", [1]] for number in range(codec.MAX_ARRAYS + 1)], 8 * codec.MAX_ARRAYS + 1),
        ([["a", "uint8", [1]], ["a", "uint8", [1]]], 9),
        ([["a", "uint8", [1]], ["b", "uint8", [2]]], 10),
    ],
)
def test_forged_sets_of_arrays_are_refused(rows: object, data: int) -> None:
    with pytest.raises(CodecError):
        decode_chunk(forge(forge_body(rows, bytes(data))))


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x90"


@pytest.mark.parametrize(
    "head",
    [
        nested(100),
        nested(1000),
        nested(60_000),
        b"\xdd\xff\xff\xff\xff",  # claims four billion entries
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x93" + b"\x80" * 50_000,
        b"\x90" * (1 << 20),
    ],
)
def test_heads_of_the_worst_kind_cost_little(head: bytes) -> None:
    body = struct.pack("<I", len(head)) + head
    compressed = forge(zstandard.compress(body), 1, len(body))
    with bounded(8 << 20):
        for chunk in (forge(body), compressed, forge(struct.pack("<I", 2**32 - 1) + head)):
            with pytest.raises(CodecError):
                decode_chunk(chunk)
    for plain in (head, b"\x81\xa4meta" + head):
        with bounded(100 << 20):
            for decode in (decode_record, decode_spec):
                with pytest.raises(CodecError):
                    decode(plain)


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fail if more than `size` bytes are allocated within the context."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_chunk_is_read_without_copies() -> None:
    whole = encode_chunk({"a": np.arange(1 << 22, dtype=np.uint8), "b": np.zeros(1 << 22, np.float32)}, 0)
    with bounded(1 << 20):
        chunk = decode_chunk(whole)
        assert chunk["a"][-1] == 255
    assert all(array.flags.aligned for array in chunk.values())


def test_a_decompression_bomb_does_not_go_off() -> None:
    bomb = zstandard.compress(bytes(codec.MAX_CHUNK_BYTES + 1))
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    with bounded(1 << 20):
        for size in (10, codec.MAX_CHUNK_BYTES, codec.MAX_CHUNK_BYTES + 1):
            for body in (bomb, endless):
                with pytest.raises(CodecError):
                    decode_chunk(forge(body, compression=1, size=size))


def test_compressed_bodies_end_where_they_claim_to() -> None:
    body = forge_body([["a", "uint8", [1]]], b"\1")
    packed = zstandard.compress(body)
    for damaged in (packed + b"more", packed + packed, packed[:-3]):
        with pytest.raises(CodecError):
            decode_chunk(forge(damaged, 1, len(body)))
    with pytest.raises(CodecError, match="4 bytes belong to no array"):
        decode_chunk(forge(body + b"more"))


def test_other_versions_and_codecs_are_named() -> None:
    whole = encode_chunk({"a": np.zeros(1, np.uint8)}, 0)
    other = struct.pack("<3sBB3xII", b"LVC", 3, 0, len(whole) - 16, 0)
    other = other[:-4] + struct.pack("<I", xxh3_64_intdigest(other + whole[16:]) & 0xFFFFFFFF) + whole[16:]
    with pytest.raises(UnknownFormat, match="expected a chunk of version 2, found version 3"):
        decode_chunk(other)
    with pytest.raises(CodecError, match="unknown compression 7"):
        decode_chunk(forge(whole[16:], compression=7))


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
    record = Record(meta, "wrong", length=70, learnable=69, chunks=2, bytes=1234, token="ab", chunk_steps=64)
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("learnable", [-1, 71])
def test_a_record_of_more_learnable_steps_than_steps_is_refused(learnable: int) -> None:
    with pytest.raises(CodecError, match=f"{learnable} learnable steps of 70"):
        decode_record(msgpack.packb(RECORD | {"learnable": learnable}))


@pytest.mark.parametrize("length", [70, 2 * MAX_CHUNKS])
def test_a_record_of_more_chunks_than_there_may_be_is_refused(length: int) -> None:
    meta, most = EpisodeMeta("x", "walk", 0, "rollout"), min(MAX_CHUNKS, length)
    record = Record(meta, "success", length, 0, most, 1234, "ab", chunk_steps=1)
    assert decode_record(encode_record(record)) == record
    with pytest.raises(CodecError, match=f"{most + 1} chunks of 1 for {length} steps"):
        decode_record(encode_record(replace(record, chunks=most + 1)))


def test_a_record_of_values_that_are_not_plain_is_refused() -> None:
    for seed in (2**64, np.int64(3)):
        meta = EpisodeMeta("x", "walk", seed, "rollout")  # type: ignore[arg-type]
        with pytest.raises(EpisodeError, match="episode x"):
            encode_record(Record(meta, "success", 1, 1, 1, 1, "ab", 64))


@given(st.binary(max_size=100) | PLAIN.map(msgpack.packb))
def test_random_bytes_are_no_record_and_no_spec(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_record(data)
    with pytest.raises(CodecError):
        decode_spec(data)


def any_of(plain: Any) -> st.SearchStrategy[Any]:
    """Generate copies of plain data in which one value is missing or replaced by another kind."""
    if isinstance(plain, dict):
        changed = [any_of(value).map(lambda new, key=key: plain | {key: new}) for key, value in plain.items()]
        dropped = [st.just({k: v for k, v in plain.items() if k != key}) for key in plain]
        return st.one_of(PLAIN, *changed, *dropped)
    return PLAIN | st.integers(-2, 2)


META = EpisodeMeta("x", "walk", 1, "rollout", (3, 4), 8)
RECORD = asdict(Record(META, "success", 70, 69, 2, 1234, "ab", 64, {"note": 1}))
ACTION = ArraySpec((3,), low=-1.0, high=1.0)
SPEC = TaskSpec("walk", {"o": ArraySpec((2,))}, ACTION, 20.0, 100, (1, 4), demonstrations=10).to_dict()


@given(any_of(RECORD).map(msgpack.packb))
def test_any_record_is_good_or_refused(data: bytes) -> None:
    try:
        record = decode_record(data)
    except CodecError:
        return
    assert repr(decode_record(encode_record(record))) == repr(record)  # by repr, because NaN != NaN
    assert all(type(n) is int and n > 0 for n in (record.length, record.chunks, record.bytes))
    assert {type(text) for text in (record.token, record.outcome, record.meta.task)} == {str}


@given(any_of(SPEC).map(msgpack.packb))
def test_any_spec_is_good_or_refused(data: bytes) -> None:
    try:
        spec = decode_spec(data)
    except CodecError:
        return
    assert repr(decode_spec(codec.encode_spec(spec))) == repr(spec)
    for array in spec.arrays().values():
        np.zeros(array.shape if max(array.shape, default=0) < 10 else (), array.dtype)


def test_spec_round_trip(spec: TaskSpec) -> None:
    assert decode_spec(codec.encode_spec(spec)) == spec
    assert decode_spec(codec.encode_spec(spec)).observation["position"] == ArraySpec((2,))
