"""Videos that hold the pictures of many episodes one after the other, written and read with PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import RATE_TOLERANCE
from longview.replay.episode import Array
from longview.replay.errors import DatasetError

CODEC: Final = "libx264"
"""Encoder of the videos."""
OPTIONS: Final = {"crf": "18", "g": "2", "bf": "0"}
"""Options of the encoder: loss that is hardly visible, and every second frame a key frame, for fast
seeking."""


class VideoWriter:
    """Writer of pictures (H, W, 3) uint8 as H.264."""

    def __init__(self, file: Path, height: int, width: int, hz: float) -> None:
        """Begin a video of `hz` frames per second."""
        import av

        self._container = av.open(str(file), "w", format="mp4")
        rate = frame_rate(hz)
        self._stream: Any = self._container.add_stream(CODEC, rate, options=OPTIONS)
        self._stream.width, self._stream.height = width, height
        # Every player reads yuv420p, which halves the resolution of colours and so needs even sides.
        self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        # Seconds per frame, kept here because the stream changes its time base at the first frame.
        self._duration = 1 / rate
        self.pix_fmt: str = self._stream.pix_fmt
        """Pixel format of the video."""
        self.frames = 0
        """Number of frames so far."""
        self.bytes = 0
        """Encoded bytes so far."""

    def add(self, pictures: Array) -> None:
        """Append the pictures of an episode, (T, H, W, 3) uint8."""
        import av

        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._duration
            if index == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        """Write the remaining frames and complete the file, which cannot be read before."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
            self._container.mux(packet)


class VideoReader:
    """Reader of pictures from a video. Reading on from the last picture is fastest."""

    def __init__(self, file: Path) -> None:
        """Open a video.

        Raises:
            DatasetError: the file does not exist, or is not a video.
        """
        import av

        if not file.exists():
            raise DatasetError(f"there is no video {file}")
        try:
            self._container = av.open(str(file))
            self._stream: Any = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"  # decode following frames on other cores
        except (av.FFmpegError, IndexError) as error:
            raise DatasetError(f"video {file} is damaged or cut short: {error}") from None
        self.file = file
        self._hz = float(self._stream.average_rate or 0)
        self._frames: Iterator[Any] = iter(())
        self._next = -1.0

    def read(self, start: float, steps: int, hz: float) -> Array:
        """Read consecutive pictures, (steps, H, W, 3) uint8.

        Args:
            start: time of the first picture, in seconds.
            steps: number of pictures.
            hz: pictures per second.

        Raises:
            DatasetError: the video has another rate, is too short, or is damaged.
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
    """Return a rate as the fraction that a video file holds."""
    return Fraction(hz).limit_denominator(1001)
