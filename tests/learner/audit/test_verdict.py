"""Tests of the audit's statistics, on errors of which it is known what they should say."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.learner.audit.verdict import PARTS, by_part, judge, kept

LENGTHS = (1, 2, 4, 8, 16, 32)
SHORT, FRAMES = 4, 48

Errors = dict[int, NDArray[np.float64]]


def made(
    episodes: int = 60, gain: float = 0.0, reach: int = 16, part: int = 9, seed: int = 0, noise: float = 0.3
) -> Errors:
    """Make errors around 1: from a context length on, one part of the episode has a smaller one.

    Episodes differ, and each length adds an error of its own to each episode's.
    """
    rng = np.random.default_rng(seed)
    base = rng.gamma(4, 0.25, size=(episodes, FRAMES))
    errors = {length: base * (1 + noise * rng.normal(size=(episodes, 1))) for length in LENGTHS}
    inside = np.arange(FRAMES) * PARTS // FRAMES == part
    for length in LENGTHS:
        if length >= reach:
            errors[length] = errors[length] * np.where(inside, 1 - gain, 1)
    return errors


def of_another(errors: Errors, helps: bool) -> Callable[[int], NDArray[np.float64]]:
    """Make errors with the past of another episode: as good as with the own one, or no help."""
    return lambda length: errors[length] if helps else errors[SHORT] * 1.1


def test_memory_is_found_in_a_single_part_and_so_is_its_reach() -> None:
    errors = made(gain=0.5)
    found = judge(errors, of_another(errors, helps=False), SHORT, seed=0)
    assert found.memory == "yes"
    assert found.context_length == 16
    assert found.parts == (9,)
    assert found.confidence >= 0.95
    assert found.gain == pytest.approx(0.5, abs=0.12)


def test_a_gain_that_the_past_of_another_episode_keeps_is_a_shortcut() -> None:
    errors = made(gain=0.5)
    found = judge(errors, of_another(errors, helps=True), SHORT, seed=0)
    assert found.memory == "shortcut"


def test_no_memory_where_a_longer_past_takes_little_off() -> None:
    errors = made(gain=0.05, noise=0.05)
    found = judge(errors, of_another(errors, helps=False), SHORT, seed=0)
    assert (found.memory, found.parts) == ("no", ())
    assert found.context_length <= SHORT


def test_a_large_share_of_a_tiny_error_is_no_memory() -> None:
    errors = {length: rows / 100 for length, rows in made(gain=0.5).items()}
    assert judge(errors, of_another(errors, helps=False), SHORT, seed=0).memory == "no"


def test_few_episodes_with_noise_leave_it_unclear_and_tell_how_many_more_would_do() -> None:
    errors = made(episodes=8, gain=0.25, noise=0.5, seed=2)
    found = judge(errors, of_another(errors, helps=False), SHORT, seed=0)
    assert found.memory == "unclear"
    assert found.more_episodes > 0


def test_noise_alone_is_hardly_ever_memory() -> None:
    """Twelve parts and three lengths offer many chances of an error: the comparison is corrected for them."""
    answers = [
        judge(errors, of_another(errors, helps=False), SHORT, seed=0).memory
        for errors in (made(episodes=20, noise=0.4, seed=seed) for seed in range(60))
    ]
    assert answers.count("yes") <= 1


def test_parts_follow_each_episodes_own_length() -> None:
    error_GS = np.full((2, 24), np.nan)
    error_GS[0] = np.repeat(np.arange(PARTS), 2)
    error_GS[1, :PARTS] = np.arange(PARTS)
    assert (by_part(error_GS) == np.arange(PARTS)).all()


def test_an_episode_shorter_than_the_parts_leaves_some_empty() -> None:
    found = by_part(np.ones((1, 5)))
    assert np.isfinite(found).sum() == 5


def test_what_a_control_keeps_of_a_gain() -> None:
    short, long = np.full((3, 24), 2.0), np.full((3, 24), 1.0)
    assert kept(short, long, np.full((3, 24), 1.5), (0, 1)) == pytest.approx(0.5)
    assert kept(short, long, short, (0,)) == 0
    assert kept(short, short, long, (0,)) == 0


@pytest.mark.parametrize(("gain", "memory"), [(0.05, "no"), (0.5, "yes")])
def test_episodes_shorter_than_the_parts_are_judged_by_the_others(gain: float, memory: str) -> None:
    errors = {length: rows[:, :8] for length, rows in made(gain=gain, part=0, noise=0.05).items()}
    found = judge(errors, of_another(errors, helps=False), SHORT, seed=0)
    assert np.isfinite([found.gain, found.chance, found.confidence, found.more_episodes]).all()
    assert found.memory == memory
    assert np.isfinite(kept(errors[SHORT], errors[16], errors[32], tuple(range(PARTS))))
