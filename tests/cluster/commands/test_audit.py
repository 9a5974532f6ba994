"""Tests of `longview audit`: data sets as files and in a store, real networks."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from longview.cluster.cli import app
from longview.cluster.commands.audit import audit
from longview.cluster.run.config import ConfigError, DataConfig
from longview.cluster.run.services import redis_server
from longview.learner.audit import errors
from longview.replay.errors import DatasetError
from tests.conftest import Longview


def recorded(
    path: Path, episodes: int = 24, steps: int = 24, memory: bool = True, acted: bool = False
) -> Path:
    """Write a robomimic file in which the last actions are what the first frames showed, or what the present
    frame shows. The first actions may tell it, too."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(episodes):
            side = rng.choice((-1.0, 1.0))
            state, action = rng.normal(size=(steps, 2)) / 10, np.zeros((steps, 1))
            state[:3, 0], action[16:, 0] = side, side
            state[:, 1] = np.arange(steps) / steps
            if not memory:
                state[:, 0] += side
            if acted:
                action[:3] = side
            group = file.create_group(f"data/demo_{number}")
            group.attrs["num_samples"] = steps
            group["obs/state"], group["actions"] = state.astype(np.float32), action.astype(np.float32)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a moment only. The test whose data are audited as a user would has a process of its own."""
    for name, value in {"STEPS": 120, "SEGMENTS": 8, "WINDOWS": 16}.items():
        monkeypatch.setattr(errors, name, value)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("memory", [True, False])
def test_an_audit_tells_whether_memory_is_needed(
    tmp_path: Path, memory: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data, report = recorded(tmp_path / "drawer.hdf5", memory=memory), tmp_path / "report.html"
    audit([str(data)], DataConfig(hz=10), None, None, 0, report, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] is memory
    assert found["episodes"] == 24
    if memory:
        assert 14 <= found["T_o"] <= 24
        assert found["reach_steps"] == found["T_o"] - 1
        assert found["controls"]["past of another episode"]["gain_kept"] < 0.5
        assert "a policy may copy" not in " ".join(found["lines"])
        assert f"learner.policy.context_length={found['T_o']}" in found["command"]
    else:
        assert found["T_o"] <= 6
        assert {control["gain_kept"] for control in found["controls"].values()} == {None}
    assert found["command"].startswith(f"longview train {data} --hz 10 learner.")
    assert list(found["action_error"]) == ["1", "2", "3", "4", "6", "8", "11", "16", "23"]
    page = report.read_text()
    for text in ("Does drawer need memory?", "Controls", "past actions alone", found["lines"][0]):
        assert text in page, text


@pytest.mark.usefixtures("quick")
def test_past_actions_that_tell_as_much_as_past_frames_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The present frame does not tell the last actions, but the first frames and the first actions do."""
    monkeypatch.setattr(errors, "ACTIONS_SHARE", 0.5)  # in so short a training
    data, report = recorded(tmp_path / "drawer.hdf5", acted=True), tmp_path / "report.html"
    audit([str(data)], DataConfig(hz=10), None, None, 0, report, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] is True
    assert found["controls"]["single frame"]["gain_kept"] < 0.5
    assert found["controls"]["past actions alone"]["gain_kept"] >= 0.8
    assert found["lines"][-1].endswith(
        ": they tell it as well, so a policy may copy its own past actions instead of looking"
    )
    assert found["lines"][-1] in report.read_text()


@pytest.mark.slow
def test_a_user_reads_the_answer_and_can_follow_it(longview: Longview) -> None:
    data = recorded(longview.folder / "drawer.hdf5")
    code, said = longview("audit", str(data), "--hz", "10")
    assert code == 0, said
    assert "drawer: 24 episodes, 576 steps at 10 Hz" in said
    assert "memory: yes, about" in said
    assert "report: drawer-audit.html" in said
    assert (longview.folder / "drawer-audit.html").exists()
    command = next(line for line in said.splitlines() if line.startswith("train with it: longview train"))
    code, said = longview(*command.split()[4:], "learner.steps=12", "name=followed")
    assert code == 0, said


