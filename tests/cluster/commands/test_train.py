"""`longview train`: data sets as files, a real store, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.compute
import pytest
import zarr
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from longview.cluster.cli import app
from longview.cluster.commands.train import refuse_fixed, split
from longview.cluster.run.config import ConfigError
from longview.cluster.run.folder import Run
from longview.cluster.run.services import redis_server
from longview.learner.config import policy_config
from longview.learner.files import steps
from longview.learner.policy import policy_to_bytes
from longview.replay.config import StoreConfig
from longview.replay.datasets import lerobot_writer
from longview.replay.episode import BY_EXPERT, ArraySpec, Episode, EpisodeMeta, TaskSpec
from longview.replay.store import EpisodeStore
from tests.conftest import Forked, Longview

QUICK = (
    *("learner.steps=12", "learner.batch_size=16"),
    *("learner.policy.sampling_steps=1", "learner.policy.token_size=64"),
)
"""Settings that make a training short."""

TWO_CONTEXTS = "evaluation.context_lengths=[1,12]"
"""Setting that makes a validation short, where the context lengths are not what is tested."""

MINUTES = 30
"""Length of the recordings of the slow test."""


def recorded(
    path: Path, episodes: int = 10, steps: int = 24, seed: int = 0, side: int = 0, skip: str = ""
) -> Path:
    """Write a replay buffer in which the action is where the state goes next.

    Args:
        path: folder to make.
        episodes: number of episodes.
        steps: length of each.
        seed: seed of the states.
        side: side of the pictures; 0: none.
        skip: an array to leave out.
    """
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(episodes * steps, 3)).cumsum(axis=0).astype(np.float32)
    arrays = {"state": states, "action": np.roll(states[:, :2], -1, axis=0)}
    if side:
        arrays["img"] = rng.integers(0, 255, (len(states), side, side, 3)).astype(np.uint8)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in arrays.items():
        if name != skip:
            group.create_array(f"data/{name}", data=rows, chunks=(steps, *rows.shape[1:]))
    group.create_array("meta/episode_ends", data=np.arange(steps, len(states) + 1, steps))
    return path


def summary_of(longview: Longview, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((longview.folder / "runs" / name / "summary.json").read_text())
    return summary


def curve(folder: Path, tag: str) -> dict[int, float]:
    """Read a curve of a run from TensorBoard's files; no training step may have two points."""
    points = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(tag)
    found = {point.step: point.value for point in points}
    assert len(found) == len(points), points
    return found


def test_a_policy_from_two_data_sets_without_ray(longview: Longview, forked: Forked) -> None:
    """One command imports, trains, validates at every T_o and writes down what it found; Ray is never even
    imported. A mirror that fails costs nothing but its curves."""
    first = recorded(longview.folder / "monday.zarr")
    second = recorded(longview.folder / "tuesday.zarr", episodes=4, seed=1)
    told = np.full(240, "open the drawer")
    zarr.open_group(first, zarr_format=2).create_array("data/told", data=told, chunks=(24,))
    (longview.folder / "no_ray" / "ray").mkdir(parents=True)
    (longview.folder / "no_ray" / "ray" / "__init__.py").write_text("raise ImportError('no Ray here')")
    (longview.folder / "no_ray" / "wandb.py").write_text("def Settings(**_): raise OSError('no W&B here')")
    path = f"{longview.folder / 'no_ray'}:{Path(__file__).parents[3]}"
    settings = ("name=drawer", "monitoring.mirrors=[tensorboard,wandb]", *QUICK)
    code, said = longview("train", str(first), str(second), "--hz", "10", *settings, PYTHONPATH=path)
    assert code == 0, said
    assert "monday: 14 episodes, 336 steps at 10 Hz; state [3], action [2]" in said
    assert "evaluation.context_lengths=[1,2,4,8,12]: powers of two" in said
    assert "observation.state from data/state [3] float32" in said
    summary = summary_of(longview, "drawer")
    assert summary["status"] == "finished"
    held_out = summary["held_out"]
    assert held_out["episodes"] == 2
    assert list(held_out["action_error"]) == ["1", "2", "4", "8", "12"]
    for found in held_out["action_error"].values():
        assert 0 <= found["low"] <= found["mean"] <= found["high"]
    assert {len(places) for places in held_out["by_position"].values()} == {10}
    folder = longview.folder / "runs" / "drawer"
    for name in ("config.yaml", "log.txt", "checkpoints/step-000000012", "import.json"):
        assert (folder / name).exists(), name
    log = (folder / "log.txt").read_text()
    assert log.count("mirror wandb has failed, and the run goes on without it: no W&B here") == 1
    errors = curve(folder, "action_error/T_o_12")
    assert errors[12] == pytest.approx(held_out["action_error"]["12"]["mean"], rel=0.5)
    report = (folder / "report.html").read_text()
    texts = ("Action error by context length", "Worst episodes", "monday.zarr", "</b> recorded steps")
    for text in (*texts, "left out: data/told, text"):
        assert text in report, text
    code, said = forked("status", "drawer")
    assert (code, "action error on 2 held-out" in " ".join(said.split())) == (0, True), said
    code, said = forked("launch", "--resume", "drawer")
    assert (code, "longview train --resume" in said) == (2, True), said


