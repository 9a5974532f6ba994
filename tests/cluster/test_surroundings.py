"""Whole runs in surroundings that are not as friendly as those of their makers."""

import json
import shutil
from typing import Any

import pytest

from tests.conftest import FullDisk

TINY = (
    *("actors.count=1", "actors.simulators=2", "actors.demonstrations=3"),
    *("learner.steps=4", "learner.batch_size=8", "learner.warmup=1", "learner.validation_episodes=0"),
    *("learner.publish_every=4", "learner.checkpoint_every=4", "learner.policy.widths=[16,32]"),
    *("evaluation.episodes=0", "evaluation.final_episodes=2", "evaluation.context_lengths=[1]"),
)


@pytest.mark.slow
def test_a_terminal_without_letters_that_goes_away_and_a_long_temporary_folder(longview: Any) -> None:
    temporary = longview.folder / ("x" * 100)
    temporary.mkdir()
    name = "Läuft gut #2"
    process = longview.start(
        *("demo", "--task", "counting", f"name={name}", *TINY),
        PYTHONIOENCODING="ascii",
        TMPDIR=str(temporary),
    )
    process.stdout.close()
    longview.started.remove(process)  # its output cannot be read any more
    assert process.wait(timeout=240) == 0
    folder = longview.folder / "runs" / name
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["run"], summary["status"]) == (name, "finished")
    code, output = longview("status", name, PYTHONIOENCODING="ascii")
    assert code == 0
    assert "finished after" in output


def test_a_full_disk_ends_a_run_with_one_line(longview: Any, full_disk: FullDisk) -> None:
    code, output = longview("collect", "counting", "--episodes", "3", "name=run")
    assert code == 0, output
    shutil.copytree(longview.folder / "runs", full_disk.folder / "runs")
    environment = {"LONGVIEW_RUNS": str(full_disk.folder / "runs")}
    full_disk.fill(leaving=64 << 10)  # the checkpoint has more
    code, output = longview("launch", "--resume", "run", *TINY, **environment)
    assert code == 1
    assert "longview: training failed: [Errno 28] No space left on device: '/" in output
    assert "checkpoints/step-" in output
    assert "Traceback" not in output
