"""Pictures as video, a file with many episodes end to end; by PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import RATE_TOLERANCE
from longview.replay.episode import Array
from longview.replay.errors import DatasetError

CODEC: Final = "libx264"
OPTIONS: Final = {"crf": "18", "g": "2", "bf": "0"}
"""Hardly visible loss, and a key frame at every second frame, so that any frame is found fast."""


class VideoWriter:
    """Writes pictures, (H, W, 3) of uint8, as H.264."""

    def __init__(self, file: Path, height: int, width: int, hz: float) -> None:
        import av

        self._container = av.open(str(file), "w", format="mp4")
        rate = frame_rate(hz)
        self._stream: Any = self._container.add_stream(CODEC, rate, options=OPTIONS)
        self._stream.width, self._stream.height = width, height
        # Colours at half the resolution, as every player takes them, want even sides.
        self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        self._duration = 1 / rate  # of a frame; the stream's own unit changes once it is written to
        self.pix_fmt: str = self._stream.pix_fmt
        self.frames = 0
        self.bytes = 0

    def add(self, pictures: Array) -> None:
        """Append an episode's, (T, H, W, 3)."""
        import av

        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._duration
            if index == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        """Write what is left; a file that is not closed is none."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
            self._container.mux(packet)


class VideoReader:
    """Reads pictures; fastest when what is asked for next follows what was read last."""

    def __init__(self, file: Path) -> None:
        """Open it.

        Raises:
            DatasetError: there is no video in it, or no such file.
        """
        import av

        if not file.exists():
            raise DatasetError(f"there is no video {file}")
        try:
            self._container = av.open(str(file))
            self._stream: Any = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise DatasetError(f"video {file} is damaged or cut short: {error}") from None
        self.file = file
        self._hz = float(self._stream.average_rate or 0)
        self._frames: Iterator[Any] = iter(())
        self._next = -1.0

    def read(self, start: float, steps: int, hz: float) -> Array:
        """So many pictures from a time on, (steps, H, W, 3) of uint8.

        Args:
            start: of the first, in seconds.
            steps: how many.
            hz: how many of them a second has.

        Raises:
            DatasetError: the video has another rate, ends before, or is damaged.
        """
        import av

        if self._hz and abs(self._hz / hz - 1) > RATE_TOLERANCE:
            raise DatasetError(f"video {self.file} has {self._hz:g} frames a second, expected {hz:g}")
        try:
            if abs(self._next - start) > 0.5 / hz:
                self._container.seek(int(start / self._stream.time_base), stream=self._stream)
                self._frames = self._container.decode(self._stream)
            pictures: list[Array] = []
            for frame in self._frames:
                if frame.time < start - 0.5 / hz:
                    continue
                expected = start + len(pictures) / hz
                if abs(frame.time - expected) > 0.5 / hz:
                    raise DatasetError(
                        f"video {self.file} has no frame at {expected:.3f} s, but at {frame.time:.3f} s"
                    )
                pictures.append(frame.to_ndarray(format="rgb24"))
                if len(pictures) == steps:
                    self._next = frame.time + 1 / hz
                    return np.stack(pictures)
        except av.FFmpegError as error:
            raise DatasetError(f"video {self.file} is damaged: {error}") from None
        raise DatasetError(
            f"video {self.file} ends after {len(pictures)} of {steps} frames from {start:.3f} s"
        )

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def frame_rate(hz: float) -> Fraction:
    """A rate as video files hold it."""
    return Fraction(hz).limit_denominator(1001)
