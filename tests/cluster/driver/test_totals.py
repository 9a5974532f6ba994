"""What the driver tells the hub of a run's progress."""

from pathlib import Path

import pytest

from longview.actors.task import load_task
from longview.cluster.driver.totals import totals_of
from longview.cluster.run.config import read_config
from longview.cluster.run.folder import Run
from longview.cluster.run.progress import RunProgress
from longview.monitoring.success import Evaluation
from longview.replay.stats import StoreStats

EMPTY = StoreStats(stored={}, committed={}, evicted={}, byte_budget=1)


def test_the_time_left_follows_from_the_pace_of_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: now)
    now = 100.0
    settings = ["actors.demonstrations=35", "learner.validation_episodes=5"]
    progress = RunProgress(Run(tmp_path), read_config(None, settings), load_task("return_point").spec)
    progress.enter("collect")
    assert "longview_phase_seconds_left" not in totals_of(progress, EMPTY, ended=False).values

    now, progress.demonstrations = 130.0, 10
    told = totals_of(progress, EMPTY, ended=False).values
    assert told["longview_phase_seconds_left"] == {(): 90.0}
    assert told["longview_phase"] == {(): 1.0}

    ended = totals_of(progress, EMPTY, ended=True).values
    assert "longview_phase_seconds_left" not in ended
    assert ended["longview_phase"] == {(): 0.0}


def test_the_drop_of_success_is_that_of_the_newest_versions(tmp_path: Path) -> None:
    """Three versions of 2 successes follow three of 10, at one context length; at the other nothing falls."""
    settings = ["evaluation.context_lengths=[1,8]"]
    progress = RunProgress(Run(tmp_path), read_config(None, settings), load_task("return_point").spec)
    for version, falling in enumerate((10, 10, 10, 2, 2, 2)):
        for length, successes in ((1, 10), (8, falling)):
            outcomes = {"success": successes, "failure": 10 - successes}
            progress.history.append(Evaluation(100 * version, length, 10, outcomes))
    told = totals_of(progress, EMPTY, ended=False).values
    drop = {("return_point", "1"): 0.0, ("return_point", "8"): pytest.approx(0.8)}
    assert told["longview_success_drop_ratio"] == drop
