import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from longview.actors.tasks import push_t
from longview.learner.config import Horizon
from longview.learner.windows import build
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.plan import Choice
from longview.replay.episode import ArraySpec, Episode, validate_episode
from longview.replay.errors import DatasetError
from longview.replay.store import EpisodeStore

SPEC = push_t.spec
PUBLISHED = os.environ.get("LONGVIEW_PUSHT_ZARR")


@pytest.fixture
def damaged(push_t_buffer: Path, tmp_path: Path) -> Path:
    """Return a copy of the buffer, to be damaged."""
    return Path(shutil.copytree(push_t_buffer, tmp_path / "copy.zarr"))


def read(path: Path) -> list[Episode]:
    source = open_source(path, SPEC.name, SPEC, push_t.columns)
    return [source.read(index) for index in source.indices]


def test_episodes_are_those_of_the_buffer(push_t_buffer: Path) -> None:
    buffer = zarr.open_group(push_t_buffer, mode="r")
    ends = [0, *buffer["meta/episode_ends"][:]]
    found = read(push_t_buffer)
    assert [episode.length for episode in found] == list(np.diff(ends))
    for index, (episode, (start, end)) in enumerate(zip(found, pairwise(ends), strict=True)):
        validate_episode(episode, SPEC)
        meta = episode.meta
        assert meta.id.rpartition(".")[0] == f"import.push_t.{index:09d}"
        assert (meta.seed, meta.source) == (index, "import")
        assert episode.outcome == "success"
        np.testing.assert_array_equal(episode.arrays["action"], buffer["data/action"][start:end])
        np.testing.assert_array_equal(
            episode.arrays["observation.agent_position"], buffer["data/state"][start:end, :2]
        )
        np.testing.assert_array_equal(episode.arrays["reward"], [0.0] * (end - start - 1) + [1.0])


def test_what_is_read_is_what_the_simulator_shows_before_each_action(push_t_buffer: Path) -> None:
    env = push_t.PushT(push_t.spec)
    for episode in read(push_t_buffer):
        observation, _ = env.reset(seed=episode.meta.seed)
        for row, action in enumerate(episode.arrays["action"]):
            for key, seen in observation.items():
                np.testing.assert_allclose(episode.arrays[f"observation.{key}"][row], seen, atol=1e-3)
            observation = env.step(action)[0]


def test_arrays_are_found_by_their_own_names(tmp_path: Path) -> None:
    spec = replace(SPEC, observation={"agent_position": SPEC.observation["agent_position"]})
    buffer = zarr.open_group(tmp_path / "plain.zarr", mode="w", zarr_format=2)
    rows = np.arange(14.0).reshape(7, 2)
    for name, array in {"data/agent_position": rows, "data/action": rows + 1}.items():
        buffer.create_array(name, data=array)
    buffer.create_array("meta/episode_ends", data=np.array((3, 7)))
    source = open_source(tmp_path / "plain.zarr", SPEC.name, spec)
    first, second = (source.read(index) for index in source.indices)
    np.testing.assert_array_equal(first.arrays["observation.agent_position"], rows[:3])
    np.testing.assert_array_equal(second.arrays["action"], rows[3:] + 1)
    assert second.arrays["action"].dtype == np.float32


@pytest.mark.skipif(PUBLISHED is None, reason="LONGVIEW_PUSHT_ZARR names no replay buffer")
def test_the_published_demonstrations_with_their_pictures() -> None:
    source = open_source(Path(str(PUBLISHED)), "seen", hz=10.0)
    assert len(source.indices) == source.spec.demonstrations == 206
    assert source.spec.observation["img"] == ArraySpec((96, 96, 3), "uint8", 0.0, 255.0)
    episodes = [source.read(index) for index in source.indices]
    assert sum(episode.length for episode in episodes) == 25_650
    pictures = zarr.open_group(str(PUBLISHED), mode="r")["data/img"]
    np.testing.assert_array_equal(episodes[205].arrays["observation.img"], pictures[-episodes[205].length :])


def test_one_bad_episode_leaves_the_others(damaged: Path) -> None:
    """A damaged chunk makes only its own episodes unreadable."""
    (damaged / "data/state/3.0").unlink()
    source = open_source(damaged, SPEC.name, SPEC, push_t.columns)
    for index in (0, 1, 3, 4, 5):
        source.read(index)
    with pytest.raises(
        DatasetError, match=r"episode 2 \(steps 42 to 86\): data/state: there is no chunk 3\.0"
    ):
        source.read(2)


