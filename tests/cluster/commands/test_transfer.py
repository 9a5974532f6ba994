"""`longview store import`, `export` and `list`, with real files and a real Redis."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from longview.cluster.commands.store import app
from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


def buffer(path: Path, episodes: int, steps: int = 4) -> Path:
    """A replay buffer whose actions count, chunked so that every episode has a chunk of its own."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    count = np.arange(episodes * steps, dtype=np.float32)
    for name, rows in {"data/state": count[:, None] * (1, -1), "data/action": count[:, None]}.items():
        group.create_array(name, data=rows, chunks=(steps, rows.shape[1]))
    group.create_array("meta/episode_ends", data=np.arange(steps, len(count) + 1, steps))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(*arguments: str, code: int = 0) -> str:
    """Run `longview store` in this process, and return its output."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def listed(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done("list", *arguments, "--json").splitlines()]


def test_demonstrations_go_into_a_new_run_and_out_again(folder: Path, push_t_buffer: Path) -> None:
    arguments = ("import", str(push_t_buffer), "--task", "push_t", "human")
    assert "zarr data set, task push_t: 6 new episodes, 0 were there" in done(*arguments)
    assert "zarr data set, task push_t: 0 new episodes, 6 were there" in done(*arguments)
    episodes = listed("human")
    assert [episode["steps"] for episode in episodes] == [30, 12, 45, 12, 1, 20]
    assert {(episode["source"], episode["task"], episode["outcome"]) for episode in episodes} == {
        ("import", "push_t", "success")
    }
    assert listed("human", "--source", "demo") == []
    shown = done("list", "human", "--outcome", "success")
    assert "6 episodes" in shown
    assert "push_t" in shown

    for format, name in (("robomimic", "out.hdf5"), ("lerobot", "out")):
        assert f"{name}: 6 episodes of push_t" in done("export", name, "human", "--format", format)
        refused = done("export", name, "human", "--format", format, code=1)
        assert f"longview: {name} exists: choose another path, or remove it" in refused
        # Both files hold the same episodes.
        arguments = ("import", name, "--task", "push_t", "human")
        assert f"{format} data set, task push_t: 0 new episodes, 6 were there" in done(*arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["out", "out.hdf5", "runs"]


def test_a_robot_that_nobody_simulates_and_what_is_said_when_something_is_wrong(
    folder: Path, url: str
) -> None:
    buffer(folder / "arm.zarr", episodes=5)
    arguments = ("import", "arm.zarr", "--task", "arm")
    assert "no run 'new' in runs/, and none can be made for arm" in done(*arguments, "new", code=2)
    arguments += ("arms", "--url", url)
    assert "say how many steps a second has: give it by --hz" in done(*arguments, code=1)
    assert "has no filter 'x'; it has none" in done(*arguments, "--filter", "x", code=1)
    assert "task arm: 5 new episodes" in done(*arguments, "--hz", "30")
    with closing(EpisodeStore.connect(url, "arms", StoreConfig())) as store:
        spec = store.spec("arm")
        assert (spec.control_hz, spec.max_steps, spec.action.high) == (30.0, 4, float("inf"))
        third = store.read(store.ids()[2])
        np.testing.assert_array_equal(third.arrays["action"], [[8], [9], [10], [11]])
        np.testing.assert_array_equal(third.arrays["observation.state"][0], [8, -8])

    # Another data set of the task has other episodes, and must fit the spec of the first.
    buffer(folder / "more.zarr", episodes=7, steps=2)
    more = done("import", "more.zarr", "--task", "arm", "arms", "--url", url)
    assert "task arm: 7 new episodes, 0 were there" in more

    at = ("arms", "--url", url)
    assert "the store has no episodes of outcome failure" in done(
        "export", "x", *at, "--outcome", "failure", code=1
    )
    assert "--format is one of robomimic, lerobot, not csv" in done(
        "export", "x", *at, "--format", "csv", code=2
    )
    assert "--source: unknown sources ['demos'], there are demo, import, rollout, correction, human" in done(
        "list", *at, "--source", "demos", code=2
    )
    assert "there is no file or folder absent" in done("import", "absent", "--task", "arm", *at, code=1)
    assert not (folder / "x").exists()


def test_an_import_that_was_killed_goes_on(longview: Any, folder: Path, url: str) -> None:
    episodes = 600
    buffer(folder / "many.zarr", episodes)
    arguments = ("store", "import", "many.zarr", "--task", "many", "killed", "--url", url, "--hz", "10")
    with closing(EpisodeStore.connect(url, "killed", StoreConfig())) as store:
        process = longview.start(*arguments)
        longview.wait_for(lambda: len(store) >= 20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = len(store)
        assert 20 <= before < episodes, "killed too late to be worth a test"
        assert f"{episodes - before} new episodes, {before} were there" in done(*arguments[1:])
        ids = store.ids()
        assert len(ids) == len(set(ids)) == len(store) == episodes
        for number in (0, before - 1, before, episodes - 1):
            np.testing.assert_array_equal(
                store.read(ids[number]).arrays["action"][:, 0], 4 * number + np.arange(4)
            )


def test_bad_episodes_are_left_out_and_listed(folder: Path, url: str) -> None:
    path = buffer(folder / "bad.zarr", episodes=6)
    (path / "data/state/2.0").unlink()
    zarr.open_group(path, mode="r+")["data/action"][17, 0] = np.nan
    arguments = ("import", "bad.zarr", "--task", "bad", "bad", "--url", url, "--hz", "10")
    problems = (
        "bad.zarr, episode 2 (steps 8 to 11): data/state: there is no chunk 2.0",
        "bad.zarr, episode 4 (steps 16 to 19): data/action holds values that are not finite, first in step 1",
    )
    assert f"longview: {problems[0]}" in done(*arguments, code=1)
    output = done(*arguments, "--skip-bad")
    assert "task bad: 2 new episodes, 2 were there" in output
    assert f"left out 2:\n  {problems[0]}\n  {problems[1]}\n" in output
    assert [episode["seed"] for episode in listed("bad", "--url", url)] == [0, 1, 3, 5]


def test_an_export_that_fails_leaves_nothing(folder: Path, url: str) -> None:
    for name in ("one", "two"):
        buffer(folder / f"{name}.zarr", episodes=2)
        done("import", f"{name}.zarr", "--task", name, "both", "--url", url, "--hz", "10")
    at = ("both", "--url", url, "--format", "robomimic")
    assert "of the tasks one, two: choose one by --task" in done("export", "b.hdf5", *at, code=1)
    with closing(EpisodeStore.connect(url, "both", StoreConfig())) as store:
        unlabelled = store.read(store.ids()[1])
        labelled = {**unlabelled.arrays, "expert_action": unlabelled.arrays["action"]}
        meta = type(unlabelled.meta)("correction.one.000000000", "one", 0, "correction")
        assert store.add(type(unlabelled)(meta, "failure", labelled))
    output = done("export", "b.hdf5", *at, "--task", "one", code=1)
    assert "has no expert_action, unlike correction.one.000000000: export one source at a time" in output
    assert {path.name for path in folder.iterdir()} == {"one.zarr", "two.zarr"}
    done("export", "b.hdf5", *at, "--task", "one", "--outcome", "failure")
    with h5py.File(folder / "b.hdf5") as file:
        assert list(file["data"]) == ["demo_0"]
        assert file["data/demo_0/expert_actions"].shape == (4, 1)


def test_the_summary_accounts_for_every_part(folder: Path, url: str) -> None:
    path = buffer(folder / "arm.zarr", episodes=3)
    group = zarr.open_group(path, mode="r+")
    group.create_array("data/clock", data=1.7e9 + 0.1 * np.arange(12), chunks=(4,))
    group.create_array("data/force", data=np.linspace(0, 1, 12), chunks=(4,))
    group.create_array("camera/matrix", data=np.eye(3))
    arguments = ("import", "arm.zarr", "--task", "arm", "told", "--url", url, "--hz", "10")
    refused = done(*arguments, code=1)
    assert "longview: arm.zarr, episode 0 (steps 0 to 3): data/clock: float32 would round" in refused
    assert "leave it out by --drop clock" in refused
    output = done(*arguments, "--drop", "clock")
    assert "task arm: 3 new episodes, 0 were there" in output
    assert "  action from data/action [1] float32\n" in output
    assert "  observation.force from data/force [] float64, as float32, off by up to 3e-08\n" in output
    assert "left out by rule:\n  camera/matrix: not in data\n  data/clock: --drop\n" in output

    told = json.loads(done(*arguments, "--skip-bad", "--json"))
    assert told["episodes"] == {"new": 0, "there": 3, "unreadable": 0}
    assert told["left_out"] == {"camera/matrix": "not in data", "data/clock": "arm has no such array"}
    assert told["taken"].keys() == {"action", "observation.state", "observation.force"}

    other = ("import", "arm.zarr", "--task", "other", "told", "--url", url, "--hz", "10", "--skip-bad")
    told = json.loads(done(*other, "--keys", "clock,q", "--map", "state=q", "--json"))
    assert told["taken"].keys() == {"action", "observation.q"}
    assert told["left_out"]["data/force"] == "not among --keys"
    assert ["data/clock: float32 would round" in problem for problem in told["bad"]] == [True]
    assert "--resize takes WIDTHxHEIGHT, such as 96x96, not 96" in done(*other, "--resize", "96", code=2)
    assert "--map takes THEIRS=OURS, such as qpos=state, not q" in done(*other, "--map", "q", code=2)


def test_more_episodes_of_the_same_robot_come_in_whatever_their_range(folder: Path, url: str) -> None:
    buffer(folder / "monday.zarr", episodes=2)
    buffer(folder / "tuesday.zarr", episodes=6)  # actions go on, beyond those of Monday
    at = ("--task", "pick", "robot", "--url", url, "--hz", "10")
    assert "2 new episodes, 0 were there" in done("import", "monday.zarr", *at)
    assert "4 new episodes, 2 were there" in done("import", "tuesday.zarr", *at)


def test_a_task_is_forgotten_and_its_name_free_again(folder: Path, url: str) -> None:
    path, at = buffer(folder / "arm.zarr", episodes=2), ("again", "--url", url)
    done("import", "arm.zarr", "--task", "pick", *at, "--hz", "10")
    zarr.open_group(path, mode="r+").create_array("data/force", data=np.ones(8, "f4"), chunks=(4,))
    assert "the store holds 2 episodes of task pick: --with-episodes deletes them, too" in done(
        "forget", "pick", *at, code=1
    )
    assert "task place is not registered in this store; registered: pick" in done(
        "forget", "place", *at, code=1
    )
    refused = CliRunner().invoke(app, ["forget", "pick", *at, "--with-episodes"], input="n\n")
    assert "nothing was removed" in refused.output
    assert len(listed(*at)) == 2
    said = done("forget", "pick", *at, "--with-episodes", "--yes")
    assert "removed the registration of task pick, and 2 episodes" in said
    assert listed(*at) == []
    output = done("import", "arm.zarr", "--task", "pick", *at, "--hz", "10")
    assert "2 new episodes, 0 were there" in output
    assert "observation.force from data/force" in output
