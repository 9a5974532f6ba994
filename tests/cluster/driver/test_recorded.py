"""Tests of what a run on recorded data says of its held-out episodes."""

import json
from pathlib import Path

import numpy as np
import pytest

from longview.cluster.driver.recorded import POSITIONS, WINDOWS, film_of_cameras, held_out_account
from longview.monitoring import report
from longview.monitoring.film import COLUMNS, moments
from longview.replay.episode import Episode, EpisodeMeta


def test_windows_in_which_a_policy_acted_are_left_out() -> None:
    """The first episode tells the second half, the second one all, the third one nothing. The very first
    position is told by nobody."""
    half, whole, nothing = np.full((3, 2, WINDOWS), np.nan)
    half[:, WINDOWS // 2 :] = 1.0
    whole[:, WINDOWS // POSITIONS :] = [[2.0], [4.0]]
    found = held_out_account({"half": list(half), "whole": list(whole), "nothing": list(nothing)}, (1, 8))
    assert found is not None
    assert found["episodes"] == 2
    assert [row["id"] for row in found["worst"]] == ["whole", "half"]
    assert {length: row["mean"] for length, row in found["action_error"].items()} == {"1": 1.5, "8": 2.5}
    places = found["by_position"]["8"]
    assert places[0] == {"mean": None, "low": None, "high": None}
    assert [place["mean"] for place in places[1:]] == [4.0] * 4 + [2.5] * 5
    json.dumps(found, allow_nan=False)
    assert held_out_account({"nothing": list(nothing)}, (1, 8)) is None


@pytest.mark.parametrize("name", ["error_plot", "position_plot"])
def test_positions_that_no_episode_tells_are_gaps_in_the_report(name: str, tmp_path: Path) -> None:
    rows = np.full((2, WINDOWS), np.nan)
    rows[:, 5:] = 1.0
    found = held_out_account({"half": list(rows)}, (1, 8))
    file = tmp_path / "plot.png"
    getattr(report, name)(found, file)
    assert file.stat().st_size


def test_a_film_holds_only_the_moments_that_a_sheet_shows() -> None:
    rng, steps = np.random.default_rng(0), 30
    front, wrist = (rng.integers(0, 256, (steps, 6, width, 3), np.uint8) for width in (4, 5))
    arrays = {
        "observation.front": front,
        "observation.wrist": wrist,
        "action": np.zeros((steps, 2), np.float32),
    }
    film = film_of_cameras(Episode(EpisodeMeta("a", "fold", 0, "import"), "success", arrays))
    assert len(film) == steps
    assert sum(frame is not None for frame in film) == COLUMNS
    for step in moments(steps):
        np.testing.assert_array_equal(film[step], np.concatenate([front[step], wrist[step]], axis=1))
