"""Comparisons of methods on the same evaluation episodes, corrected for their number and for repeated looks.

Two methods that are evaluated on the same seeds give pairs of outcomes. Only the discordant pairs, in which
one method succeeds and the other does not, tell the methods apart (McNemar 1947):

                       other succeeds   other does not
    method succeeds          a                b          b + c discordant pairs: without a
    method does not          c                d          difference, each is b or c with chance 1/2

A study looks at its comparisons several times, after 50, 100 and 200 episodes say, and stops evaluating
where a look has decided. Each look k spends a part of the error that all looks together may have:

    f(t) = 2 - 2 Phi(z / sqrt(t))         z = Phi^-1(1 - alpha / 2),  t = episodes_k / episodes_last
    spent at look k = f(t_k) - f(t_k-1)   (Lan and DeMets 1983, in the manner of O'Brien and Fleming)

Within a look, Holm's procedure (1979) shares this part out over all comparisons that are still undecided. A
false claim among any number of comparisons, at any look, then has a probability of at most alpha: a first
false claim at look k has at most the part that look k spends, whatever the looks before have decided.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

ALPHA = 0.05
"""Probability of a false claim in a whole study."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Pairs:
    """Outcomes of two methods on the same episodes, counted."""

    gained: int
    """Episodes in which the method succeeds and the other one does not."""
    lost: int
    """Episodes in which the other one succeeds and the method does not."""
    of: int
    """Episodes of both."""

    @property
    def difference(self) -> float:
        """Success rate of the method minus that of the other one; NaN without episodes."""
        return (self.gained - self.lost) / self.of if self.of else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test."""
        return mcnemar_exact(self.gained, self.lost)


@dataclass(frozen=True)
class Verdict:
    """Result of a comparison: after the look that decided it, or else after the last look that it had."""

    pairs: Pairs
    """The pairs of that look."""
    p: float
    """Adjusted p-value at that look, for the number of comparisons and of looks: the comparison is decided if
    it is at most alpha."""
    look: int
    """Index of that look; -1 before the first look."""
    decided: bool
    """Whether the methods differ."""


def mcnemar_exact(gained: int, lost: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test: a binomial test of the discordant pairs.

    Args:
        gained: pairs in which only the first succeeds.
        lost: pairs in which only the second succeeds.
    """
    discordant, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(discordant, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p-values for their number (Holm 1979). Each may then be compared with the same level.

    The i-th smallest of m p-values, i from 0, is multiplied by m - i, and is at least the adjusted one
    before it.
    """
    adjusted, largest = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[key] = largest
    return adjusted


def alpha_spent(looks: Sequence[int], alpha: float = ALPHA) -> list[float]:
    """Return the part of `alpha` that each look spends; the parts add up to `alpha`.

    Args:
        looks: numbers of episodes, ascending, after which the comparisons are looked at.
        alpha: probability of a false claim in all looks together.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha / 2)
    until = [2 - 2 * normal.cdf(z / math.sqrt(episodes / looks[-1])) for episodes in looks]
    return [now - before for before, now in zip([0.0, *until], until, strict=False)]


def decide(
    keys: Sequence[Key],
    looks: Sequence[int],
    pairs_at: Callable[[Key, int], Pairs | None],
    alpha: float = ALPHA,
) -> dict[Key, Verdict]:
    """Look at comparisons again and again, and decide those in which the methods differ.

    Args:
        keys: all comparisons of the study, those without episodes included.
        looks: numbers of episodes, ascending.
        pairs_at: takes a comparison and a number of episodes, one of `looks`, and returns the pairs of the
            first episodes of each evaluation, this many; None if the comparison does not have them yet.
        alpha: probability of a false claim in the whole study.

    Returns:
        The verdict on each comparison.
    """
    verdicts = {key: Verdict(Pairs(0, 0, 0), 1.0, -1, decided=False) for key in keys}
    for look, (episodes, spent) in enumerate(zip(looks, alpha_spent(looks, alpha), strict=True)):
        undecided = [key for key in keys if not verdicts[key].decided]
        found = {key: pairs for key in undecided if (pairs := pairs_at(key, episodes)) is not None}
        # A comparison without episodes counts: the number of comparisons must not follow from outcomes.
        adjusted = holm({key: found[key].p if key in found else 1.0 for key in undecided})
        for key, pairs in found.items():
            p = min(1.0, adjusted[key] * alpha / spent)
            verdicts[key] = Verdict(pairs, p, look, decided=adjusted[key] <= spent)
    return verdicts