def free(path: Path, **arrays: Any) -> Path:
    """Write a buffer of a robot of its own: episodes of 8 steps, chunks of 4; keys have `__` for `/`."""
    buffer = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in {"data__action": np.arange(24.0).reshape(24, 1), **arrays}.items():
        buffer.create_array(name.replace("__", "/"), data=rows, chunks=(4, *rows.shape[1:]))
    buffer.create_array("meta/episode_ends", data=np.array([8, 16, 24]))
    return path


ROWS = np.arange(48.0).reshape(24, 2)


def test_arrays_in_groups_are_observations_and_others_are_accounted_for(tmp_path: Path) -> None:
    path = free(tmp_path / "b.zarr", data__obs__joints=ROWS, data__hand__force=-ROWS, notes__x=np.ones(3))
    source = open_source(path, "pick", hz=10)
    arrays = source.read(1).arrays
    np.testing.assert_array_equal(arrays["observation.joints"], ROWS[8:16])
    np.testing.assert_array_equal(arrays["observation.hand/force"], -ROWS[8:16])
    assert source.account.left_out == {"notes/x": "not in data"}


def test_a_zip_file_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = free(tmp_path / "b.zarr", data__q=ROWS)
    path = Path(shutil.make_archive(str(tmp_path / "b.zarr"), "zip", folder))
    unpacked, zipped = (open_source(each, "pick", hz=10) for each in (folder, path))
    assert zipped.spec == unpacked.spec
    for index in range(3):
        assert zipped.id(index) == unpacked.id(index)
        np.testing.assert_array_equal(
            zipped.read(index).arrays["observation.q"], unpacked.read(index).arrays["observation.q"]
        )


def test_format_3_is_named(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=3)
    with pytest.raises(DatasetError, match=r"b.zarr is zarr of format 3: write it again with zarr_format=2"):
        open_source(tmp_path / "b.zarr", "pick", hz=10)


def test_a_compressor_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = free(tmp_path / "b.zarr", data__q=ROWS, data__front=ROWS)
    file = path / "data/front/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": {"id": "imagecodecs_jpegxl"}}))
    expected = "data/front is compressed by imagecodecs_jpegxl, which is not known here: .*--drop front"
    with pytest.raises(DatasetError, match=expected):
        open_source(path, "pick", hz=10)
    source = open_source(path, "pick", hz=10, choice=Choice(skip_bad=True))
    assert source.read(0).arrays.keys() == {"observation.q", "action", "reward", "controller"}


def test_chunks_that_zarr_left_out_are_read_as_their_fill_value(tmp_path: Path) -> None:
    contact = np.zeros(24)
    contact[[5, 9]] = 1
    path = free(tmp_path / "b.zarr", data__q=ROWS + 1, data__contact=contact, data__never=np.zeros((24, 2)))
    assert not (path / "data/contact/3").exists()
    source = open_source(path, "pick", hz=10)
    found = [source.read(index).arrays["observation.contact"] for index in source.indices]
    np.testing.assert_array_equal(np.concatenate(found), contact)
    notes = "chunks are not there, and were read as the fill value 0.0, as zarr leaves out such chunks"
    assert source.reader.notes == [f"data/contact: 4 {notes}", f"data/never: 6 {notes}"]

    (path / "data/q/2.0").unlink()  # a signal that never rests at the fill value: the chunk was lost
    with pytest.raises(DatasetError, match=r"episode 1 .*data/q: there is no chunk 2\.0"):
        open_source(path, "pick", hz=10).read(1)


def test_an_empty_episode_and_an_unfinished_one_leave_the_others(tmp_path: Path) -> None:
    path = free(tmp_path / "b.zarr", data__q=ROWS)
    put("meta/episode_ends", lambda ends: np.array([8, 8, 16]))(path)
    unfinished = f"{path}: steps 16 to 23 belong to no episode: meta/episode_ends end at 16"
    with pytest.raises(DatasetError, match=unfinished):
        open_source(path, "pick", hz=10)
    source = open_source(path, "pick", hz=10, choice=Choice(skip_bad=True))
    assert source.account.bad == [unfinished]
    assert [source.read(index).length for index in (0, 2)] == [8, 8]
    with pytest.raises(DatasetError, match=r"episode 1 .*: data/\w+ has no steps"):
        source.read(1)


