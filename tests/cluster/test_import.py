"""Runs that start from human demonstrations."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from longview.cluster.run.folder import Run, open_store

SMALL = """
task: push_t
actors: {count: 1, simulators: 2}
learner:
  steps: 6
  warmup: 2
  batch_size: 8
  publish_every: 3
  checkpoint_every: 3
  policy: {architecture: mlp, width: 32, depth: 1, token_size: 8, sampling_steps: 1}
evaluation: {episodes: 0, final_episodes: 2, context_lengths: [1, 20]}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(SMALL)
    return "small.yaml"


def imported(run: Run) -> dict[str, int]:
    """Check that all episodes in the store were imported, and return their lengths."""
    with open_store(run, None) as store:
        assert store.ids() == store.ids("import")
        return {id: store.read(id).length for id in store.ids()}


@pytest.mark.slow
def test_a_run_imports_trains_and_resumes(longview: Any, config: str, push_t_buffer: Path) -> None:
    buffer, run = longview.folder / "human.zarr", Run(longview.folder / "runs" / "human")
    shutil.copytree(push_t_buffer, buffer)
    arguments = ("name=human", "demonstrations=human.zarr", "actors.demonstrations=4")
    code, output = longview("launch", config, *arguments)
    assert code == 0, output
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["policy_version"] == 6
    assert {length: row["episodes"] for length, row in summary["success"]["push_t"].items()} == {
        "1": 2,
        "20": 2,
    }
    assert summary["episodes"] == [
        {"source": "import", "outcome": "success", "episodes": 4, "steps": 99, "learnable": 99}
    ]
    lengths = imported(run)
    assert [id.rpartition(".")[0] for id in lengths] == [f"import.push_t.{index:09d}" for index in range(4)]
    assert list(lengths.values()) == [30, 12, 45, 12]

    # The run wants more than the data has. It gets all of them, and adds none twice.
    code, output = longview("launch", "--resume", "human", "learner.steps=9", "actors.demonstrations=9")
    assert code == 0, output
    assert len(imported(run)) == 6
    assert imported(run).items() > lengths.items()

    shutil.rmtree(buffer)
    code, output = longview("launch", "--resume", "human")
    assert code == 2, output
    assert "demonstrations: there is no file or folder human.zarr" in output


def test_a_buffer_that_does_not_fit_is_exit_1_before_ray_starts(
    longview: Any, config: str, push_t_buffer: Path
) -> None:
    shutil.copytree(push_t_buffer, longview.folder / "human.zarr")
    shutil.rmtree(longview.folder / "human.zarr" / "data" / "action")
    code, output = longview("launch", config, "name=misfit", "demonstrations=human.zarr")
    assert code == 1, output
    assert "longview: human.zarr: there is no action, from which push_t has its action" in output
    assert not longview.processes()
