"""Videos and contact sheets of episodes."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

Film = Sequence[Any]
"""Frames of one episode, (H, W, 3) uint8 each: one before every control step, and one at the end."""

COLUMNS = 8
"""Frames of an episode that a contact sheet shows."""
TILE, GAP = 160, 6
"""Side of a frame on a contact sheet, and distance between frames, in pixels."""


def write_video(file: Path, films: Sequence[Film], hz: float) -> None:
    """Write episodes one after the other as an mp4 that browsers play (H.264).

    Args:
        file: the mp4 to write.
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
    """Choose the frames of an episode that a contact sheet shows: evenly from the first to the last."""
    return [round(column * (frames - 1) / (COLUMNS - 1)) for column in range(COLUMNS)]


def write_sheet(file: Path | BinaryIO, films: Sequence[Film], hz: float) -> None:
    """Draw a contact sheet: a row for each episode, with moments from its first to its last frame.

    Args:
        file: the PNG to write.
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
