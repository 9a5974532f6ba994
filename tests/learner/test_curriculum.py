import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from longview.learner.config import CurriculumConfig
from longview.learner.curriculum import context_length


def lengths(config: CurriculumConfig, seed: int = 5, total: int = 1000, longest: int = 64) -> list[int]:
    return [context_length(config, seed, step, total, longest) for step in range(total)]


def test_fixed_is_always_the_longest() -> None:
    assert set(lengths(CurriculumConfig("fixed"))) == {64}


@pytest.mark.parametrize("ramp", [0.25, 0.5, 1.0])
def test_progressive_reaches_what_its_definition_says(ramp: float) -> None:
    got = lengths(CurriculumConfig("progressive", ramp=ramp, full=1.0))
    assert got == [math.ceil(64 * min(1, (step + 1) / (ramp * 1000))) for step in range(1000)]


@pytest.mark.parametrize("kind", ["progressive", "sprinkle"])
def test_draws_follow_the_written_formula(kind: str) -> None:
    config = CurriculumConfig(kind, ramp=0.5, full=0.8, shorter="uniform")  # type: ignore[arg-type]
    for step in range(0, 1000, 7):
        reach = 64 if kind == "sprinkle" else math.ceil(64 * min(1, (step + 1) / 500))
        u, v = np.random.default_rng((9, step)).random(2)
        assert context_length(config, 9, step, 1000, 64) == (reach if u < 0.8 else 1 + math.floor(v * reach))


@pytest.mark.parametrize(
    ("shorter", "formula"),
    [("uniform", lambda v: 4 + math.floor(v * 45)), ("log", lambda v: math.floor(4 * (49 / 4) ** v))],
)
def test_shorter_ones_follow_the_written_formula(shorter: str, formula: Callable[[float], int]) -> None:
    config = CurriculumConfig("sprinkle", full=0.0, shorter=shorter)  # type: ignore[arg-type]
    got = [context_length(config, 9, step, 1000, 48, shortest=4) for step in range(1000)]
    assert got == [formula(np.random.default_rng((9, step)).random(2)[1]) for step in range(1000)]
    assert set(got) == set(range(4, 49))
    assert (sum(4 <= T_o < 14 for T_o in got) > 400) == (shorter == "log")


def test_a_ramp_starts_at_the_shortest() -> None:
    config = CurriculumConfig("progressive", ramp=1.0, full=0.5)
    assert {context_length(config, 0, step, 1000, 48, shortest=4) for step in range(50)} == {4}


def test_sprinkle_is_full_four_times_in_five_and_reaches_every_length() -> None:
    got = lengths(CurriculumConfig("sprinkle", full=0.8, shorter="uniform"), total=4000)
    assert 0.77 < got.count(64) / len(got) < 0.83
    assert set(got) == set(range(1, 65))


def test_lengths_follow_their_weights() -> None:
    weights = {64: 2.0, 1: 0.0, 8: 5.0, 3: 1.0, 20: 0.0}
    got = lengths(CurriculumConfig("lengths", lengths=weights), total=4000)
    for step in range(0, 4000, 7):
        u = np.random.default_rng((5, step)).random()
        assert got[step] == (3 if u < 1 / 8 else 8 if u < 6 / 8 else 64)
    counts, expected = Counter(got), {3: 500, 8: 2500, 64: 1000}
    assert counts.keys() == expected.keys()
    # The chance that chi-square exceeds this with two degrees of freedom is 0.1 %.
    assert sum((counts[T_o] - n) ** 2 / n for T_o, n in expected.items()) < 13.8


def test_one_length_is_that_length() -> None:
    assert set(lengths(CurriculumConfig("lengths", lengths={7: 0.1}))) == {7}


def test_lengths_that_a_policy_does_not_take_are_named() -> None:
    config = CurriculumConfig("lengths", lengths={0: 1, 8: 1, 64: 1, 65: 0})
    with pytest.raises(ValueError, match=r"must lie in 1\.\.64, the longest T_o, not \[0, 65\]"):
        config.check(64)


def test_seeds_differ() -> None:
    assert lengths(CurriculumConfig("sprinkle"), seed=1) != lengths(CurriculumConfig("sprinkle"), seed=2)


def test_one_step_of_context_is_always_one() -> None:
    assert set(lengths(CurriculumConfig("progressive"), total=50, longest=1)) == {1}
