"""`longview check-task`: what it prints, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = """
from longview.actors.environment import SimulatedTask
from longview.actors.tasks.counting import Counting, expert, spec


class Stuck(Counting):
    def outcome(self):
        return "done" if super().outcome() else None


task = SimulatedTask(spec, Stuck, expert)
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The command, as an installed script runs it: the working folder is not on the Python path."""
    script = "import sys; sys.argv[0] = 'longview'; from longview.cluster.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "check-task", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONSAFEPATH": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_task_that_is_right_is_exit_0(tmp_path: Path) -> None:
    code, output = run(tmp_path, "return_point")
    assert code == 0, output
    assert "succeeds in 20 of 20 episodes" in output
    assert "wrong" not in output


def test_a_task_that_is_wrong_is_exit_1_and_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    code, output = run(tmp_path, "broken:task")
    assert code == 1, output
    assert "outcome must be one of success, wrong, failure, invalid, not 'done'" in output
    assert "episodes: reset, step and expert must not raise this" in output


def test_json_holds_every_finding(tmp_path: Path) -> None:
    code, output = run(tmp_path, "counting", "--json")
    assert code == 0, output
    result = json.loads(output)
    assert result["task"] == "counting"
    assert {"check": "actions", "verdict": "ok", "advice": ""}.items() <= result["checks"][3].items()
    assert len(result["checks"]) == 12


@pytest.mark.parametrize(
    ("name", "words"),
    [("return_pont", "did you mean return_point?"), ("absent:task", "No module named 'absent'")],
)
def test_an_unknown_task_is_exit_2_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    code, output = run(tmp_path, name)
    assert code == 2, output
    assert words in output
    assert output.startswith("longview: ")
    assert output.count("\n") == 1
