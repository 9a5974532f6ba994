"""What the benchmarks share. Their figures are nobody's to assert."""

import importlib
import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from longview.learner.policy import load_policy
from longview.learner.session import PolicySession

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("common.py", "training.py"))
HOURS = next(
    line.removeprefix("LONG :=").split()
    for line in (FOLDER.parent / "Makefile").read_text().splitlines()
    if line.startswith("LONG :=")
)
"""Scripts that take hours, and write cells of their own."""


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_common", FOLDER / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


HELP = """
import contextlib, io, json, runpy, sys
found, folder, *scripts = {}, *sys.argv[1:]
sys.path.insert(0, folder)
for script in scripts:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    found[script] = said.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def explained() -> dict[str, str]:
    """What each script prints for `--help`. One process asks them all: it loads PyTorch once."""
    command = [sys.executable, "-c", HELP, FOLDER, *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(explained: dict[str, str], script: Path) -> None:
    assert "--quick" in explained[str(script)]
    assert "--json FILE" in explained[str(script)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if path.stem not in (*HOURS, "gpu")],
    ids=lambda path: path.name,
)
def test_a_quick_run_measures(script: Path, tmp_path: Path) -> None:
    """A script keeps up with what it measures. tests/learner/test_gpu.py runs gpu.py."""
    file = tmp_path / "found.json"
    command = [sys.executable, script, "--quick", "--json", file]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1150)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(file.read_text())["rows"]
    assert rows
    assert all(row["samples"] for row in rows)


def test_the_file_says_where_what_and_how_much(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [common.Row("walk", "slowly", "m/s", [3.0, 1.0, 2.5]), common.Row("run", "", "m/s", [7.0])]
    found = common.results(common.machine(torch_threads=1), rows, {"run_over_walk": 2.8})
    common.finish(found, {"run_over_walk": ">= 3", "walk": "<= 2.5"}, tmp_path / "found.json")

    written = json.loads((tmp_path / "found.json").read_text())
    assert written.keys() == {"machine", "rows", "ratios"}
    assert written["ratios"] == {"run_over_walk": 2.8}
    assert written["machine"]["torch_threads"] == 1
    assert written["machine"]["cores"] >= 1
    assert written["rows"][0] == {
        "measure": "walk",
        "case": "slowly",
        "unit": "m/s",
        "value": 2.5,
        "low": 1.0,
        "high": 3.0,
        "samples": [3.0, 1.0, 2.5],
    }
    printed = capsys.readouterr().out
    assert ">= 3 missed" in printed
    assert "<= 2.5 met" in printed


def test_a_finished_cell_is_a_line_also_after_one_that_broke_off(common: ModuleType, tmp_path: Path) -> None:
    Cell = NamedTuple("Cell", [("task", str), ("seed", int)])  # noqa: UP014
    cells, file, runs = [Cell("lift", 0), Cell("lift", 1)], tmp_path / "cells.jsonl", list[int]()

    def run(cell: Any, done: Any) -> dict[str, int]:
        runs.append(cell.seed)
        return {"twice": 2 * cell.seed}

    found = common.completed(file, cells[:1], run, lambda *_: "")
    with file.open("a") as lines:
        lines.write('{"cell": ["lift", 1], "tw')  # its process was killed
    for _ in range(2):
        found = common.completed(file, cells, run, lambda *_: "")
        assert {cell: result["twice"] for cell, result in found.items()} == {cells[0]: 0, cells[1]: 2}
        assert all(result["cpu"] for result in found.values()), "another machine may find other figures"
    assert runs == [0, 1], "no cell is run twice"


def test_sides_are_measured_in_turns(common: ModuleType) -> None:
    order: list[str] = []

    def side(name: str, value: float) -> float:
        order.append(name)
        return value

    samples = common.interleaved({"a": lambda: side("a", 6.0), "b": lambda: side("b", 3.0)}, rounds=20)
    rounds = {"".join(order[place : place + 2]) for place in range(0, 40, 2)}
    assert rounds == {"ab", "ba"}
    assert common.ratio(samples["a"], samples["b"]) == 2.0


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("online")


def collected(online: ModuleType, successes: int, corrected: int = 0) -> dict[str, Any]:
    """Return what `taken` makes of a run's summary: 5 demonstrations and 2 held-out ones, 80 steps each."""
    counts = {
        str(length): {"episodes": 20, "successes": right, "completed": 20}
        for length, right in ((4, 10), (48, successes))
    }
    sources = {"demo": (7, 560), "correction": (4, 300)}
    summary = {
        "task": "grasp_and_return",
        "success": {"grasp_and_return": counts},
        "config": {"learner": {"steps": 4000}},
        "expert_steps": corrected,
        "episodes": [
            {"source": source, "episodes": episodes, "steps": steps}
            for source, (episodes, steps) in sources.items()
            if source == "demo" or corrected
        ],
        "actor_seconds": {"policy": 30.0, "limited": 40.0, "ended": 20.0, "waiting": 10.0},
        "phases": {"collect": 60.0, "train": 120.0},
    }
    found: dict[str, Any] = online.taken(summary)
    return found


