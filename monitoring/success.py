"""Success by context length: what an evaluation counts, the rates of it, and their intervals.

A task that needs memory can go wrong in two ways: the manipulation fails, or it is completed at a place that
only memory could have ruled out. Three rates tell them apart:

    success     successes / episodes
    completed   completed / episodes     completed: at any place, the right one included
    contextual  successes / completed    1 for a policy that always remembers, chance for one that guesses
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import accumulate
from statistics import NormalDist
from typing import Any

POOLED = 3
"""Successive versions whose evaluations are put together before they are compared: one alone has few
episodes."""
CHANCE = 1e-8
"""A difference that is less probable than this is no chance. It is small because a run makes thousands of
comparisons, and because equally good versions do differ a little."""


@dataclass(frozen=True)
class Rate:
    """A share of episodes, with its uncertainty."""

    count: int
    """Episodes that have the property."""
    of: int
    """Episodes that could have it."""

    @property
    def share(self) -> float:
        """The rate, 0 to 1; NaN without episodes."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95% Wilson interval."""
        return wilson_interval(self.count, self.of)


@dataclass(frozen=True)
class Counts:
    """Episodes of an evaluation, counted."""

    successes: int
    """Episodes completed at the right place."""
    completed: int
    """Episodes completed at any place."""
    episodes: int
    """Episodes that say something about the policy: all but those whose simulator diverged."""

    @property
    def rates(self) -> dict[str, Rate]:
        """The rates `success`, `completed` and `contextual`."""
        return {
            "success": Rate(self.successes, self.episodes),
            "completed": Rate(self.completed, self.episodes),
            "contextual": Rate(self.successes, self.completed),
        }


OUTCOMES = {outcome[0]: outcome for outcome in ("success", "wrong", "failure", "invalid")}
"""Outcomes of an episode, by the letter that stands for each in files."""
COUNTS = tuple(field.name for field in fields(Counts))
"""Names of the counts in files and metrics."""

Success = Mapping[int, Counts]
"""Counts of one task's evaluation by context length, ascending."""


def read_success(rows: Mapping[str, Mapping[str, int]]) -> Success:
    """Read counts by context length from JSON, which has turned the lengths into texts."""
    return {length: Counts(**rows[str(length)]) for length in sorted(map(int, rows))}


