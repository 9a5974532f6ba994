"""Episodes to look at: as a video, and as a contact sheet.

Each is a sequence of frames, arrays (H, W, 3) of uint8: one before every control step, and one at the end.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

Film = Sequence[Any]

COLUMNS = 8
TILE, GAP = 160, 6
"""Pixels a side of a frame on a contact sheet, and between frames."""


def write_video(file: Path, films: Sequence[Film], hz: float) -> None:
    """One episode after the other, as H.264 in an mp4 that browsers play.

    Args:
        file: where it goes.
        films: the episodes; all frames have the same size.
        hz: frames per second.
    """
    import av

    height, width = (side // 2 * 2 for side in films[0][0].shape[:2])  # the codec takes even sizes only
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(hz).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for film in films:
            for frame in film:
                picture = av.VideoFrame.from_ndarray(frame[:height, :width].copy())
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def moments(frames: int) -> list[int]:
    """Which of an episode's frames a contact sheet shows."""
    return [round(column * (frames - 1) / (COLUMNS - 1)) for column in range(COLUMNS)]


def write_sheet(file: Path | BinaryIO, films: Sequence[Film], hz: float) -> None:
    """A picture with a row for each episode: moments from its first to its last frame, and when they were.

    Args:
        file: where the PNG goes.
        films: the episodes.
        hz: frames per second.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    label = 18
    step = TILE + GAP
    sheet = Image.new("RGB", (COLUMNS * step + GAP, len(films) * (step + label) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, film in enumerate(films):
        for column, index in enumerate(moments(len(film))):
            x, y = GAP + column * step, GAP + row * (step + label)
            sheet.paste(Image.fromarray(film[index]).resize((TILE, TILE)), (x, y))
            draw.text((x, y + TILE + 2), f"{index / hz:.1f} s", "dimgray", font)
    sheet.save(file, "PNG")