def test_arms_get_equal_expert_steps(online: ModuleType) -> None:
    """Held-out demonstrations count, and C has as many further steps as the corrections of B took."""
    comparison = online.COMPARISONS["grasp_and_return"]
    cells = {arm: online.Cell("grasp_and_return", arm, 0) for arm in online.ARMS}
    done = {cells["A"]: collected(online, 12)}
    chosen = {arm: online.settings(cells[arm], comparison, done) for arm in "ABD"}
    done[cells["B"]] = collected(online, 18, corrected=240)
    chosen["C"] = online.settings(cells["C"], comparison, done)
    counts = {arm: settings[-1] for arm, settings in chosen.items()}
    assert counts == {
        arm: f"actors.demonstrations={count}" for arm, count in {"A": 5, "B": 5, "C": 8, "D": 10}.items()
    }
    extra = {"collect.kind=takeover", "collect.expert_steps=400", "collect.steps_per_training_step=0.25"}
    assert set(chosen["B"]) - set(chosen["A"]) == extra
    assert "evaluation.episodes=0" in chosen["A"], "only the last version is evaluated"


def test_settings_of_collect_change_what_corrections_are_and_not_what_they_are_compared_with(
    online: ModuleType,
) -> None:
    overrides = ["learner.steps=2000", "collect.kind=labels"]
    options = Namespace(seeds=[0], arms=["B", "C", "D"], overrides=overrides)
    comparison = online.COMPARISONS["grasp_and_return"]
    cells = {cell.arm: cell for cell in online.plan(options, {"grasp_and_return": comparison})}
    both, one = "learner.steps=2000 collect.kind=labels", "learner.steps=2000"
    assert {arm: cell.changes for arm, cell in cells.items()} == {"A": one, "B": both, "C": both, "D": one}
    done = {cells["A"]: collected(online, 12), cells["B"]: collected(online, 18, corrected=240)}
    assert online.settings(cells["C"], comparison, done)[-1] == "actors.demonstrations=8"


def test_gains_are_told_in_points_and_time_by_what_held_the_actors(online: ModuleType) -> None:
    cells = {arm: online.Cell("grasp_and_return", arm, 0) for arm in "ABC"}
    found = {
        cells["A"]: collected(online, 12),
        cells["B"]: collected(online, 18, corrected=240),
        cells["C"]: collected(online, 16),
    }
    assert online.expert_steps(found[cells["B"]]) == 560 + 240
    assert online.ratios(found) == {
        "corrections_over_none: grasp_and_return": pytest.approx(30),
        "corrections_over_demonstrations: grasp_and_return": pytest.approx(10),
        "actor_busy": pytest.approx(0.9),
        "actor_limited": pytest.approx(0.4),
        "actor_ended": pytest.approx(0.2),
    }


@pytest.mark.parametrize(
    "file",
    [FOLDER / "policies" / f"{task}_pixels.safetensors" for task in ("grasp_and_return", "push_and_return")],
    ids=lambda file: file.stem,
)
def test_a_policy_that_is_kept_is_small_and_acts_from_pictures(file: Path) -> None:
    assert file.stat().st_size <= 4_000_000
    policy = load_policy(file)
    spec, horizon = policy.spec, policy.horizon
    assert policy.cameras
    rng = np.random.default_rng(0)
    frame = {
        key: rng.random((1, *array.shape)).astype(array.dtype) for key, array in spec.observation.items()
    }
    executed = np.zeros((0, *spec.action.shape), np.float32)
    actions = PolicySession(policy, 1).act(
        (0,), [frame], [executed], np.ones(1, bool), horizon.context, rng.spawn(1)
    )
    assert actions.shape == (1, horizon.execute, *spec.action.shape)
    assert np.isfinite(actions).all()
