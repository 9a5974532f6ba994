"""Studies from end to end: real runs on this machine."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.cluster.run.study import STUDIES
from tests.conftest import Longview

TINY = {
    "actors.count": 1,
    "actors.simulators": 4,
    "actors.demonstrations": 4,
    "learner.steps": 20,
    "learner.warmup": 5,
    "learner.batch_size": 8,
    "learner.validation_episodes": 2,
}
"""Settings of a training that takes seconds."""


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_study_goes_on_and_runs_no_cell_twice(longview: Longview) -> None:
    study = {
        "settings": TINY | {"task": "return_point", "evaluation.context_lengths": [1, 8]},
        "methods": {
            "long": {"trained": "longest"},
            "joint": {},
            "reversed": {"settings": {"evaluation.history": "reversed"}},
        },
        "control": "joint",
        "looks": [4, 8],
    }
    (longview.folder / "mine.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    cells = longview.folder / "mine.jsonl"
    driver = longview.start("study", "run", "mine.yaml")
    longview.wait_for(lambda: len(rows_of(cells)) == 1 and longview.processes("launch"), seconds=600)
    os.kill(driver.pid, signal.SIGKILL)
    first = rows_of(cells)
    longview.wait_for(lambda: not longview.processes("launch"), seconds=240)
    output, _ = (again := longview.start("study", "run", "mine.yaml")).communicate(timeout=1200)
    assert again.returncode == 0, output
    rows = rows_of(cells)
    assert rows[: len(first)] == first, "a finished cell's line stays"
    # Two looks, none of which decides anything with so few episodes; no look of a cell is written twice.
    expected = {"long": 2, "joint": 2, "joint (again)": 2, "reversed": 2}
    assert Counter(row["cell"]["method"] for row in rows) == expected
    joint, control = (
        next((longview.folder / "runs" / "mine").glob(f"*{name}-0-*")) for name in ("joint", "reversed")
    )
    policies = [
        folder / "checkpoints" / "step-000000020" / "policy.safetensors" for folder in (joint, control)
    ]
    assert policies[0].read_bytes() == policies[1].read_bytes()
    last = {row["cell"]["method"]: row for row in rows}
    assert {length: len(endings) for length, endings in last["joint"]["endings"].items()} == {"1": 8, "8": 8}
    before = next(row for row in rows if row["cell"]["method"] == "joint")
    assert last["joint"]["endings"]["8"].startswith(before["endings"]["8"])
    demonstrations = [
        json.loads(file.read_text())["episodes"]
        for file in (longview.folder / "runs" / "mine").glob("demonstrations-*/summary.json")
    ]
    assert [sum(row["episodes"] for row in each) for each in demonstrations] == [6], "they are collected once"
    assert (longview.folder / "runs" / "mine" / "report.html").exists()
    code, output = longview("study", "run", "mine.yaml")
    assert code == 0
    assert len(rows_of(cells)) == len(rows), "nothing is left to do"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_ends_within_a_quarter_of_an_hour_though_it_is_killed(longview: Longview) -> None:
    cells, began = longview.folder / "quick.jsonl", time.monotonic()
    driver = longview.start("study", "run", "quick")
    longview.wait_for(lambda: bool(rows_of(cells)), seconds=600)
    os.kill(driver.pid, signal.SIGKILL)
    longview.wait_for(lambda: not longview.processes("launch"), seconds=240)
    again = longview.start("study", "run", "quick")
    output, _ = again.communicate(timeout=900 - (time.monotonic() - began))
    assert again.returncode == 0, output
    last = {row["cell"]["method"]: row["success"] for row in rows_of(cells)}
    assert last.keys() == {"no history", "naive long", "progressive", "progressive (again)"}
    assert last["naive long"]["64"]["successes"] > last["no history"]["1"]["successes"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("task", "lengths"), [("return_point", [4, 16, 64]), ("slide_puck", [8, 16, 64])], ids=["unet", "mlp"]
)
def test_a_cell_of_each_remedy_ends(longview: Longview, task: str, lengths: list[int]) -> None:
    settings = [f"{key}={value}" for key, value in TINY.items() if key != "actors.demonstrations"]
    study = yaml.safe_load((STUDIES / "remedies.yaml").read_text())
    methods = study["methods"]
    for trained in ("each", "shortest"):
        methods[trained] = {
            "trained": trained,
            "settings": {"learner.policy.past_actions": int(trained == "each")},
        }
    for method in methods.values():
        if "learner.encoder_steps" in method["settings"]:
            method["settings"]["learner.encoder_steps"] = TINY["learner.steps"] // 2
    (longview.folder / "short.yaml").write_text(yaml.safe_dump(study))
    process = longview.start(
        *("study", "run", "short.yaml", "--cells", "cells.jsonl"),
        *(f"axes.task=[{task}]", "axes.data_scale=[0.1]", "seeds=[0]", "looks=[2]"),
        *("control=null", f"evaluation.context_lengths={lengths}", *settings),
    )
    output, _ = process.communicate(timeout=3500)
    assert process.returncode == 0, output
    rows = rows_of(longview.folder / "cells.jsonl")
    assert {row["cell"]["method"] for row in rows} == set(methods)
    assert all(set(row["endings"].values()) for row in rows)
