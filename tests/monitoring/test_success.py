"""Counts of an evaluation, its rates and their intervals."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from longview.monitoring.success import (
    Counts,
    Evaluation,
    Rate,
    needs_memory,
    read_success,
    success_drop,
    wilson_interval,
)


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
    endings = dict(enumerate([*7 * ["success"], "wrong", "invalid", "invalid"]))
    evaluation = Evaluation(100, 8, 10).plus(Counter(endings.values()), 90, 7.2, endings)
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
        "endings": "ssssssswii",
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


def rates(*successes: int, of: int = 10) -> list[Rate]:
    return [Rate(count, of) for count in successes]


def test_success_that_has_fallen_is_told_from_bad_luck() -> None:
    # Chance explains that one version does badly, whatever its episodes; three that do badly are worse.
    assert success_drop(rates(9, 10, 10, 10, 9, 10, 0)) == 0
    assert success_drop(rates(9, 10, 10, 10, 9, 10, 0, 1, 0)) == pytest.approx(29 / 30)
    assert success_drop(rates(10, 10, 10, 5, 5, 5)) == 0
    assert success_drop(rates(10, 10, 10, 3, 3, 3)) == pytest.approx(0.7)
    assert success_drop(rates(20, 20, 20, 11, 11, 11, of=20)) == pytest.approx(0.45)


@pytest.mark.parametrize(
    "versions",
    [
        [],
        rates(10, 10, 10),
        rates(10, 10, 0, 0, 0),
        rates(0, 0, 0, 10, 10, 10),
        rates(0, 0, 0, 0, 0, 0, of=0),
    ],
    ids=["none", "too few to compare", "not two groups", "success that rises", "invalid episodes only"],
)
def test_success_has_not_fallen(versions: list[Rate]) -> None:
    assert success_drop(versions) == 0


def readme() -> list[float]:
    """Return the success rates of the README's table, by ascending context length."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return [
        int(share) / 100 for share in re.findall(r"^\| \d+ \|.*\| (\d+) % \| \d+ \.\.", text, re.MULTILINE)
    ]


EPISODES = 20
"""Episodes for each version and context length."""

SPREAD = 0.3
"""Standard deviation of the versions' log odds of success; docs/runbook.md says what that means."""


def healthy_runs(runs: int, spread: float) -> np.ndarray:
    """Simulate evaluations of runs like the README's, whose versions are equally good but for this spread.

    Returns:
        Successes by run, context length and version: 50 versions.
    """
    generator, shares = np.random.default_rng(0), np.clip(readme(), 0.01, 0.99)
    odds = np.log(shares / (1 - shares))[:, None] + generator.normal(0, spread, (runs, len(shares), 50))
    return generator.binomial(EPISODES, 1 / (1 + np.exp(-odds)))


def alarms(successes: np.ndarray) -> np.ndarray:
    """Tell for each run whether `success_drop` is ever above 0, asked after each of its versions.

    It depends on two numbers only: the successes of the newest three versions, and those of the best earlier
    three. So it is asked once for each pair.
    """
    pairs = np.arange(3 * EPISODES + 1)
    thirds = (pairs[:, None] + np.arange(3)) // 3
    answers = np.array(
        [[success_drop(rates(*best, *newest, of=EPISODES)) > 0 for newest in thirds] for best in thirds]
    )
    pooled = np.lib.stride_tricks.sliding_window_view(successes, 3, axis=-1).sum(-1)
    best = np.maximum.accumulate(pooled, axis=-1)
    return answers[best[..., :-3], pooled[..., 3:]].any(axis=(1, 2))


def test_alarms_of_many_runs_are_those_of_each() -> None:
    # Versions that differ this much raise alarms in some runs, and not in others.
    successes = healthy_runs(30, spread=0.9)
    each = [
        any(success_drop(rates(*row[:newest], of=EPISODES)) > 0 for row in run for newest in range(1, 51))
        for run in successes.tolist()
    ]
    assert alarms(successes).tolist() == each
    assert 0 < sum(each) < len(each)


def test_healthy_runs_raise_no_alarm() -> None:
    assert len(readme()) == 8
    assert alarms(healthy_runs(4000, SPREAD)).mean() < 0.01
