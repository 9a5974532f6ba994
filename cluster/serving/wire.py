"""Messages between a robot and the server: msgpack, in which openpi's clients write an array as a map.

An array is {b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [n, ...]}. A NumPy scalar is
{b"__npgeneric__": true, b"data": number, b"dtype": ...}. Nothing is unpickled, and a dtype is looked up in a
table.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import numpy as np

from longview.replay.episode import Array

MAX_DIMS: Final = 8
"""Most axes of an array."""
MAX_ENTRIES: Final = 1024
"""Most entries of a map or list of a message."""
MAX_TEXT: Final = 1 << 16
"""Longest text of a message in bytes, such as a prompt that comes with an observation."""
DTYPES: Final = {
    dtype.str: dtype
    for name in "?bhilqBHILQefd"
    for dtype in (np.dtype(name), np.dtype(name).newbyteorder(">"))
}
"""Dtypes that an array may have, by their names on the wire: truth values, integers, and floats of 2, 4 and 8
bytes."""


class WireError(ValueError):
    """Bytes that are no message; the error says why."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Encode a message of plain values and arrays."""
    packed: bytes = msgpack.packb(message, default=_plain)
    return packed


def decode(data: bytes) -> dict[str, Any]:
    """Decode a message as a map of texts to plain values and read-only arrays.

    Raises:
        WireError: the bytes are no message, or exceed a limit.
    """
    try:
        message = msgpack.unpackb(
            data,
            object_hook=_value,
            ext_hook=_refuse,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_str_len=MAX_TEXT,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError(f"not msgpack within the limits: {error or type(error).__name__}") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError(f"a message is a map with texts as keys, not a {type(message).__name__}")
    return message


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a message holds no {type(value).__name__}")
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _value(found: dict[Any, Any]) -> Any:
    """Return what a map stands for: an array, a number, or itself."""
    if b"__ndarray__" in found:
        return _array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        number = found.get(b"data")
        if not isinstance(number, bool | int | float):
            raise WireError(f"a NumPy scalar holds a number, not a {type(number).__name__}")
        return number
    return found


def _array(data: object, dtype: object, shape: object) -> Array:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WireError(f"an array has one of the dtypes {', '.join(DTYPES)}, not {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(type(side) is int for side in shape):
        raise WireError(f"an array's shape is a list of at most {MAX_DIMS} whole numbers, not {shape!r:.80}")
    if not isinstance(data, bytes):
        raise WireError(f"an array's data are bytes, not a {type(data).__name__}")
    size = DTYPES[dtype].itemsize
    for side in shape:
        size *= side
    if size != len(data) or min(shape, default=0) < 0:
        raise WireError(f"an array {dtype}{shape} has {size} bytes, not {len(data)}")
    try:
        return np.ndarray(shape, DTYPES[dtype], data)
    except ValueError:
        raise WireError(f"an array {dtype}{shape} is larger than any array") from None


def _refuse(code: int, data: bytes) -> Any:
    raise WireError(f"a message holds no extension type {code}")