def test_a_killed_run_goes_on_where_it_was(longview: Longview, forked: Forked) -> None:
    """After kill -9 a resume imports nothing again, and ends as it would have; Ctrl-C saves."""
    data = recorded(longview.folder / "monday.zarr")
    quick = (*QUICK[1:], "learner.checkpoint_every=5", "learner.steps=100000", "learner.policy.execute=4")
    quick += ("monitoring.mirrors=[tensorboard]", TWO_CONTEXTS)
    process = longview.start("train", str(data), "--hz", "10", "name=drawer", *quick)
    checkpoints = longview.folder / "runs" / "drawer" / "checkpoints"
    longview.wait_for(lambda: steps(checkpoints))
    process.kill()
    process.wait()
    longview.wait_for(lambda: not longview.processes())
    data.rename(longview.folder / "moved.zarr")
    before = max(steps(checkpoints))
    process = longview.start("train", "--resume", "drawer")
    longview.wait_for(lambda: max(steps(checkpoints), default=0) > before)
    code, said = forked("train", "--resume", "drawer")
    assert (code, "is under way" in said) == (2, True), said
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "go on with it by: longview train --resume drawer" in said
    assert summary_of(longview, "drawer")["status"] == "interrupted"
    last = int(max(path.name for path in checkpoints.glob("step-*")).removeprefix("step-"))
    # Longer than what kill -9 has undone, of which curves hold no second point.
    end = last + 50
    code, said = forked("train", "--resume", "drawer", f"learner.steps={end}", "learner.warmup=1")
    assert code == 0, said
    assert summary_of(longview, "drawer")["policy_version"] == end
    losses = curve(longview.folder / "runs" / "drawer", "loss/T_o_1")
    assert list(losses) == sorted(losses)
    assert max(losses) == end


def test_episodes_of_a_store_are_only_read(longview: Longview, forked: Forked) -> None:
    with redis_server(longview.folder / "redis") as url:
        store = EpisodeStore.connect(url, "demos", StoreConfig())
        data = recorded(longview.folder / "monday.zarr", episodes=6)
        code, said = forked(
            "store", "import", str(data), "--task", "drawer", "demos", "--url", url, "--hz", "10"
        )
        assert code == 0, said
        bad = store.read(store.ids()[0])
        meta = EpisodeMeta("import.drawer.bad", "drawer", 0, "import")
        store.add(Episode(meta, "invalid", bad.arrays))
        before = store.ids()
        code, said = forked("train", "demos", "--url", url, "name=read", TWO_CONTEXTS, *QUICK)
        assert code == 0, said
        assert store.ids() == before
        assert summary_of(longview, "read")["held_out"]["episodes"] == 2
        file = longview.folder / "runs" / "read" / "held_out.json"
        held_out = json.loads(file.read_text())["episodes"]
        assert len(held_out) == 2
        for index in range(9):  # they come first, so every place in the order changes
            meta = EpisodeMeta(f"demo.drawer.{index}", "drawer", 0, "demo")
            store.add(Episode(meta, "success", bad.arrays))
        code, said = forked("train", "--resume", "read", "learner.steps=14")
        assert code == 0, said
        assert json.loads(file.read_text())["episodes"] == held_out
        worst = summary_of(longview, "read")["held_out"]["worst"]
        assert sorted(row["id"] for row in worst) == sorted(held_out)
        code, said = forked("train", "nothing", "--url", url)
        assert (code, "namespace nothing has tasks none" in said) == (1, True), said
        store.close()