def test_episodes_of_a_store_are_audited_as_those_of_a_file_are(
    longview: Longview, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "STEPS", 3)
    data = recorded(longview.folder / "drawer.hdf5", episodes=10)
    with redis_server(longview.folder / "redis") as url:
        code, said = longview(
            "store", "import", str(data), "--task", "drawer", "demos", "--url", url, "--hz", "10"
        )
        assert code == 0, said
        audit(["demos"], DataConfig(), url, None, 0, longview.folder / "r.html", as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert (found["task"], found["episodes"]) == ("drawer", 10)
        assert found["command"].startswith(f"longview train demos --url {url} learner.")
        with pytest.raises(ConfigError, match="--url takes one namespace, not demos, more"):
            audit(["demos", "more"], DataConfig(), url, None, 0, None, as_json=True)


def test_what_cannot_be_read_is_left_out_only_if_a_person_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "STEPS", 3)
    data, report = recorded(tmp_path / "drawer.hdf5", episodes=9), tmp_path / "r.html"
    with h5py.File(data, "a") as file:
        file["data/demo_4/obs/state"][5, 0] = np.nan
    with pytest.raises(DatasetError, match="demo_4"):
        audit([str(data)], DataConfig(hz=10), None, None, 0, report, as_json=True)
    audit([str(data)], DataConfig(hz=10, skip_bad=True), None, None, 0, report, as_json=False)
    said = capsys.readouterr().out
    assert "could not be read, left out 1:" in said
    assert "<b>8</b> episodes" in report.read_text()
    more = shutil.copy(data, tmp_path / "more.hdf5")  # the first one may still be open
    with h5py.File(more, "a") as file:
        file["data/demo_5/obs/state"][5, 0] = np.nan
    with pytest.raises(DatasetError, match="7 episodes are too few"):
        audit([str(more)], DataConfig(hz=10, skip_bad=True), None, None, 0, report, as_json=True)


def test_episodes_with_fewer_steps_than_parts_get_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "STEPS", 3)
    data, report = recorded(tmp_path / "short.hdf5", episodes=10, steps=8), tmp_path / "r.html"
    audit([str(data)], DataConfig(hz=10), None, None, 0, report, as_json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    for row in found["by_part"].values():
        assert [value is None for value in row].count(True) == 4
    assert "Does short need memory?" in report.read_text()


def test_pictures_alone_get_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "STEPS", 3)
    data, rng = recorded(tmp_path / "filmed.hdf5", episodes=8, steps=12), np.random.default_rng(0)
    with h5py.File(data, "a") as file:
        for demo in file["data"].values():
            demo["obs/front"] = rng.integers(0, 255, (12, 48, 64, 3), np.uint8)
    audit([str(data)], DataConfig(hz=10, keys=("front",)), None, None, 0, tmp_path / "r.html", as_json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["episodes"], found["steps"]) == (8, 96)
    assert found["controls"]["single frame"]["error"] > 0
    assert "--keys front" in found["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--seed", "-1"), "should be greater than or equal to 0"), (("--report", "."), "is a folder")],
)
def test_mistakes_are_refused_before_anything_is_read(arguments: tuple[str, ...], message: str) -> None:
    found = CliRunner().invoke(app, ["audit", "absent.hdf5", *arguments])
    assert (found.exit_code, message in found.output) == (2, True), found.output


def test_a_report_without_a_folder_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        audit(["absent.hdf5"], DataConfig(), None, None, 0, Path("nowhere/r.html"), as_json=True)


def test_too_little_data_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    few = recorded(tmp_path / "few.hdf5", episodes=7)
    with pytest.raises(DatasetError, match="7 episodes are too few: an audit needs at least 8"):
        audit([str(few)], DataConfig(hz=10), None, None, 0, None, as_json=True)
    short = recorded(tmp_path / "short.hdf5", episodes=8, steps=5)
    with pytest.raises(DatasetError, match=r"too short to need a memory of more than 0\.5 s"):
        audit([str(short)], DataConfig(hz=10), None, None, 0, None, as_json=True)
