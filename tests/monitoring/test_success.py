"""Counts of an evaluation, its rates and their intervals."""

import json
import math

import pytest

from longview.monitoring.success import Counts, Evaluation, needs_memory, read_success, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "expected"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_values(
    successes: int, episodes: int, expected: tuple[float, float]
) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx(expected, abs=5e-5)
    low, high = wilson_interval(episodes - successes, episodes)
    assert (1 - high, 1 - low) == pytest.approx(expected, abs=5e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(7, 7)[1] == 1.0
    narrow, wide = wilson_interval(5, 10, confidence=0.5), wilson_interval(5, 10, confidence=0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


@pytest.mark.parametrize("successes", [-1, 11])
def test_wilson_refuses_impossible_counts(successes: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and the 10 episodes, not {successes}"):
        wilson_interval(successes, 10)


def test_contextual_success_is_a_share_of_the_completed_episodes() -> None:
    found = Counts(successes=3, completed=4, episodes=12).rates
    assert {name: rate.share for name, rate in found.items()} == {
        "success": 0.25,
        "completed": pytest.approx(1 / 3),
        "contextual": 0.75,
    }
    assert found["contextual"].interval == wilson_interval(3, 4)
    assert math.isnan(Counts(0, 0, 5).rates["contextual"].share)


def test_an_evaluation_counts_all_that_ended_and_rates_all_but_the_invalid() -> None:
    nothing = Evaluation(version=100, context_length=8, wanted=10)
    assert (nothing.counts, nothing.rolled_out, nothing.finished) == (Counts(0, 0, 0), 0, False)
    half = nothing.plus({"success": 3, "wrong": 2, "invalid": 1}, steps=60)
    whole = half.plus({"wrong": 1, "failure": 2, "invalid": 1}, steps=40)
    assert (half.counts, half.rolled_out, half.finished) == (Counts(3, 5, 5), 6, False)
    assert (whole.counts, whole.rolled_out, whole.finished) == (Counts(3, 6, 8), 10, True)
    assert (whole.steps, nothing.outcomes) == (100, {})


def test_an_evaluation_is_read_as_it_was_written() -> None:
    evaluation = Evaluation(100, 8, 10).plus({"success": 7, "wrong": 1, "invalid": 2}, 90, 7.2)
    assert evaluation.best_reward == pytest.approx(0.9)
    line = json.loads(json.dumps(evaluation.to_dict()))
    assert line == {
        "version": 100,
        "context_length": 8,
        "successes": 7,
        "completed": 8,
        "episodes": 8,
        "outcomes": {"success": 7, "wrong": 1, "invalid": 2},
        "steps": 90,
        "best_reward": 0.9,
    }
    assert Evaluation.from_dict(line) == evaluation


def test_success_in_json_is_read_in_the_order_of_its_lengths() -> None:
    rows = {str(length): {"successes": 1, "completed": 2, "episodes": length} for length in (64, 8, 128)}
    found = read_success(rows)
    assert list(found) == [8, 64, 128]
    assert found[64] == Counts(1, 2, 64)


@pytest.mark.parametrize(
    ("counts", "chance", "needed"),
    [(Counts(5, 5, 9), None, False), (Counts(5, 6, 9), None, True), (Counts(5, 5, 9), 0.5, True)],
)
def test_memory_is_needed_where_completing_the_task_is_not_success(
    counts: Counts, chance: float | None, needed: bool
) -> None:
    assert needs_memory([Counts(9, 9, 9), counts], chance) == needed
    assert needs_memory([], chance) == (chance is not None)