def test_pictures_are_resized_unless_told_otherwise(longview: Longview, forked: Forked) -> None:
    data = recorded(longview.folder / "filmed.zarr", episodes=6, steps=12, side=128)
    quick = ("learner.encoder_steps=4", "learner.steps=8", TWO_CONTEXTS, *QUICK[1:])
    code, said = forked("train", str(data), "--hz", "10", "name=small", *quick)
    assert code == 0, said
    assert "pictures are stored at 96x96: --resize WxH or none changes that" in said
    assert "through its cameras" in (longview.folder / "runs" / "small" / "report.html").read_text()
    code, said = forked("train", str(data), "--hz", "10", "name=large", "--resize", "none", *quick)
    assert code == 0, said
    assert "pictures keep their size, and are stored as JPEG" in said
    code, said = forked("train", str(data), "--hz", "10", "--resize", "small")
    assert (code, "--resize takes WIDTHxHEIGHT" in said) == (2, True), said


@pytest.mark.parametrize(
    ("episodes", "skip", "arguments", "message"),
    [
        (0, "", (), "there is no file or folder"),
        (3, "", ("--hz", "10"), "3 episodes are too few"),
        (9, "action", ("--hz", "10"), "there is no action that is a vector"),
        (9, "", (), "give it by --hz"),
        (9, "", ("--hz", "10", "learner.validation_episodes=5"), "too few to hold out 5"),
    ],
)
def test_data_that_cannot_be_learnt_from_are_explained(
    longview: Longview, forked: Forked, episodes: int, skip: str, arguments: tuple[str, ...], message: str
) -> None:
    data = longview.folder / "monday.zarr"
    if episodes:
        recorded(data, episodes, skip=skip)
    code, said = forked("train", str(data), *arguments)
    assert (code, message in said, "Traceback" in said) == (1, True, False), said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learner.stepz=5", "did you mean learner.steps?"),
        ("learners=5", "learner.batch_size"),
        ("learner.steps=many", "learner.steps"),
        ("learner.steps=[1", "learner.steps must be a whole number above 0"),
    ],
)
def test_wrong_settings_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "monday.zarr", 9)
    found = CliRunner().invoke(app, ["train", "monday.zarr", "--hz", "10", setting])
    assert (found.exit_code, message in found.output) == (2, True), found.output
    assert list(tmp_path.iterdir()) == [tmp_path / "monday.zarr"], "no run was begun"


STORED = ("demos", "--url", "redis://nowhere:1")


@pytest.mark.parametrize("command", ["train", "audit"])
@pytest.mark.parametrize(
    "option",
    [("--filter", "a"), ("--keys", "a"), ("--drop", "a"), ("--map", "a=b"), ("--hz", "5"), ("--skip-bad",)],
)
def test_episodes_of_a_store_are_taken_as_they_are(command: str, option: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, [command, *STORED, *option])
    assert found.exit_code == 2
    assert f"{option[0]} cannot be given with --url: episodes of a store are taken as" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*STORED, "--resize", "none"), "--resize cannot be given with --url"),
        ((*STORED, "replay.url=redis://other:1"), "replay.url cannot be set beside --url"),
        (("--resume", "drawer", "--hz", "5", "--task", "a"), "--task, --hz cannot be given with --resume"),
        (("--resume", "drawer", "actors.count=3"), "actors.count has no effect"),
        (("a.zarr", "environment.id=x"), "environment.id has no effect"),
        (("a.zarr", "evaluation.episodes=3"), "evaluation.episodes has no effect"),
        (("a.zarr", "placement.learner_gpus=1"), "placement.learner_gpus has no effect without"),
        (("a.zarr", "./a.zarr"), "a.zarr is given more than once: give each data set once"),
        (("a.zarr", "task=drawer"), "task cannot be set: give --task"),
        (("a.zarr", "data.hz=5"), "data.hz cannot be set: give --hz"),
    ],
)
def test_what_would_have_no_effect_is_refused(arguments: tuple[str, ...], message: str) -> None:
    found = CliRunner().invoke(app, ["train", *arguments])
    assert (found.exit_code, message in found.output) == (2, True), found.output


