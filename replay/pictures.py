"""Pictures as JPEG: a fifth to an eighth of the bytes of zstd, with a loss, and decoded only where they are
used."""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from longview.replay.episode import Array, TaskSpec
from longview.replay.errors import CodecError

SMALLEST: Final = 256
"""Bytes that every JPEG has at least; it bounds how many a chunk may claim."""
QUALITY: Final = 95
"""Quality of the JPEG, 1 to 100."""


LARGEST_RAW: Final = 128 * 128
"""Pixels of the largest pictures of a lossy source that are stored exactly by default. Smaller pictures take
little room, and zstd decodes them five times as fast."""


@dataclass(frozen=True)
class Pictures:
    """Consecutive pictures of one camera that are not decoded yet."""

    frames: Sequence[Array]
    """JPEG bytes of each picture, (size,) uint8."""
    shape: tuple[int, ...]
    """Shape of the decoded pictures, (K, H, W, 3)."""
    dtype = np.dtype(np.uint8)
    """Dtype of the decoded pictures."""

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(frame.nbytes for frame in self.frames)


def stored_as_jpeg(spec: TaskSpec, lossy: Collection[str], rule: str) -> set[str]:
    """Return the names of the pictures that are stored as JPEG.

    Args:
        spec: the episode's task.
        lossy: names of pictures whose source has lost something already, as a video has.
        rule: the config's `pictures`.
    """
    images = {name: array.shape for name, array in spec.arrays().items() if array.is_image}
    large = {name for name, (height, width, _) in images.items() if height * width > LARGEST_RAW}
    return {"raw": set(), "jpeg": set(images), "auto": large & set(lossy)}[rule]


def encode_pictures(pictures: Array) -> list[bytes]:
    """Encode pictures (K, H, W, 3) uint8 as JPEG, one by one."""
    from PIL import Image

    frames = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
        frames.append(file.getvalue())
    return frames


def decode_pictures(frames: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Decode pictures to (K, H, W, 3) uint8.

    Args:
        frames: K pictures as `encode_pictures` makes them.
        shape: shape of one picture, (H, W, 3).

    Raises:
        CodecError: a frame is no JPEG of this shape, or is damaged.
    """
    from PIL import Image

    pictures = np.empty((len(frames), *shape), np.uint8)
    for picture, frame in zip(pictures, frames, strict=True):
        try:
            with Image.open(io.BytesIO(frame.data), formats=["JPEG"]) as opened:
                # Only the header is read so far. We write no progressive JPEG: it may take ages to decode.
                if (opened.mode, *opened.size[::-1], 3) != ("RGB", *shape) or opened.info.get("progressive"):
                    raise CodecError(f"found a JPEG of {opened.mode} {opened.size}, expected RGB {shape}")
                picture[...] = opened
        except CodecError:
            raise
        except Exception as error:  # forged bytes make Pillow raise errors of many kinds
            raise CodecError(f"picture is malformed: {error}") from None
    return pictures
