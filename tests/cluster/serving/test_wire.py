"""Messages: what openpi's client writes and reads, and bytes that nobody should write."""

import pickle
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from longview.cluster.serving.wire import DTYPES, WireError, decode, encode


@given(
    hnp.arrays(
        st.sampled_from(sorted(set(DTYPES.values()), key=str)),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
@settings(max_examples=40, deadline=None)
def test_arrays_go_both_ways(array: np.ndarray[Any, Any]) -> None:
    came = decode(msgpack_numpy.packb({"x": array, "y": {"z": array}}))
    for found in (came["x"], came["y"]["z"], msgpack_numpy.unpackb(encode({"x": array}))["x"]):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)


def test_plain_values_and_scalars_come_as_they_are() -> None:
    message = {"prompt": "fold it", "n": np.float32(0.5), "b": np.bool_(True), "k": [1, 2.5, None]}
    assert decode(msgpack_numpy.packb(message)) == {
        "prompt": "fold it",
        "n": 0.5,
        "b": True,
        "k": [1, 2.5, None],
    }


def array(**changes: Any) -> bytes:
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]}
    return bytes(msgpack.packb({"x": {key.encode(): value for key, value in (fields | changes).items()}}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb(1) + b"x", "not msgpack"),
        (msgpack.packb([1]), "a message is a map with texts as keys, not a list"),
        (msgpack.packb({b"k": 1}), "a message is a map with texts as keys"),
        (msgpack.packb({"k": msgpack.ExtType(4, b"")}), "no extension type 4"),
        (msgpack.packb({"k": list(range(2000))}), "exceeds max_array_len"),
        (msgpack.packb({"k": "x" * 70000}), "exceeds max_str_len"),
        (b"\x81\xa1k" + b"\x91" * 3000, "not msgpack"),
        (pickle.dumps({"x": 1}), "not msgpack"),
        (array(dtype="|O8"), "has one of the dtypes"),
        (array(dtype="<c8"), "has one of the dtypes"),
        (array(dtype="|V8"), "has one of the dtypes"),
        (array(dtype="<M8[s]", shape=[1]), "has one of the dtypes"),
        (array(dtype=7), "has one of the dtypes"),
        (array(dtype="i4,(1000000000,)f8"), "has one of the dtypes"),
        (array(data="12345678"), "data are bytes, not a str"),
        (array(data=pickle.dumps(np.zeros(1))), "has 8 bytes, not"),
        (array(shape=[3]), r"an array <f4\[3\] has 12 bytes, not 8"),
        (array(shape=[-1, -2]), "has 8 bytes, not 8"),
        (array(shape=[0, 2**62, 2**62], data=b""), "larger than any array"),
        (array(shape=[1] * 7 + [2, 1]), "a list of at most 8 whole numbers"),
        (array(shape=[True, 2]), "a list of at most 8 whole numbers"),
        (array(shape=2), "a list of at most 8 whole numbers"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1"}}), "a NumPy scalar holds a number"),
    ],
)  # fmt: skip
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(data)


LEAVES = st.sampled_from(
    [None, True, -1, 2**64 - 1, 0.5, float("nan"), "", "<f4", b"", bytes(8), [], [2], {}]
)
"""Values of all types that msgpack can hold."""
DAMAGED = st.fixed_dictionaries(
    {b"__ndarray__": LEAVES},
    optional={
        b"data": st.binary(max_size=32) | LEAVES,
        b"dtype": st.sampled_from([*DTYPES, "|O8"]) | LEAVES,
        b"shape": st.lists(st.integers(-2, 9), max_size=4) | LEAVES,
    },
)
"""Maps that look like arrays."""


@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(max_size=3), LEAVES | DAMAGED | st.lists(DAMAGED, max_size=2)).map(
        msgpack.packb
    )
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    with suppress(WireError):
        assert all(isinstance(key, str) for key in decode(data))
