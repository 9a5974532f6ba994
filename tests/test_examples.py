"""examples/ work as their pages say: copied to a folder of the user's, and started there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longview.actors.checks import check_task
from longview.cluster.cli import app
from longview.learner.audit import errors
from longview.replay.datasets.formats import open_source

ROOT = Path(__file__).parents[1]
TINY = (
    *("actors.count=1", "actors.simulators=2", "actors.demonstrations=3"),
    *("learner.steps=4", "learner.publish_every=4", "learner.checkpoint_every=4", "learner.batch_size=8"),
    *("learner.warmup=1", "learner.validation_episodes=0"),
    *("evaluation.final_episodes=2", "learner.policy.widths=[16,32]"),
)


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples" / "own_task", tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_nothing_is_wrong_with_the_own_task(own_task: Path, longview: Any) -> None:
    code, output = longview("check-task", "own_task:task", "--json", PYTHONSAFEPATH="1")
    assert code == 0, output
    assert {check["verdict"] for check in json.loads(output)["checks"]} == {"ok"}


def test_the_own_task_is_learnt_without_being_installed(own_task: Path, longview: Any) -> None:
    code, output = longview("demo", "--task", "own_task:task", *TINY, PYTHONSAFEPATH="1")
    assert code == 0, output
    (run,) = (own_task / "runs").iterdir()
    assert re.fullmatch(r"own_task-\d{8}-\d{6}", run.name)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["task"]) == ("finished", "own_task")
    assert {row["episodes"] for row in summary["success"]["own_task"].values()} == {2}
    assert set(summary["success"]["own_task"]) == {"1", "8", "24"}
    assert (run / "episodes.png").exists()
    assert summary["config"]["evaluation"]["episodes"] == 10, "the preset was not used"


@pytest.fixture
def own_robot(longview: Any) -> Path:
    shutil.copytree(ROOT / "examples" / "own_robot", longview.folder, dirs_exist_ok=True)
    return Path(longview.folder)


def script(folder: Path, *arguments: str) -> str:
    """Run a script of a folder, and return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_own_robots_recordings_are_a_data_set(own_robot: Path) -> None:
    script(own_robot, "record.py", "weigh", "--episodes", "2")
    source = open_source(own_robot / "weigh", "weigh")
    assert source.spec.control_hz == 30
    assert source.spec.observation["images.front"].shape == (96, 128, 3)
    assert [source.reader.length(index) > 150 for index in source.indices] == [True, True]


@pytest.mark.slow
def test_the_own_robot_acts_with_a_policy_from_its_recordings(
    own_robot: Path, longview: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/your-robot.md, with trainings that are too short to learn anything."""
    script(own_robot, "record.py", "weigh", "--episodes", "8")  # an audit needs so many
    monkeypatch.chdir(own_robot)
    monkeypatch.setattr(errors, "STEPS", 3)
    audited = CliRunner().invoke(app, ["audit", "weigh"])
    assert (audited.exit_code, "weigh: 8 episodes" in audited.output) == (0, True), audited.output
    assert (own_robot / "weigh-audit.html").exists()
    short = ("learner.policy.context_length=16", "learner.steps=8", "learner.encoder_steps=4")
    code, output = longview(
        *("train", "weigh", "name=weigh", "--keys", "state,images.front", "--resize", "48x48", *short)
    )
    assert code == 0, output
    code, output = longview("show", "weigh", "--rerun", "weigh.rrd", "--policy", "weigh")
    assert code == 0, output
    assert (own_robot / "weigh.rrd").exists()
    server = longview.start("serve", "weigh", "--port", "0")
    said = server.stdout.readline()
    while "ws://" not in said:
        assert said, server.wait()
        said = server.stdout.readline()
    address = said[said.index("ws://") :].strip()
    for context in ((), ("--context", "4")):
        assert "right: " in script(own_robot, "act.py", address, "--episodes", "1", *context)
    server.terminate()


def test_the_task_of_the_page_is_right() -> None:
    page = (ROOT / "docs" / "own_task.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    findings = list(check_task(names["task"]))
    assert {finding.verdict for finding in findings} == {"ok"}, findings
