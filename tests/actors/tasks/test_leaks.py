"""Memory is needed: one frame tells little. A smaller sample than for the table in docs/tasks.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "leaks.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("task", "known"),
    [("grasp_and_return", 98), ("push_and_return", 97), ("count_scoops", 98), ("slide_puck", 94)],
)
def test_one_frame_tells_little_and_the_history_much(task: str, known: float, tmp_path: Path) -> None:
    file = tmp_path / "leaks.json"
    subprocess.run([sys.executable, BENCHMARK, "--quick", "--task", task, "--json", file], check=True)
    rows = json.loads(file.read_text())["rows"]
    frames = {row["case"]: row["value"] for row in rows if row["measure"] == "told_by_one_frame"}
    history = [row["value"] for row in rows if row["measure"] == "told_by_history"]
    assert len(frames) == (2 if task == "slide_puck" else 3)  # which has no arm
    # 400 episodes give wider intervals than 2000, and the worst of many steps and classifiers counts.
    assert max(frames.values()) <= 15, frames
    assert min(history) >= known