@dataclass(frozen=True)
class Evaluation:
    """One policy version at one context length, as far as it has been evaluated."""

    version: int
    """Training step at which the policy was published."""
    context_length: int
    """T_o that the policy acted with."""
    wanted: int
    """Episodes to roll out."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Episodes that have ended, by outcome: `success`, `wrong`, `failure` or `invalid`."""
    steps: int = 0
    """Control steps simulated."""
    best_rewards: float = 0.0
    """Sum of the largest rewards of the episodes that count."""
    endings: Mapping[int, str] = field(default_factory=dict)
    """Outcome of each episode by its index, from which the episode's seed follows. Evaluations with the same
    seed of the run have the same episodes, so their endings can be compared in pairs."""

    def plus(
        self,
        outcomes: Mapping[str, int],
        steps: int,
        best_rewards: float = 0.0,
        endings: Mapping[int, str] | None = None,
    ) -> "Evaluation":
        """Add episodes that have ended, the control steps they took, the sum of their largest rewards, and
        their outcomes by index."""
        return replace(
            self,
            outcomes=dict(Counter(self.outcomes) + Counter(outcomes)),
            steps=self.steps + steps,
            best_rewards=self.best_rewards + best_rewards,
            endings={**self.endings, **(endings or {})},
        )

    @property
    def best_reward(self) -> float:
        """Mean of the episodes' largest rewards; the mean largest coverage in Push-T."""
        return self.best_rewards / max(1, self.counts.episodes)

    @property
    def counts(self) -> Counts:
        """Counts of the episodes that have ended, from which the rates follow."""
        successes, invalid = (self.outcomes.get(outcome, 0) for outcome in ("success", "invalid"))
        completed = successes + self.outcomes.get("wrong", 0)
        return Counts(successes, completed, self.rolled_out - invalid)

    @property
    def rolled_out(self) -> int:
        """Episodes that have ended, invalid ones included."""
        return sum(self.outcomes.values())

    @property
    def finished(self) -> bool:
        """Whether all wanted episodes have ended."""
        return self.rolled_out >= self.wanted

    @property
    def letters(self) -> str:
        """Outcome of every episode by its first letter, in the order of their indices."""
        return "".join(self.endings[index][0] for index in sorted(self.endings))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a line of evaluations.jsonl."""
        return {
            "version": self.version,
            "context_length": self.context_length,
            **asdict(self.counts),
            "outcomes": dict(self.outcomes),
            "steps": self.steps,
            "best_reward": round(self.best_reward, 4),
            "endings": self.letters,
        }

    @staticmethod
    def from_dict(line: Mapping[str, Any]) -> "Evaluation":
        """Read a line that `to_dict` made of a finished evaluation."""
        outcomes = line["outcomes"]
        found = Evaluation(
            line["version"], line["context_length"], sum(outcomes.values()), outcomes, line["steps"]
        )
        # Earlier versions wrote neither of the two.
        best_rewards = line.get("best_reward", 0.0) * found.counts.episodes
        endings = {index: OUTCOMES[letter] for index, letter in enumerate(line.get("endings", ""))}
        return replace(found, best_rewards=best_rewards, endings=endings)


def needs_memory(counts: Iterable[Counts], chance: float | None) -> bool:
    """Whether completing the task is not yet success, because only memory tells the right place.

    Args:
        counts: evaluations of the task.
        chance: best success rate without memory, where the task knows it.
    """
    return chance is not None or any(each.completed > each.successes for each in counts)


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of a success rate (Wilson 1927; Newcombe 1998, method 3).

    Returns:
        Lower and upper end, within 0 to 1; (0, 1) without episodes.

    Raises:
        ValueError: not 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"successes must be between 0 and the {episodes} episodes, not {successes}")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, weight = successes / episodes, z * z / episodes
    centre = (rate + weight / 2) / (1 + weight)
    half = math.sqrt(rate * (1 - rate) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def success_drop(versions: Sequence[Rate]) -> float:
    """Compute how far success has fallen: the best earlier versions' share minus that of the newest.

    Args:
        versions: success of every evaluated version at one context length, oldest first.

    Returns:
        Difference of the shares of two groups of `POOLED` successive versions that have none in common. 0 if
        chance explains the difference with a probability of `CHANCE` or more, and with too few versions.
    """
    versions = [rate for rate in versions if rate.of]
    if len(versions) < 2 * POOLED:
        return 0.0
    counts = _pooled([rate.count for rate in versions])
    episodes = _pooled([rate.of for rate in versions])
    shares = [count / of for count, of in zip(counts, episodes, strict=True)]
    best = max(range(len(shares) - POOLED), key=shares.__getitem__)
    fallen = shares[best] - shares[-1]
    if fallen <= 0 or _chance_of_fewer(counts[-1], episodes[-1], counts[best], episodes[best]) >= CHANCE:
        return 0.0
    return fallen


def _pooled(numbers: Sequence[int]) -> list[int]:
    """Add up every `POOLED` successive numbers."""
    sums = [0, *accumulate(numbers)]
    return [later - earlier for earlier, later in zip(sums, sums[POOLED:], strict=False)]


@cache
def _chance_of_fewer(count: int, of: int, more: int, of_more: int) -> float:
    """Compute the probability of at most `count` successes in `of` episodes, if all successes of both groups
    were dealt out to the episodes at random (Fisher's exact test, one-sided)."""
    successes, episodes = count + more, of + of_more
    ways = (
        math.comb(successes, fewer) * math.comb(episodes - successes, of - fewer)
        for fewer in range(max(0, successes - of_more), count + 1)
    )
    return sum(ways) / math.comb(episodes, of)
