"""Tests of paired comparisons: textbook values, and false claims in simulated studies."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from longview.monitoring.comparison import ALPHA, Pairs, alpha_spent, decide, holm, mcnemar_exact


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (6, 16, 0.0525),  # Siegel and Castellan's binomial tables, two-sided
        (0, 5, 0.0625),
        (5, 0, 0.0625),
        (10, 10, 1.0),
        (0, 0, 1.0),
        (0, 25, 2.0**-24),
    ],
)
def test_mcnemar_has_known_values(gained: int, lost: int, p: float) -> None:
    assert mcnemar_exact(gained, lost) == pytest.approx(p, rel=2e-3)


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs() -> None:
    for gained in range(12):
        for lost in range(1, 12):
            expected = binomtest(gained, gained + lost).pvalue
            assert mcnemar_exact(gained, lost) == pytest.approx(min(1.0, expected))


def test_holm_adjusts_as_in_its_example() -> None:
    # Four comparisons at 5 %: 0.005 and 0.01 hold, 0.03 and 0.04 do not (3rd: 2 x 0.03 = 0.06).
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


def test_looks_spend_alpha_as_lan_and_demets_do() -> None:
    spent = alpha_spent([50, 100, 200])
    assert sum(spent) == pytest.approx(ALPHA)
    # O'Brien and Fleming's spending function at a quarter and half of the episodes.
    assert np.cumsum(spent)[:2] == pytest.approx(
        [2 * norm.sf(1.95996 * 2), 2 * norm.sf(1.95996 * 2**0.5)], rel=1e-3
    )
    assert alpha_spent([200]) == pytest.approx([ALPHA])


def test_a_clear_difference_is_decided_early_and_no_difference_never() -> None:
    found = decide(
        ["clear", "none", "late"],
        [50, 100, 200],
        lambda key, episodes: {
            "clear": Pairs(episodes // 2, 0, episodes),
            "none": Pairs(episodes // 10, episodes // 10, episodes),
            "late": Pairs(episodes // 8, 0, episodes) if episodes <= 100 else None,
        }[key],
    )
    assert [(found[key].look, found[key].decided) for key in ("clear", "none", "late")] == [
        (0, True),
        (2, False),
        (1, True),
    ]
    assert found["clear"].pairs == Pairs(25, 0, 50)
    assert found["none"].p == 1.0
    assert all((verdict.p <= ALPHA) == verdict.decided for verdict in found.values())


def test_a_comparison_without_episodes_still_counts() -> None:
    pairs = Pairs(7, 0, 50)  # p = 0.0156: a claim of one comparison, none of four
    alone = decide(["a"], [50], lambda *_: pairs)
    of_four = decide(list("abcd"), [50], lambda key, _: pairs if key == "a" else None)
    assert alone["a"].decided
    assert not of_four["a"].decided
    assert of_four["b"].look == -1


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_false_claims_are_as_rare_as_promised(rate: float) -> None:
    """Simulate studies whose methods do not differ, with looks at 50, 100 and 200 episodes. Episodes differ
    in how hard they are, so pairs are alike, and all methods are compared with one baseline."""
    rng, studies, comparisons = np.random.default_rng(0), 1000, 6
    false = 0
    for _ in range(studies):
        chance = np.clip(rng.normal(rate, 0.2, 200), 0, 1)
        successes = rng.random((comparisons + 1, 200)) < chance

        def pairs_at(method: int, episodes: int, successes: np.ndarray = successes) -> Pairs:
            ours, theirs = successes[method, :episodes], successes[-1, :episodes]
            return Pairs(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), episodes)

        verdicts = decide(range(comparisons), [50, 100, 200], pairs_at)
        false += any(verdict.decided for verdict in verdicts.values())
    assert false / studies <= ALPHA
