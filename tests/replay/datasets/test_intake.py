"""Tests of imports: episodes that are larger than the memory they may take, and episodes that break off."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from longview.replay.config import StoreConfig
from longview.replay.datasets import lerobot_writer, source
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.source import OpenEpisode, Source
from longview.replay.episode import Array, ArraySpec, Episode, EpisodeMeta, TaskSpec
from longview.replay.errors import DatasetError, StoreFull
from longview.replay.store import EpisodeStore

HZ, HEIGHT, WIDTH = 30, 480, 640
CAMERAS = ("front", "wrist")


def task(height: int, width: int) -> TaskSpec:
    image = ArraySpec((height, width, 3), "uint8", 0.0, 255.0)
    return TaskSpec(
        name="pour",
        observation={"state": ArraySpec((7,)), **dict.fromkeys(CAMERAS, image)},
        action=ArraySpec((7,), low=-1.0, high=1.0),
        control_hz=HZ,
        max_steps=10_000,
        context_lengths=(1, 2),
        demonstrations=1,
    )


def moving_picture(steps: int, height: int, width: int) -> Array:
    """Return a video (steps, height, width, 3) uint8 of a camera that moves down a painted wall, as a view
    that takes little memory."""
    rows, columns = np.mgrid[: height + steps - 1, :width]
    shades = [np.sin(rows / 23) + np.cos(columns / 31), np.sin((rows + columns) / 47), np.cos(rows / 61)]
    wall = np.stack([127 + 60 * shade for shade in shades], -1).astype(np.uint8) // 16 * 16
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(wall, height, axis=0), -1, 1)


def long_episode(steps: int, height: int = HEIGHT, width: int = WIDTH) -> Episode:
    numbers = np.linspace(-1, 1, 7 * steps, dtype=np.float32).reshape(steps, 7)
    pictures = moving_picture(steps, height, width)
    arrays = {
        "observation.state": numbers,
        **{f"observation.{camera}": pictures for camera in CAMERAS},
        "action": numbers,
        "reward": np.zeros(steps, np.float32),
        "controller": np.ones(steps, np.uint8),
    }
    return Episode(EpisodeMeta("demo.pour.000000000", "pour", 0, "demo"), "success", arrays)


def as_lerobot(path: Path, episode: Episode, lossless: bool = False) -> None:
    shape = episode.arrays[f"observation.{CAMERAS[0]}"].shape
    lerobot_writer.write(path, task(*shape[1:3]), [episode], lossless)


def as_images(path: Path, episode: Episode) -> None:
    as_lerobot(path, episode, lossless=True)


def as_robomimic(path: Path, episode: Episode) -> None:
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo.attrs["num_samples"] = episode.length
        demo["actions"] = episode.arrays["action"]
        for key in ("state", *CAMERAS):
            rows = episode.arrays[f"observation.{key}"]
            array = demo.create_dataset(
                f"obs/{key}", rows.shape, rows.dtype, chunks=(1, *rows.shape[1:]), compression="lzf"
            )
            for step, row in enumerate(rows):
                array[step] = row


def as_zarr(path: Path, episode: Episode) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("meta/episode_ends", data=np.array([episode.length]))
    for key in ("state", *CAMERAS, "action"):
        rows = episode.arrays["action" if key == "action" else f"observation.{key}"]
        array = group.create_array(
            f"data/{key}", shape=rows.shape, dtype=rows.dtype, chunks=(8, *rows.shape[1:])
        )
        for step in range(0, len(rows), 8):
            array[step : step + 8] = rows[step : step + 8]


WRITERS: dict[str, Callable[[Path, Episode], None]] = {
    "video": as_lerobot,
    "images": as_images,
    "robomimic": as_robomimic,
    "zarr": as_zarr,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_an_episode_is_read_in_blocks(
    kind: str, tmp_path: Path, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[kind](tmp_path / "data", long_episode(50, 32, 48))
    whole = open_source(tmp_path / "data", "pour", task(32, 48)).read(0)
    monkeypatch.setattr(source, "BLOCK_BYTES", 70_000)
    opened = open_source(tmp_path / "data", "pour", task(32, 48))
    blocks = list(opened.open(0).blocks)
    assert {sum(array.nbytes for array in block.values()) <= 70_000 for block in blocks} == {True}
    assert [len(block["action"]) for block in blocks] == [7] * 7 + [1]
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), array)
    assert whole.arrays["reward"].tolist() == [0.0] * 49 + [float(kind not in ("video", "images"))]

    store: EpisodeStore = connect()
    store.register(task(32, 48))
    assert list(bring_in(opened, [0], store)) == [True]
    stored = store.read(store.ids()[0])
    assert (stored.meta, stored.outcome, stored.extras) == (whole.meta, whole.outcome, whole.extras)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(stored.arrays[name], array)


@pytest.mark.parametrize("kind", WRITERS)
def test_pictures_are_resized_block_by_block(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[kind](tmp_path / "data", long_episode(20, 32, 48))
    small = Choice(size=(24, 16))
    whole = open_source(tmp_path / "data", "pour", hz=HZ, choice=small).read(0)
    monkeypatch.setattr(source, "BLOCK_BYTES", 70_000)
    opened = open_source(tmp_path / "data", "pour", hz=HZ, choice=small)
    blocks = list(opened.open(0).blocks)
    # The pictures of a block are as large as in the data set when they are read.
    assert [len(block["action"]) for block in blocks] == [7, 7, 6]
    assert whole.arrays["observation.wrist"].shape == (20, 16, 24, 3)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), array)


def test_pictures_with_channels_first_are_converted_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = long_episode(20, 32, 48)
    turned = {
        name: np.moveaxis(rows, -1, 1).astype(np.float32) if rows.ndim == 4 else rows
        for name, rows in episode.arrays.items()
    }
    as_zarr(tmp_path / "data", replace(episode, arrays=turned))
    monkeypatch.setattr(source, "BLOCK_BYTES", 70_000)
    opened = open_source(tmp_path / "data", "pour", hz=HZ)
    blocks = list(opened.open(0).blocks)
    assert [len(block["action"]) for block in blocks] == [1] * 20  # floats take four times the bytes
    for camera in CAMERAS:
        found = np.concatenate([block[f"observation.{camera}"] for block in blocks])
        np.testing.assert_array_equal(found, episode.arrays[f"observation.{camera}"])


def test_an_array_with_more_steps_than_the_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_robomimic(tmp_path / "data", long_episode(20, 32, 48))
    with h5py.File(tmp_path / "data", "a") as file:
        demo = file["data/demo_0"]
        del demo.attrs["num_samples"]
        pictures = demo[f"obs/{CAMERAS[0]}"][()]
        del demo[f"obs/{CAMERAS[0]}"]
        demo[f"obs/{CAMERAS[0]}"] = np.concatenate([pictures, pictures[-1:]])
    monkeypatch.setattr(source, "BLOCK_BYTES", 70_000)
    opened = open_source(tmp_path / "data", "pour", hz=HZ)
    with pytest.raises(DatasetError, match=rf"{CAMERAS[0]} is \[21, .* expected \[20, .*most of its arrays"):
        opened.read(0)


def test_an_import_that_is_stopped_leaves_no_task(tmp_path: Path, connect: Any) -> None:
    as_zarr(tmp_path / "data", long_episode(20, 32, 48))
    opened, store = open_source(tmp_path / "data", "pour", hz=HZ), connect()

    class Stopped(Source):
        def open(self, index: int) -> OpenEpisode:
            opening = super().open(index)
            return replace(opening, blocks=self.stopped(opening.blocks))

        def stopped(self, blocks: Iterator[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
            yield next(blocks)
            raise KeyboardInterrupt

    stopped = Stopped(opened.reader, opened.spec, opened.columns, opened.indices)
    with pytest.raises(KeyboardInterrupt):
        list(bring_in(stopped, [0], store))
    store.flush()
    assert "pour" not in store.tasks()
    assert store.ids() == []
    assert list(bring_in(opened, [0], store)) == [True]


@pytest.mark.parametrize("kind", ["video", "images"])
def test_pictures_lose_something_only_if_they_come_from_a_video(
    kind: str, tmp_path: Path, connect: Any
) -> None:
    WRITERS[kind](tmp_path / "data", long_episode(6, 144, 160))
    opened = open_source(tmp_path / "data", "pour", task(144, 160))
    store: EpisodeStore = connect()
    store.register(task(144, 160))
    list(bring_in(opened, [0], store))
    found, read = store.read(store.ids()[0]).arrays, opened.read(0).arrays
    for name, array in read.items():
        lost = kind == "video" and name.removeprefix("observation.") in CAMERAS
        assert np.array_equal(found[name], array) != lost
        assert np.abs(found[name].astype(float) - array).mean() < 2


def test_an_episode_that_breaks_off_leaves_nothing(
    tmp_path: Path, connect: Any, redis: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_zarr(tmp_path / "data", long_episode(40, 32, 48))
    (tmp_path / "data/data/wrist/4.0.0.0").unlink()
    monkeypatch.setattr(source, "BLOCK_BYTES", 70_000)
    opened = open_source(tmp_path / "data", "pour", task(32, 48), hz=HZ)
    store: EpisodeStore = connect()
    store.register(task(32, 48))
    with pytest.raises(DatasetError, match=r"data/wrist: there is no chunk 4\.0\.0\.0"):
        list(bring_in(opened, [0], store))
    assert list(bring_in(opened, [0], store, skip_bad=True)) == [False]
    assert len(opened.account.bad) == 1
    store.flush()
    assert store.ids() == []
    assert list(redis.scan_iter(f"{{{namespace}:*:chunks:*", count=10_000)) == []


@pytest.mark.parametrize("kind", ["video", "zarr"])
def test_an_import_that_will_not_fit_is_refused_before_it_begins(
    kind: str, tmp_path: Path, connect: Any, url: str, namespace: str
) -> None:
    WRITERS[kind](tmp_path / "data", long_episode(64, 144, 160))
    opened = open_source(tmp_path / "data", "pour", task(144, 160), hz=HZ)
    store: EpisodeStore = connect()
    store.register(opened.spec)
    assert list(bring_in(opened, [0], store)) == [True]
    size = store.stats().total.bytes
    with closing(EpisodeStore.connect(url, f"{namespace}-b", StoreConfig(byte_budget=size // 2))) as small:
        small.register(opened.spec)
        with pytest.raises(
            StoreFull, match=r"^the new episodes \(1\) need about .* replay\.byte_budget leaves"
        ) as told:
            list(bring_in(opened, [0], small))
        assert small.ids() == []
        needed = float(str(told.value).split("about ")[1].split(" MB")[0]) * 1e6
        assert 0.7 * size < needed < 1.4 * size
    tight: EpisodeStore = connect(byte_budget=size)
    assert list(bring_in(opened, [0], tight)) == [False], "what is there needs no room"


MEASURED = """
import sys
from pathlib import Path
from longview.replay.config import StoreConfig
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.intake import bring_in
from longview.replay.store import EpisodeStore

store = EpisodeStore.connect(sys.argv[2], sys.argv[3], StoreConfig())
source = open_source(Path(sys.argv[1]), "pour", hz=30)
store.register(source.spec)
assert list(bring_in(source, source.indices, store)) == [True]
store.close()
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""
"""Script that imports a data set and prints the peak of its memory in MiB."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["video", "images", "robomimic", "zarr"])
def test_thirty_seconds_of_two_cameras_are_imported_in_300_mib(
    kind: str, tmp_path: Path, url: str, namespace: str
) -> None:
    WRITERS[kind](tmp_path / "data", long_episode(30 * HZ))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "data"), url, namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert int(done.stdout) <= 300
