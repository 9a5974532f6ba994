"""Conversion of a data set's arrays to what an episode holds: pictures as (H, W, 3) uint8, numbers as
float32.

Legend: T steps, H height, W width, C channels. A layout names the axes of one step's picture, such as `CHW`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from longview.replay.episode import Array
from longview.replay.errors import DatasetError

CHANNELS: Final = (1, 3, 4)
"""Numbers of channels that can be converted: grey, red-green-blue, and these with alpha."""
SMALLEST: Final = 16
"""Smallest side in pixels by which an array counts as a picture, whatever the order of its axes."""
COARSE: Final = 0.01
"""Share of a component's range. A larger rounding error may hide what the component says."""
NEGLIGIBLE: Final = 1e-4
"""Rounding error that is never too large, in the data's units. Policies take a component whose range is
narrower as constant."""


def layout_of(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Return the layout by which an array holds one picture a step: `HWC`, `CHW`, `HW`; empty if it does not.

    Args:
        shape: shape of one step.
        dtype: dtype of the values. Floats may be pictures as well; without an axis of channels they are not.
    """
    if len(shape) == 3:
        if shape[2] in CHANNELS and min(shape[:2]) >= SMALLEST:
            return "HWC"
        if shape[0] in CHANNELS and min(shape[1:]) >= SMALLEST:
            return "CHW"
        return "HWC" if shape[2] == 3 and dtype == np.uint8 else ""
    return "HW" if len(shape) == 2 and dtype.kind == "u" and min(shape) >= SMALLEST else ""


def picture_problem(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Say why an array that holds pictures cannot be converted; empty if it can, or holds none."""
    if layout_of(shape, dtype):
        if dtype.kind == "u" and dtype.itemsize > 1:
            return f"holds pictures of {8 * dtype.itemsize} bits (depth?), of which 8 bits cannot hold enough"
        return "" if dtype.kind in "fiu" else f"holds pictures of {dtype}"
    stacked = len(shape) > 3 and layout_of(shape[-3:], dtype)
    if stacked or (dtype.kind == "u" and sum(side >= SMALLEST for side in shape) > 1):
        return "holds several pictures a step, or channels of an unknown kind"
    return ""


def picture_shape(shape: Sequence[int], layout: str, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return the shape (H, W, 3) of a step's picture after `as_rgb`."""
    height, width = shape[layout.index("H") :][:2]
    return (height, width, 3) if size is None else (size[1], size[0], 3)


def picture_rules(
    shape: Sequence[int], dtype: np.dtype[Any], layout: str, size: tuple[int, int] | None
) -> list[str]:
    """Say what `as_rgb` does to pictures, for people."""
    channels = shape[layout.index("C")] if "C" in layout else 1
    rules = {
        "channels moved last": layout == "CHW",
        "grey repeated in three channels": channels == 1,
        "alpha left out": channels == 4,
        f"{dtype} as uint8": dtype != np.uint8,
        "resized": size is not None,
    }
    return [rule for rule, applies in rules.items() if applies]


def as_rgb(where: str, rows: Array, layout: str, size: tuple[int, int] | None = None) -> Array:
    """Convert pictures to (T, H, W, 3) uint8.

    Args:
        where: file and array, for the error.
        rows: the pictures, (T, ...).
        layout: layout of one step.
        size: width and height to resize to; None: as they are.

    Raises:
        DatasetError: a value is not a whole number of 0 to 255.
    """
    with np.errstate(invalid="ignore"):
        pixels = rows.astype(np.uint8, copy=False)
    if pixels is not rows and not np.array_equal(pixels, rows):
        raise DatasetError(
            f"{where} has the shape of pictures, but holds more than whole numbers of 0 to 255"
        )
    if layout == "CHW":
        pixels = np.moveaxis(pixels, 1, -1)
    elif layout == "HW":
        pixels = pixels[..., None]
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    if size is not None and len(pixels):
        pixels = np.stack([_resized(picture, size) for picture in pixels])
    return np.ascontiguousarray(pixels)


def as_float32(where: str, rows: Array) -> tuple[Array, Array]:
    """Convert numbers to float32.

    Returns:
        The numbers, and for each component (...) of a step the largest error that rounding makes.

    Raises:
        DatasetError: a value is too large for float32.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(array).all():
        raise DatasetError(f"{where} holds values that float32 cannot hold, {rows.min():g} to {rows.max():g}")
    if rows.dtype == np.float32 or not len(rows):
        return array, np.zeros(rows.shape[1:])
    return array, np.abs(rows.astype(np.float64) - array).max(axis=0)


def coarseness(where: str, rows: Array) -> str:
    """Say why float32 is too coarse for numbers (T, ...); empty if it is not.

    Raises:
        DatasetError: a value is too large for float32.
    """
    _, error = as_float32(where, rows)
    extent = np.ptp(rows.astype(np.float64), axis=0)
    coarse = (error > NEGLIGIBLE) & (error > COARSE * extent)
    if not coarse.any():
        return ""
    return (
        f"float32 would round its values by up to {error[coarse].max():g}, "
        f"while they extend over {extent[coarse].max():g}"
    )


def _resized(picture: Array, size: tuple[int, int]) -> Array:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
