"""Tests of what all formats share: recognition by path, import without duplicates, export and re-import."""

import json
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
from longview.replay.datasets.formats import open_source, recognise, writers
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.robomimic import write
from longview.replay.datasets.source import Source
from longview.replay.episode import OPTIONAL, ArraySpec, Episode, EpisodeMeta, TaskSpec, validate_episode
from longview.replay.errors import DatasetError, StoreFull
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
        for name, spec in SPEC.arrays(OPTIONAL).items():
            if len(spec.shape) == 3:
                height, width, _ = spec.shape
                rows, columns = np.mgrid[:height, :width]
                shades = [rows * 3 + columns + 40 * step + 20 * index for step in range(steps)]
                arrays[name] = np.stack([np.stack([s, s // 2, 255 - s], -1) % 256 for s in shades])
            else:
                arrays[name] = rng.uniform(0 if spec.dtype == "uint8" else -2, 2, (steps, *spec.shape))
            arrays[name] = arrays[name].astype(spec.dtype)
        arrays["controller"] = rng.integers(0, 3, steps, np.uint8)
        arrays["plan_step"] = rng.integers(0, 256, steps, np.uint8)
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
    writers()[format](path, SPEC, (store.read(id) for id in store.ids()), lossless)
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


@pytest.mark.parametrize("format", writers())
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


@pytest.mark.parametrize("format", writers())
def test_ids_tell_data_sets_apart_and_imports_of_the_same_one_do_not(
    stored: EpisodeStore, tmp_path: Path, format: str
) -> None:
    one, again = (exported(stored, tmp_path / name, format) for name in ("one", "again"))
    ids = [one.id(index) for index in one.indices]
    assert [again.read(index).meta.id for index in again.indices] == ids
    assert [id.rpartition(".")[0] for id in ids] == [f"import.stack.{index:09d}" for index in range(3)]
    first = next(episodes())
    louder = replace(first, arrays={**first.arrays, "action": first.arrays["action"] / 2})
    writers()[format](tmp_path / "other", SPEC, [louder], True)
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
        action=ArraySpec((2,)),
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


def buffer(path: Path, ends: list[int], **arrays: Any) -> Path:
    """Write a replay buffer, with an action (T, 1)."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in {"action": np.ones((ends[-1], 1), "f4"), **arrays}.items():
        chunks = (4, *np.shape(rows)[1:]) if np.ndim(rows) else ()
        group.create_array(f"data/{name}", data=np.asarray(rows), chunks=chunks)
    group.create_array("meta/episode_ends", data=np.array(ends))
    return path


def test_what_float32_rounds_is_measured(tmp_path: Path) -> None:
    ticks = np.array((5, 2**24, 2**24 + 1))
    source = open_source(buffer(tmp_path / "b.zarr", [3], ticks=ticks, half=[0.5, 1, 2]), "count", hz=1)
    source.read(0)
    assert source.account.rounded == {"observation.ticks": 1.0}


@pytest.mark.parametrize(
    ("clock", "error"),
    [
        (1.7e9 + 0.1 * np.arange(6), r"0\.\d+"),
        (1_700_000_000_000_000_000 + 100_000_000 * np.arange(6), r"\d\.\d+e\+09"),
    ],
)
def test_a_clock_that_float32_cannot_tell_is_refused_or_left_out(
    tmp_path: Path, clock: Any, error: str
) -> None:
    path = buffer(tmp_path / "b.zarr", [6], clock=clock, q=np.arange(6.0))
    expected = rf"data/clock: float32 would round its values by up to {error}, .*--drop clock"
    with pytest.raises(DatasetError, match=expected):
        open_source(path, "pick", hz=10)
    skipped = open_source(path, "pick", hz=10, choice=Choice(skip_bad=True))
    (bad,) = skipped.account.bad
    assert "data/clock: float32 would round" in bad
    dropped = open_source(path, "pick", hz=10, choice=Choice(drop=["clock"]))
    assert dropped.account.left_out == {"data/clock": "--drop"}
    for source in (skipped, dropped):
        assert source.read(0).arrays.keys() == {"observation.q", "action", "reward", "controller"}


def test_a_resting_component_far_from_zero_is_no_clock(tmp_path: Path) -> None:
    path = buffer(tmp_path / "b.zarr", [6], height=500 + 1e-7 * np.arange(6.0))
    assert "observation.height" in open_source(path, "pick", hz=10).read(0).arrays


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 4)).astype(np.uint8)
PICTURES: dict[str, tuple[Any, Any, str]] = {
    "rgb": (PIXELS[..., :3], PIXELS[..., :3], ""),
    "chw": (np.moveaxis(PIXELS[..., :3], -1, 1), PIXELS[..., :3], ", channels moved last"),
    "rgba": (PIXELS, PIXELS[..., :3], ", alpha left out"),
    "grey": (PIXELS[..., :1], PIXELS[..., [0, 0, 0]], ", grey repeated in three channels"),
    "flat grey": (PIXELS[..., 0], PIXELS[..., [0, 0, 0]], ", grey repeated in three channels"),
    "grey first": (
        np.moveaxis(PIXELS[..., :1], -1, 1),
        PIXELS[..., [0, 0, 0]],
        ", channels moved last, grey repeated in three channels",
    ),
    "whole floats": (PIXELS[..., :3].astype(float), PIXELS[..., :3], ", float64 as uint8"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_converted_by_a_rule_that_is_said(tmp_path: Path, kind: str) -> None:
    rows, expected, rule = PICTURES[kind]
    source = open_source(buffer(tmp_path / "b.zarr", [6], front=rows), "see", hz=10)
    assert source.spec.observation == {"front": ArraySpec((20, 24, 3), "uint8", 0.0, 255.0)}
    np.testing.assert_array_equal(source.read(0).arrays["observation.front"], expected)
    said = f"data/front {list(rows.shape[1:])} {rows.dtype}{rule}"
    assert source.account.taken["observation.front"] == said


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (PIXELS[..., :1].astype(np.uint16) + 1000, "holds pictures of 16 bits"),
        (PIXELS[..., 0].astype(np.uint16), "holds pictures of 16 bits"),
        (PIXELS[..., :1] / 255, "holds more than whole numbers of 0 to 255"),
        (PIXELS[..., :2], "channels of an unknown kind"),
        (np.stack([PIXELS, PIXELS], 1), "holds several pictures a step"),
    ],
    ids=["depth", "flat depth", "shares", "two channels", "stacked"],
)
def test_pictures_that_cannot_be_converted_are_refused_and_never_taken_for_numbers(
    tmp_path: Path, rows: Any, problem: str
) -> None:
    path = buffer(tmp_path / "b.zarr", [6], depth=rows, q=np.arange(6.0))
    with pytest.raises(DatasetError, match=f"data/depth .*{problem}.*: leave it out by --drop depth"):
        open_source(path, "see", hz=10)
    source = open_source(path, "see", hz=10, choice=Choice(skip_bad=True))
    assert source.spec.observation.keys() == {"q"}
    assert problem in source.account.bad[0]


def test_pictures_are_resized_to_a_width_and_height(tmp_path: Path) -> None:
    path = buffer(tmp_path / "b.zarr", [6], front=PIXELS[..., :3], q=np.arange(6.0))
    source = open_source(path, "see", hz=10, choice=Choice(size=(12, 10)))
    assert source.spec.observation["front"].shape == (10, 12, 3)
    halved = source.read(0).arrays["observation.front"]
    blocks = PIXELS[..., :3].reshape(6, 10, 2, 12, 2, 3).mean((2, 4))
    assert np.abs(halved - blocks).mean() < 25  # the filter reaches further than a block
    # The store knows the task with small pictures, so that others must be resized as well.
    with pytest.raises(DatasetError, match=r"gives no .* of \[6, 10, 12, 3\]: --resize 12x10 converts"):
        open_source(path, "see", source.spec).read(0)


def test_arrays_are_chosen_and_renamed(tmp_path: Path) -> None:
    path = buffer(tmp_path / "b.zarr", [4, 6], q=np.arange(6.0), force=np.arange(6.0), scale=7.0)
    every = open_source(path, "pick", hz=10)
    assert every.account.left_out == {"data/scale": "a single value, not one row a step"}
    assert every.spec.observation.keys() == {"q", "force"}
    keys = open_source(path, "pick", hz=10, choice=Choice(keys=["q"]))
    assert keys.account.left_out["data/force"] == "not among --keys"
    renamed = open_source(path, "pick", hz=10, choice=Choice(map={"q": "state", "data/force": "reward"}))
    arrays = renamed.read(1).arrays
    assert arrays.keys() == {"observation.state", "action", "reward", "controller"}
    np.testing.assert_array_equal(arrays["reward"], [4, 5])
    # Every part is accounted for, once.
    for source in (every, keys, renamed):
        taken = [said.split(" ")[0] for said in source.account.taken.values()]
        assert sorted([*taken, *source.account.left_out]) == [
            *("data/action", "data/force", "data/q", "data/scale")
        ]
    for choice, message in (
        (
            Choice(drop=["torque"]),
            "there is no torque; there are data/action, data/force, data/q, data/scale",
        ),
        (Choice(keys=["scale"]), "--keys cannot take observation.scale: a single value"),
        (Choice(drop=["q", "force"]), "no observation is left"),
        (Choice(drop=["action"]), r"there is no action that is a vector \(--map NAME=action names one\)"),
    ):
        with pytest.raises(DatasetError, match=message):
            open_source(path, "pick", hz=10, choice=choice)


def test_a_rate_that_contradicts_the_data_is_refused(stored: EpisodeStore, tmp_path: Path) -> None:
    exported(stored, tmp_path / "data.hdf5", "robomimic")
    with pytest.raises(DatasetError, match="says that it was recorded at 15 Hz, not 30"):
        open_source(tmp_path / "data.hdf5", "stack", hz=30)


@pytest.mark.parametrize("format", ["robomimic", "lerobot"])
def test_a_rate_of_zero_is_refused(stored: EpisodeStore, tmp_path: Path, format: str) -> None:
    path = tmp_path / "data"
    exported(stored, path, format)
    if format == "lerobot":
        info = json.loads((path / "meta" / "info.json").read_text())
        (path / "meta" / "info.json").write_text(json.dumps(info | {"fps": 0}))
    else:
        with h5py.File(path, "a") as file:
            about = json.loads(file["data"].attrs["env_args"])
            about["env_kwargs"]["control_freq"] = 0
            file["data"].attrs["env_args"] = json.dumps(about)
    for hz in (None, 15):
        with pytest.raises(DatasetError, match="says that it was recorded at 0 Hz, not more than 0"):
            open_source(path, "stack", hz=hz)


@pytest.mark.parametrize("format", writers())
def test_a_key_with_a_slash_survives_an_export(tmp_path: Path, format: str) -> None:
    spec = replace(SPEC, observation={"arm/joints": ArraySpec((7,)), "front": SPEC.observation["front"]})
    first = next(episodes())
    arrays = {name: first.arrays[name] for name in ("action", "reward", "controller", "observation.front")}
    arrays["observation.arm/joints"] = first.arrays["observation.joints"]
    writers()[format](tmp_path / "data", spec, [replace(first, arrays=arrays)], True)
    source = open_source(tmp_path / "data", "stack")
    assert source.spec == spec
    assert_same(source.read(0), replace(first, arrays=arrays))


def test_the_controller_is_taken_under_any_name(tmp_path: Path) -> None:
    who = np.array([1, 1, 2, 2])
    path = buffer(tmp_path / "b.zarr", [4], q=np.arange(4.0), who=who)
    mapped = open_source(path, "pick", hz=10, choice=Choice(map={"who": "controller"}))
    assert mapped.read(0).arrays["controller"].tolist() == who.tolist()
    assert mapped.spec.observation.keys() == {"q"}
    wrong = open_source(path, "pick", hz=10, choice=Choice(map={"q": "controller"}))
    with pytest.raises(DatasetError, match=r"data/q must be 0 \(a policy\), 1 .* not 3"):
        wrong.read(0)


def test_an_import_that_brings_nothing_registers_nothing(
    connect: Callable[..., EpisodeStore], tmp_path: Path
) -> None:
    path, store = buffer(tmp_path / "b.zarr", [4, 6], q=np.r_[np.nan, np.arange(5.0)]), connect()
    source = open_source(path, "pick", hz=10)
    with pytest.raises(DatasetError, match="values that are not finite"):
        list(bring_in(source, [0], store))
    assert "pick" not in store.tasks()
    assert list(bring_in(source, source.indices, store, skip_bad=True)) == [False, True]
    assert "pick" in store.tasks()
    assert len(source.account.bad) == 1

    full = connect(byte_budget=1)
    other = open_source(path, "place", hz=10)
    with pytest.raises(StoreFull):
        list(bring_in(other, [1], full))
    assert "place" not in full.tasks()


def test_a_known_task_takes_what_it_needs_and_refuses_what_does_not_fit(
    stored: EpisodeStore, tmp_path: Path
) -> None:
    path = tmp_path / "data.hdf5"
    exported(stored, path, "robomimic")
    needed = replace(SPEC, observation={"joints": SPEC.observation["joints"]})
    assert open_source(path, "stack", needed).read(0).arrays.keys() == {
        *("observation.joints", "action", "reward", "controller", *OPTIONAL)
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


def test_the_name_of_a_data_set_on_a_hub_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the path was made absolute; a path in a folder that exists is only mistyped."""
    monkeypatch.chdir(tmp_path)
    name = Path("lerobot/so101_pick")
    for path in (name, name.absolute()):
        with pytest.raises(DatasetError, match=r"from this machine, so download a hub's data set first$"):
            recognise(path)
    name.parent.mkdir()
    with pytest.raises(DatasetError, match=r"there is no file or folder lerobot/so101_pick$"):
        recognise(name)


def test_a_file_is_recognised_by_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "no_suffix", SPEC, episodes(), lossless=True)
    assert recognise(tmp_path / "no_suffix") == "robomimic"
    with h5py.File(tmp_path / "no_suffix", "a") as file:
        del file["data"]
    with pytest.raises(DatasetError, match="is not a robomimic file"):
        open_source(tmp_path / "no_suffix", "stack")


def test_a_package_adds_a_format_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "bags-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bags\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[longview.formats]\nbags = bags_of_steps:format\n")
    (tmp_path / "bags_of_steps.py").write_text(
        "from longview.replay.datasets.formats import Format\n"
        "from longview.replay.datasets.zarr import ZarrReader\n"
        "format = Format('a bag', lambda path: path.suffix == '.bag', ZarrReader)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = buffer(tmp_path / "one.bag", [3], q=np.arange(3.0))
    (path / ".zgroup").rename(tmp_path / "aside")
    assert recognise(path) == "bags"
    (tmp_path / "aside").rename(path / ".zgroup")
    (tmp_path / "two").mkdir()
    with pytest.raises(DatasetError, match=r"or a bag$"):
        recognise(tmp_path / "two")
    assert set(writers()) == {"robomimic", "lerobot"}
