"""Progress of a run according to its evaluations."""

from pathlib import Path
from typing import Any

import pytest

from longview.actors.task import load_task
from longview.cluster.roles.rank import held_out
from longview.cluster.run.config import read_config
from longview.cluster.run.folder import Run
from longview.cluster.run.progress import RunProgress
from longview.cluster.views.summary import summarize
from longview.monitoring.success import Evaluation


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ([], 58),
        (["actors.demonstrations=20", "learner.validation_episodes=3"], 23),
        (["learner.validation_episodes=0"], 50),
        (["demonstrations=human.zarr"], 58),
        (["demonstrations=human.zarr", "actors.demonstrations=8"], 8),
    ],
)
def test_what_is_validated_on_comes_in_addition(tmp_path: Path, settings: list[str], wanted: int) -> None:
    progress = RunProgress(Run(tmp_path), read_config(None, settings), load_task("return_point").spec)
    assert progress.wanted == wanted


class Imported:
    """A store that holds so many imported episodes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def ids(self, source: str) -> list[str]:
        return [f"import.{index:03d}" for index in range(self.count)] if source == "import" else []


@pytest.mark.parametrize("count", [1, 8, 9, 10, 16, 17, 50])
def test_imported_demonstrations_are_trained_on_in_the_number_that_is_asked_for(
    tmp_path: Path, count: int
) -> None:
    config = read_config(None, ["demonstrations=human.zarr", f"actors.demonstrations={count}"])
    progress = RunProgress(Run(tmp_path), config, load_task("return_point").spec)
    store: Any = Imported(progress.wanted)  # of a file that has enough
    unseen = held_out(store, config.learner.validation_episodes)
    assert (progress.wanted - len(unseen), len(unseen)) == (count, 8 if count > 8 else 0)


def evaluation(version: int, length: int, **outcomes: int) -> Evaluation:
    return Evaluation(version, length, wanted=20).plus(outcomes, steps=10)


def test_a_summary_has_the_three_counts_of_the_newest_round(tmp_path: Path) -> None:
    config = read_config(None, ["evaluation.final_episodes=20"])
    progress = RunProgress(Run(tmp_path), config, load_task("return_point").spec)
    progress.history += [
        evaluation(100, 1, success=2, wrong=2),
        evaluation(200, 1, success=9, wrong=8, failure=3),
        evaluation(200, 8, success=15, wrong=1, failure=1, invalid=3),
        evaluation(200, 64, success=4),
    ]
    summary = summarize(progress, "finished")
    assert summary["success"]["return_point"] == {
        "1": {"successes": 9, "completed": 17, "episodes": 20},
        "8": {"successes": 15, "completed": 16, "episodes": 17},
        "64": {"successes": 4, "completed": 4, "episodes": 4},
    }
    assert (summary["chance"], summary["policy_version"]) == (0.5, 200)
    # Invalid episodes count as rolled out, so a resumed run does not evaluate again because of them.
    rolled_out = {length: found.rolled_out for length, found in progress.evaluated(200).items()}
    assert rolled_out == {1: 20, 8: 20, 64: 4}