@pytest.mark.parametrize(
    "setting",
    ["data.hz=5", "data.spec={}", "evaluation.context_lengths=[1]", "learner.validation_episodes=3"],
)
def test_what_a_run_keeps_from_its_first_launch_is_refused(tmp_path: Path, setting: str) -> None:
    (tmp_path / "held_out.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]} cannot be changed by --resume"):
        refuse_fixed(("learner.steps=20", setting), Run(tmp_path))
    refuse_fixed(("learner.steps=20", "evaluation.rounds=1"), Run(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_train_through_ray_and_go_on_after_a_kill(longview: Longview) -> None:
    """Ranks that meet over gloo share out each batch. The run goes on on a Ray cluster that was there before,
    and leaves it running."""
    data = recorded(longview.folder / "monday.zarr")
    settings = (*QUICK[1:], "learner.checkpoint_every=5", "learner.steps=100000", "learner.publish_every=50")
    process = longview.start("train", str(data), "--hz", "10", "name=drawer", "learners=2", *settings)
    checkpoints = longview.folder / "runs" / "drawer" / "checkpoints"
    longview.wait_for(lambda: list(checkpoints.glob("step-*")), 300)
    assert len(longview.processes("ray::LearnerRank")) == 2
    process.kill()
    process.wait()
    longview.wait_for(lambda: not longview.processes())
    last = int(max(path.name for path in checkpoints.glob("step-*")).removeprefix("step-"))
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | longview.environment | {"RAY_worker_niceness": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        steps = (f"learner.steps={last + 20}", "learner.warmup=1", "monitoring.mirrors=[tensorboard]")
        resume = ("train", "--resume", "drawer", "--address", address)
        code, said = longview(*resume, "learners=4", *steps)
        assert (code, "learners 4 need 4 CPUs, this Ray cluster has 2" in said) == (2, True), said
        code, said = longview(*resume, *steps)
        assert code == 0, said
        assert cluster.poll() is None
        cluster.stdin.close()
    summary = summary_of(longview, "drawer")
    assert (summary["status"], summary["policy_version"]) == ("finished", last + 20)
    assert summary["held_out"]["episodes"] == 2
    folder = longview.folder / "runs" / "drawer"
    assert max(curve(folder, "loss/T_o_1")) == last + 20
    assert max(curve(folder, "action_error/T_o_1")) == last + 20


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_run_begins_from_a_policy_of_another_robot(longview: Longview, forked: Forked) -> None:
    """The other robot has one more action. A run that trains adapters goes on without the policy's file."""
    data, file = recorded(longview.folder / "a.zarr"), longview.folder / "base.safetensors"
    policy = policy_config(architecture="mlp", token_size=64)
    spec = TaskSpec("other", {"state": ArraySpec((3,))}, ArraySpec((3,)), 10.0, 24, (1, 12), 10)
    file.write_bytes(policy_to_bytes(policy.make(spec)))
    settings = (*QUICK, TWO_CONTEXTS, "learner.adapters.rank=2")
    start = "learner.start_from=base.safetensors"
    code, said = forked("train", str(data), "--hz", "10", "name=new", start, *settings)
    assert code == 0, said
    assert f"training begins from {file}" in said
    summary = summary_of(longview, "new")
    assert summary["config"]["learner"]["start_from"] == str(file)
    assert summary["start"]["left"] == [
        *("denoiser.actions.weight", "denoiser.out.1.weight", "denoiser.out.1.bias")
    ]
    assert summary["start"]["lines"][0] in said
    folder = longview.folder / "runs" / "new"
    assert summary["start"]["lines"][0] in (folder / "log.txt").read_text()
    assert "The training began from the policy" in (folder / "report.html").read_text()
    assert (folder / "checkpoints" / "step-000000012" / "adapter.safetensors").exists()
    file.unlink()
    code, said = forked("train", "--resume", "new", "learner.steps=14")
    assert code == 0, said
    assert "training begins" not in said


def test_data_sets_of_another_robot_are_refused(longview: Longview, forked: Forked) -> None:
    first = recorded(longview.folder / "monday.zarr")
    with h5py.File(longview.folder / "other.hdf5", "w") as file:
        for index in range(3):
            demo = file.create_group(f"data/demo_{index}")
            demo["obs/joints"], demo["actions"] = np.zeros((8, 4)), np.zeros((8, 2))
    code, said = forked("train", str(first), "other.hdf5", "--hz", "10")
    assert (code, "there is no observation.state" in said) == (1, True), said
    assert not (longview.folder / "runs").exists()


def test_an_existing_path_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    given = ["./data", "a=b", "c=d", "learner.steps=5", "x/y=z"]
    assert split(given) == (["./data", "a=b", "x/y=z"], ["c=d", "learner.steps=5"])


def filmed_episodes(spec: TaskSpec, count: int) -> Iterator[Episode]:
    """Make episodes whose pictures move like a camera's: a texture that slides."""
    rng = np.random.default_rng(0)
    textures = {key: rng.integers(0, 255, (60, 80, 3), np.uint8) for key in ("front", "wrist")}
    textures = {key: small.repeat(8, axis=0).repeat(8, axis=1) for key, small in textures.items()}
    for index in range(count):
        state = rng.normal(size=(spec.max_steps, 6)).cumsum(axis=0).astype(np.float32)
        pictures = {
            f"observation.{key}": np.stack([np.roll(wide, step, axis=1) for step in range(spec.max_steps)])
            for key, wide in textures.items()
        }
        arrays = {"observation.state": state, "action": np.roll(state, -1, axis=0)} | pictures
        arrays["reward"] = np.zeros(spec.max_steps, np.float32)
        arrays["controller"] = np.full(spec.max_steps, BY_EXPERT)
        yield Episode(EpisodeMeta(f"demo.arm.{index:09d}", "arm", index, "demo"), "success", arrays)


@pytest.mark.slow
def test_half_an_hour_of_two_cameras_takes_at_most_8_gib(longview: Longview) -> None:
    """Import and training of 30 minutes of VGA video: the memory of all processes together, a shared page
    counted once. The training goes on until its cache holds nearly all decoded frames, or is full."""
    picture = ArraySpec((480, 640, 3), "uint8", 0.0, 255.0)
    arrays = {"state": ArraySpec((6,)), "front": picture, "wrist": picture}
    steps = 10 * 30
    spec = TaskSpec("arm", arrays, ArraySpec((6,)), 30.0, steps, (1, 2, 4, 8, 16), 1)
    first = longview.folder / "arm-0"
    lerobot_writer.write(first, spec, filmed_episodes(spec, 6), False)
    data = [first, *(repeated(first, number) for number in range(1, MINUTES))]
    # Each training step draws 8 segments of about 135 steps, read in whole chunks of 64. 200 training steps
    # cover 99 % of the 162 episodes of 300 steps that are not held out; 24 would cover half.
    settings = ("name=arm", "learner.steps=200")
    process = longview.start("train", *map(str, data), "--task", "arm", *settings)
    peak = trainer = 0
    with ThreadPoolExecutor(1) as thread:
        # Its lines would fill a pipe that nobody reads.
        ending = thread.submit(process.communicate, timeout=3000)
        while not ending.done():
            taken = {pid: proportional_bytes(pid) for pid in longview.processes()}
            peak, trainer = max(peak, sum(taken.values())), max(trainer, taken.get(process.pid, 0))
            time.sleep(0.5)
    assert process.returncode == 0, ending.result()[0]
    assert peak <= 8 << 30, f"{peak / 2**30:.1f} GiB"
    decoded = 162 * steps * 2 * 96 * 96 * 3
    assert trainer >= min(decoded, StoreConfig().cache()), f"{trainer / 2**30:.1f} GiB: the cache is not full"


def repeated(first: Path, number: int) -> Path:
    """Copy a data set of a minute, with other actions, so that its episodes count as others. The videos are
    linked: to encode each would take longer than the test."""
    copy = first.with_name(f"arm-{number}")
    shutil.copytree(first, copy, copy_function=os.link)
    for file in copy.glob("data/**/*.parquet"):
        table = parquet.read_table(file)
        actions = table["action"].combine_chunks()
        moved = arrow.FixedSizeListArray.from_arrays(
            arrow.compute.add(actions.flatten(), arrow.scalar(number, arrow.float32())), type=actions.type
        )
        file.unlink()
        parquet.write_table(table.set_column(table.column_names.index("action"), "action", moved), file)
    return copy


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, of which shared pages are divided among those who share them."""
    try:
        rows = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:")), 0)
