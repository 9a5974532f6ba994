"""Tests of what all formats share: recognition by path, import without duplicates, export and re-import."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from longview.replay.config import StoreConfig
from longview.replay.datasets.formats import WRITERS, open_source, recognise
from longview.replay.datasets.robomimic import write
from longview.replay.datasets.source import Source
from longview.replay.episode import ArraySpec, Episode, EpisodeMeta, TaskSpec, validate_episode
from longview.replay.errors import DatasetError
from longview.replay.store import EpisodeStore

SPEC = TaskSpec(
    name="stack",
    observation={
        "joints": ArraySpec((7,)),
        "corners": ArraySpec((4, 2)),
        "force": ArraySpec(()),
        "contact": ArraySpec((2,), "uint8", 0, 1),
        "front": ArraySpec((48, 64, 3), "uint8", 0, 255),
        "wrist": ArraySpec((33, 33, 3), "uint8", 0, 255),
    },
    action=ArraySpec((3,), low=-2.0, high=2.0),
    control_hz=15.0,
    max_steps=40,
    context_lengths=(1, 4, 16),
    demonstrations=25,
    chance=0.5,
)
LENGTHS = {"success": 9, "failure": 1, "wrong": 14}
EXTRAS = {
    "success": {"masks": ["train", "20_percent"], "tasks": ["stack the cubes"], "robot_type": "arm"},
    "failure": {"masks": ["valid"], "names": {"action": ["x", "y", "z"]}},
    "wrong": {},
}


def episodes() -> Iterator[Episode]:
    """Yield an episode of every outcome, with labels, smoothly moving pictures and values with all bits."""
    rng = np.random.default_rng(0)
    for index, (outcome, steps) in enumerate(LENGTHS.items()):
        arrays: dict[str, Any] = {}
        for name, spec in (SPEC.arrays() | {"expert_action": SPEC.action}).items():
            if len(spec.shape) == 3:
                height, width, _ = spec.shape
                rows, columns = np.mgrid[:height, :width]
                shades = [rows * 3 + columns + 40 * step + 20 * index for step in range(steps)]
                arrays[name] = np.stack([np.stack([s, s // 2, 255 - s], -1) % 256 for s in shades])
            else:
                arrays[name] = rng.uniform(0 if spec.dtype == "uint8" else -2, 2, (steps, *spec.shape))
            arrays[name] = arrays[name].astype(spec.dtype)
        arrays["controller"] = rng.integers(0, 3, steps, np.uint8)
        meta = EpisodeMeta(f"rollout.stack.{index:09d}", "stack", 100 + index, "rollout", (3, 7), 4)
        yield Episode(meta, outcome, arrays, EXTRAS[outcome])


@pytest.fixture
def stored(connect: Callable[..., EpisodeStore]) -> EpisodeStore:
    store = connect()
    store.register(SPEC)
    for episode in episodes():
        validate_episode(episode, SPEC)
        assert store.add(episode)
    return store


def exported(store: EpisodeStore, path: Path, format: str, *, lossless: bool = True) -> Source:
    WRITERS[format](path, SPEC, (store.read(id) for id in store.ids()), lossless)
    assert recognise(path) == format
    return open_source(path, "stack")


def assert_same(found: Episode, expected: Episode, but: tuple[str, ...] = ()) -> None:
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        if name not in but:
            np.testing.assert_array_equal(found.arrays[name], array, name, strict=True)
    assert (found.outcome, found.extras) == (expected.outcome, expected.extras)
    kept = {"id": found.meta.id, "source": "import"}
    assert found.meta == replace(expected.meta, **kept)


@pytest.mark.parametrize("format", WRITERS)
def test_what_is_exported_and_imported_again_is_the_same(
    stored: EpisodeStore, url: str, namespace: str, tmp_path: Path, format: str
) -> None:
    source = exported(stored, tmp_path / "data", format)
    assert source.spec == SPEC
    with closing(EpisodeStore.connect(url, f"{namespace}-again", StoreConfig())) as other:
        other.register(source.spec)
        for index in source.indices:
            assert other.add(source.read(index))
        for id, expected in zip(other.ids(), episodes(), strict=True):
            assert_same(other.read(id), expected)


def test_a_file_that_does_not_say_who_was_in_control_was_an_experts_or_a_policys(
    stored: EpisodeStore, tmp_path: Path
) -> None:
    exported(stored, tmp_path / "data.hdf5", "robomimic")
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        for demo in file["data"].values():
            del demo["controller"]
        del file["data/demo_2"].attrs["longview"]
    source = open_source(tmp_path / "data.hdf5", "stack")
    # Longview wrote into the first ones that a policy acted; of the last one nothing is known.
    controllers = [set(source.read(index).arrays["controller"].tolist()) for index in source.indices]
    assert controllers == [{0}, {0}, {1}]
    validate_episode(source.read(2), SPEC)


def test_a_controller_that_is_none_is_refused_by_place(stored: EpisodeStore, tmp_path: Path) -> None:
    exported(stored, tmp_path / "data.hdf5", "robomimic")
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        file["data/demo_0/controller"][4] = 7
    with pytest.raises(DatasetError, match=r"demo_0: controller must be 0 \(a policy\), 1 .*, not 7"):
        open_source(tmp_path / "data.hdf5", "stack").read(0)


def test_video_loses_little_and_nothing_else_does(stored: EpisodeStore, tmp_path: Path) -> None:
    source = exported(stored, tmp_path / "data", "lerobot", lossless=False)
    cameras = ("observation.front", "observation.wrist")
    # This order makes the reader seek; in ascending order it would only read on.
    for index in (2, 0, 1, 2):
        found, expected = source.read(index), list(episodes())[index]
        assert_same(found, expected, but=cameras)
        for name in cameras:
            away = np.abs(found.arrays[name].astype(int) - expected.arrays[name])
            assert np.median(away) <= 3, name
            # The neighbouring frame differs more, so no frame was mistaken for its neighbour.
            if found.length > 2:
                other = np.abs(found.arrays[name][1:].astype(int) - expected.arrays[name][:-1])
                assert np.median(away) < np.median(other), name


@pytest.mark.parametrize("format", WRITERS)
def test_ids_tell_data_sets_apart_and_imports_of_the_same_one_do_not(
    stored: EpisodeStore, tmp_path: Path, format: str
) -> None:
    one, again = (exported(stored, tmp_path / name, format) for name in ("one", "again"))
    ids = [one.id(index) for index in one.indices]
    assert [again.read(index).meta.id for index in again.indices] == ids
    assert [id.rpartition(".")[0] for id in ids] == [f"import.stack.{index:09d}" for index in range(3)]
    first = next(episodes())
    louder = replace(first, arrays={**first.arrays, "action": first.arrays["action"] / 2})
    WRITERS[format](tmp_path / "other", SPEC, [louder], True)
    assert open_source(tmp_path / "other", "stack").id(0) not in ids


def test_the_task_of_a_robot_without_simulator_is_what_its_data_tells(tmp_path: Path) -> None:
    buffer = zarr.open_group(tmp_path / "real.zarr", mode="w", zarr_format=2)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 20, 24, 3))
    for name, rows in {
        "data/camera0": frames.astype(np.uint8),
        "data/camera1": frames.astype(np.float32),
        "data/stage": np.arange(9),
        "data/action": np.linspace(-0.1, 0.3, 18).reshape(9, 2),
        "meta/episode_ends": np.array((3, 9)),
    }.items():
        buffer.create_array(name, data=rows, chunks=(4, *rows.shape[1:]))
    with pytest.raises(DatasetError, match="does not say how many steps a second has: give it by --hz"):
        open_source(tmp_path / "real.zarr", "pour")
    source = open_source(tmp_path / "real.zarr", "pour", hz=12.5)
    image = ArraySpec((20, 24, 3), "uint8", 0.0, 255.0)
    assert source.spec == TaskSpec(
        name="pour",
        observation={"camera0": image, "camera1": image, "stage": ArraySpec(())},
        action=ArraySpec((2,), low=float(np.float32(-0.1)), high=float(np.float32(0.3))),
        control_hz=12.5,
        max_steps=6,
        context_lengths=(1, 2, 4),
        demonstrations=2,
    )
    first, second = (source.read(index) for index in source.indices)
    validate_episode(second, source.spec)
    for name in ("camera0", "camera1"):
        np.testing.assert_array_equal(first.arrays[f"observation.{name}"], frames[:3])
        np.testing.assert_array_equal(second.arrays[f"observation.{name}"], frames[3:])
    np.testing.assert_array_equal(second.arrays["observation.stage"], np.arange(3, 9))
    np.testing.assert_array_equal(second.arrays["reward"], [0, 0, 0, 0, 0, 1])


def test_whole_numbers_that_would_be_rounded_are_refused(tmp_path: Path) -> None:
    buffer = zarr.open_group(tmp_path / "ticks.zarr", mode="w", zarr_format=2)
    ticks = np.array((5, 2**24, 2**24 + 1))
    for name, rows in {"data/ticks": ticks, "data/action": np.ones((3, 1)), "meta/episode_ends": [3]}.items():
        buffer.create_array(name, data=np.asarray(rows))
    source = open_source(tmp_path / "ticks.zarr", "count", hz=1)
    with pytest.raises(DatasetError, match=r"episode 0 .*data/ticks holds values that float32 cannot hold"):
        source.read(0)


def test_a_known_task_takes_what_it_needs_and_refuses_what_does_not_fit(
    stored: EpisodeStore, tmp_path: Path
) -> None:
    path = tmp_path / "data.hdf5"
    exported(stored, path, "robomimic")
    needed = replace(SPEC, observation={"joints": SPEC.observation["joints"]})
    assert open_source(path, "stack", needed).read(0).arrays.keys() == {
        *("observation.joints", "action", "reward", "controller", "expert_action")
    }

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(DatasetError, match=message):
            open_source(path, "stack", replace(SPEC, **changes)).read(0)

    refused("was recorded at 15 Hz, but stack has 20 control steps", control_hz=20.0)
    refused("there is no observation.lidar, from which stack has", observation={"lidar": ArraySpec((3,))})
    refused(
        r"demo_0: obs/joints is \[9, 7\], which gives no observation.joints of \[9, 6\]",
        observation={"joints": ArraySpec((6,))},
    )
    refused(
        r"demo_0: actions must lie in \[-1, 1\], not -[\d.]+ to",
        action=ArraySpec((3,), low=-1.0, high=1.0),
    )


@pytest.mark.parametrize("name", ["nothing", "text.hdf5", "folder"])
def test_what_is_no_data_set_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(DatasetError, match=f"{name}.*") as raised:
        recognise(tmp_path / name)
    expected = (
        "there is no file or folder" if name == "nothing" else "is no data set of a known format: expected"
    )
    assert expected in str(raised.value)


def test_a_file_is_recognised_by_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "no_suffix", SPEC, episodes(), lossless=True)
    assert recognise(tmp_path / "no_suffix") == "robomimic"
    with h5py.File(tmp_path / "no_suffix", "a") as file:
        del file["data"]
    with pytest.raises(DatasetError, match="is not a robomimic file"):
        open_source(tmp_path / "no_suffix", "stack")
