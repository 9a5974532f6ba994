from pathlib import Path

import av
import numpy as np
from PIL import Image

from longview.monitoring.film import COLUMNS, GAP, TILE, write_sheet, write_video


def film(length: int, brightness: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """Make a film that gets brighter step by step."""
    return [np.full((*size, 3), brightness + 10 * step, np.uint8) for step in range(length)]


def test_a_video_has_every_frame_of_every_episode_in_order(tmp_path: Path) -> None:
    films = [film(5, 20), film(3, 150)]
    write_video(tmp_path / "out.mp4", films, hz=12.5)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12.5)
        seen = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert {frame.shape for frame in seen} == {(32, 48, 3)}
    expected = [frame.mean() for episode in films for frame in episode]
    np.testing.assert_allclose([frame.mean() for frame in seen], expected, atol=4)


def test_odd_sizes_lose_their_last_row_and_column(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", [film(2, 20, (31, 49))], hz=10)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width) == (30, 48)


def test_a_sheet_has_a_row_an_episode_from_its_first_to_its_last_frame(tmp_path: Path) -> None:
    films = [film(20, 0, (64, 64)), film(5, 100, (64, 64)), film(1, 200, (64, 64))]
    write_sheet(tmp_path / "out.png", films, hz=10)
    with Image.open(tmp_path / "out.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape[1] == COLUMNS * (TILE + GAP) + GAP
    height = (sheet.shape[0] - GAP) // len(films)
    for row, episode in enumerate(films):
        tiles = [
            sheet[GAP + row * height + 5, GAP + column * (TILE + GAP) + 5, 0] for column in range(COLUMNS)
        ]
        assert (tiles[0], tiles[-1]) == (episode[0][0, 0, 0], episode[-1][0, 0, 0])
        assert tiles == sorted(tiles)
        label = sheet[GAP + row * height + TILE : GAP + (row + 1) * height - GAP]
        assert label[:, :TILE].min() < 160  # a time is written there