def test_actions_stay_with_their_observations_in_store_and_windows(
    push_t_buffer: Path, connect: Callable[..., EpisodeStore]
) -> None:
    store = connect(chunk_steps=7)
    store.register(SPEC)
    episodes = {episode.meta.id: episode for episode in read(push_t_buffer)}
    for episode in episodes.values():
        assert store.add(episode)
        assert not store.add(episode)
    assert store.ids("import") == sorted(episodes)
    horizon = Horizon(context=4, past=2, future=6, execute=4)
    segments = store.sample({"import": 1.0}, 300, 3, horizon.after, np.random.default_rng(0))
    now_G1 = np.array([[segment.now] for segment in segments])
    batch = build(segments, SPEC, horizon, 4, now_G1)
    for index, segment in enumerate(segments):
        arrays, now = episodes[segment.meta.id].arrays, segment.now
        for key, seen in batch.observation.items():
            for age in range(min(4, now + 1)):
                expected = arrays[f"observation.{key}"][now - age]
                np.testing.assert_array_equal(seen[batch.frame_BS[index, -1 - age]], expected)
        steps = now + np.arange(-2, 6)
        inside = (steps >= 0) & (steps < segment.episode_length)
        np.testing.assert_array_equal(batch.target_BT[index], inside)
        np.testing.assert_array_equal(batch.action_BTA[index, inside], arrays["action"][steps[inside]])


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a damage that replaces an array by `change` of it."""

    def damage(path: Path) -> None:
        buffer = zarr.open_group(path, mode="r+")
        rows = change(buffer[name][:])
        buffer.create_array(name, data=rows, overwrite=True)

    return damage


def with_value(value: float) -> Callable[[Any], Any]:
    def change(rows: Any) -> Any:
        rows[35, 1] = value
        return rows

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Return a damage that leaves `size` bytes of a file."""

    def damage(path: Path) -> None:
        file = path / name
        file.write_bytes(file.read_bytes()[:size])

    return damage


def junk(path: Path) -> None:
    file = path / "data/action/2.0"
    file.write_bytes(file.read_bytes()[:16] + b"\xff" * (file.stat().st_size - 16))


def group(path: Path) -> None:
    zarr.open_group(path, mode="r+").create_group("data/action", overwrite=True)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "there is no file or folder"),
    "no group": (lambda path: (path / ".zgroup").unlink(), "is no data set of a known format"),
    "no array": (lambda path: shutil.rmtree(path / "data/action"), "there is no action, from which push_t"),
    "no ends": (lambda path: shutil.rmtree(path / "meta"), "there is no array meta/episode_ends"),
    "not an array": (group, "there is no action, from which push_t"),
    "metadata": (cut("data/action/.zarray", 40), "data/action has a damaged .zarray"),
    "missing chunk": (lambda path: (path / "data/state/3.0").unlink(), r"data/state: there is no chunk 3\.0"),
    "short chunk": (cut("data/action/2.0", 60), "data/action: chunk 2.0 is damaged or cut short, 60 bytes"),
    "empty chunk": (cut("data/action/2.0", 0), "data/action: chunk 2.0 is damaged or cut short, 0 bytes"),
    "short ends": (cut("meta/episode_ends/0", 20), "meta/episode_ends: chunk 0 is damaged or cut short"),
    "junk": (junk, r"episode 1 \(steps 30 to 41\): data/action cannot be read"),
    "wide action": (
        put("data/action", lambda rows: np.repeat(rows, 2, axis=1)),
        r"data/action is \[30, 4\], which gives no action of \[30, 2\]",
    ),
    "narrow state": (
        put("data/state", lambda rows: rows[:, :4]),
        r"data/state is \[30, 4\], which gives no observation.keypoints of \[30, 9, 2\]",
    ),
    "flat state": (put("data/state", lambda rows: rows[:, 0]), r"data/state is \[30\], which gives no"),
    "too few rows": (
        put("data/state", lambda rows: rows[:100]),
        r"episode 5 .* data/state is \[100, 5\], it ends before the episode",
    ),
    "not a number": (
        put("data/action", with_value(np.nan)),
        "episode 1 .* data/action holds values that are",
    ),
    "infinite": (put("data/state", with_value(np.inf)), "episode 1 .* data/state holds values that are not"),
    "out of range": (
        put("data/action", with_value(600)),
        r"episode 1 .* data/action must lie in \[0, 512\], not .* to 600",
    ),
    "no episodes": (put("meta/episode_ends", lambda ends: ends[:0]), "episode_ends must be whole numbers"),
    "ends in disorder": (put("meta/episode_ends", lambda ends: ends[::-1]), "whole numbers that ascend"),
    "ends that are none": (put("meta/episode_ends", lambda ends: ends + 0.5), "whole numbers that ascend"),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_and_named(damaged: Path, case: str) -> None:
    damage, message = CASES[case]
    damage(damaged)
    with pytest.raises(DatasetError, match=message) as raised:
        read(damaged)
    assert str(damaged) in str(raised.value)
