"""Choice of the steps to draw: pure functions of the stored episodes and a random generator.

A table holds one row per episode. A plan groups the rows into strata, with the share of each stratum and the
weight of each episode. A draw picks a stratum, an episode of the stratum and a step of the episode. Only
steps that there is something to learn from are drawn; in a stratum to imitate, these are all steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longview.replay.episode import OUTCOMES, SOURCES, Selection, imitates, stratum_names
from longview.replay.errors import StoreError

SCAN_LIMIT: Final = 8
"""Entries that a search steps over one by one; if the right one is further away, it becomes a binary
search."""


@dataclass(frozen=True)
class Table:
    """Facts about all known episodes, one row each. The order of the rows has no meaning."""

    order: NDArray[np.int64]
    """Rows that may be drawn from, (episodes,), sorted by episode id."""
    id: NDArray[np.bytes_]
    """Episode ids, (rows,)."""
    length: NDArray[np.int32]
    """Steps of the episode, (rows,): 0 for unused rows and for invalid or held-out episodes."""
    learnable: NDArray[np.int32]
    """Steps of the episode that there is something to learn from, (rows,); at most its number of steps."""
    source: NDArray[np.int8]
    """Indices into `SOURCES`, (rows,)."""
    outcome: NDArray[np.int8]
    """Indices into `OUTCOMES`, (rows,)."""
    task: NDArray[np.int32]
    """Indices into `task_names`, (rows,)."""
    committed: NDArray[np.int64]
    """Times of commit, (rows,), in microseconds."""
    priority: NDArray[np.float64]
    """Priorities, (rows,), at least 0."""
    task_names: Sequence[str]
    """Names of the tasks."""


@dataclass(frozen=True)
class Stratum:
    """Episodes of one part of the mix, prepared so that a draw takes constant time."""

    name: str
    """Name in the mix, such as `rollout/success`."""
    imitated: bool
    """Whether every step may be drawn, as `episode.imitates` tells; else only learnable ones."""
    row: NDArray[np.int32]
    """Rows of the table, (episodes,)."""
    end: NDArray[np.float64]
    """Running sums of the episodes' weights, (episodes,), ascending."""
    guess: NDArray[np.int32]
    """First candidates of a search, (bins,): the number of entries of `end` that lie before each of the equal
    parts of the total weight. The number of bins is twice the number of episodes, and one more."""

    @staticmethod
    def of(name: str, row: NDArray[np.int64], weight: NDArray[np.float64]) -> "Stratum":
        """Make a stratum from rows (episodes,) and their positive weights (episodes,)."""
        end, bins = np.cumsum(weight), 2 * len(row)
        ends_per_bin = np.bincount((end * (bins / end[-1])).astype(np.int64), minlength=bins + 1)
        guess = np.cumsum(ends_per_bin) - ends_per_bin
        # 32 bits: the smaller the arrays, the more of them the processor's cache holds.
        return Stratum(name, imitates(name), row.astype(np.int32), end, guess.astype(np.int32))

    def rows(self, point: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return the rows of the episodes at points (draws,) of the total weight, each in [0, 1).

        The search starts at a good guess and takes a few steps, whatever the number of episodes. A binary
        search over many episodes is slower, because almost every step of it waits for memory.
        """
        point = point * self.end[-1]
        last, bins = len(self.row) - 1, 2 * len(self.row)
        found: NDArray[Any] = self.guess[(point * (bins / self.end[-1])).astype(np.int64)]
        for _ in range(SCAN_LIMIT):
            beyond = (self.end[found] <= point) & (found < last)
            if not beyond.any():
                break
            found += beyond
        else:  # some weights are tiny compared with others, so the guess is far off
            found = np.minimum(np.searchsorted(self.end, point, side="right"), last)
        return self.row.take(found)


@dataclass(frozen=True)
class Plan:
    """Selection applied to the stored episodes: everything that a draw needs."""

    table: Table
    """Episodes that the plan was made for."""
    selection: Selection
    """Selection that the plan follows."""
    strata: Sequence[Stratum]
    """Strata of the mix that have steps to draw."""
    share: NDArray[np.float64]
    """Shares of the strata in the draws, (strata,), with sum 1."""
    chance: NDArray[np.float64]
    """Probability that one draw picks a given step of the row's episode, (2, rows): that of any step, and
    what is added to it for a learnable one."""

    @cached_property
    def steps(self) -> int:
        """Number of steps that can be drawn."""
        any_step, learnable = self.chance > 0
        drawable = np.where(any_step, self.table.length, np.where(learnable, self.table.learnable, 0))
        return int(drawable.sum())


class Draw(NamedTuple):
    """Drawn step. The episode's record says which one it is, if only learnable steps were drawn from."""

    id: str
    """Id of the step's episode."""
    number: int
    """Number of the drawn step among those that were drawn from, counted from 0."""
    imitated: bool
    """Whether every step of the episode was drawn from; else its learnable ones."""
    chance: float
    """Probability that one draw picks any one step of the episode."""
    added: float
    """What is added to that probability if the step is learnable."""
    stratum: str
    """Name of the stratum that the step was drawn for."""


def plan(table: Table, selection: Selection) -> Plan:
    """Prepare draws from a table. The time is proportional to the number of episodes; the plan can be used
    until the table changes.

    Raises:
        StoreError: the selection matches no stored episode.
    """
    strata, shares, weights = [], [], []
    # Sorted, so that the order of the mapping does not change the draws.
    for name, share in sorted(selection.mix.items()):
        row = table.order[_selected(table, selection, name)[table.order]]
        weight = share * _weights(table, selection, row, _drawable(table, name)[row])
        row, weight = row[weight > 0], weight[weight > 0]
        if len(row):
            strata.append(Stratum.of(name, row, weight))
            shares.append(share)
            weights.append(weight)
    if not strata:
        stored = np.bincount(table.source[table.order], minlength=len(SOURCES)).tolist()
        raise StoreError(
            f"no steps to learn from: mix is {dict(selection.mix)}, outcomes are "
            f"{', '.join(selection.outcomes) or 'all'}, task is {selection.task or 'any'}; "
            f"episodes stored are {dict(zip(SOURCES, stored, strict=True))}"
        )
    normalised = np.array(shares) / sum(shares)
    chance = np.zeros((2, len(table.length)))
    for stratum, share, weight in zip(strata, normalised, weights, strict=True):
        steps = _drawable(table, stratum.name)[stratum.row]
        chance[0 if stratum.imitated else 1, stratum.row] += share / stratum.end[-1] * weight / steps
    return Plan(table, selection, strata, normalised, chance)


def draw(plan: Plan, count: int, rng: np.random.Generator) -> list[Draw]:
    """Draw steps independently: a stratum by its share, an episode by its weight, a step uniformly.

    Equal plans and equal states of `rng` give equal draws.

    Args:
        plan: what may be drawn, and how often.
        count: number of draws.
        rng: only source of randomness.
    """
    stratum = rng.choice(len(plan.strata), size=count, p=plan.share)
    point, place = rng.random((2, count))
    row = np.empty(count, np.int32)
    for number, prepared in enumerate(plan.strata):
        drawn = stratum == number
        row[drawn] = prepared.rows(point[drawn])
    imitated = np.array([prepared.imitated for prepared in plan.strata])[stratum]
    steps = np.where(imitated, plan.table.length[row], plan.table.learnable[row])
    columns = ((place * steps).astype(np.int64), imitated, *plan.chance[:, row], stratum)
    return [
        Draw(id.decode(), number, imitated, chance, added, plan.strata[stratum].name)
        for id, number, imitated, chance, added, stratum in zip(
            plan.table.id[row].tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]


def _drawable(table: Table, stratum: str) -> NDArray[np.int32]:
    """Return the number of steps of each row's episode that may be drawn for a stratum, (rows,)."""
    return table.length if imitates(stratum) else np.minimum(table.learnable, table.length)


def _selected(table: Table, selection: Selection, stratum: str) -> NDArray[np.bool_]:
    """Tell which rows (rows,) belong to the stratum and match the selection."""
    source, outcome, task = stratum_names(stratum)
    selected = _drawable(table, stratum) > 0
    if source != "*":
        selected &= table.source == SOURCES.index(source)
    for outcomes in (selection.outcomes, () if outcome == "*" else (outcome,)):
        if outcomes:
            selected &= np.isin(table.outcome, [OUTCOMES.index(name) for name in outcomes])
    for wanted in (selection.task, None if task == "*" else task):
        if wanted is not None:
            selected &= table.task == (table.task_names.index(wanted) if wanted in table.task_names else -1)
    return selected


def _weights(
    table: Table, selection: Selection, row: NDArray[np.int64], steps: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the weights (episodes,) by which the episodes of a stratum are drawn.

    Args:
        row: rows of the episodes, (episodes,).
        steps: number of steps of each that may be drawn, (episodes,).
    """
    match selection.by:
        case "steps":
            return steps.astype(np.float64)
        case "episodes":
            return np.ones(len(row))
        case "priority":
            return table.priority[row]
    newer = np.empty(len(row), np.int64)
    newer[np.argsort(table.committed[row], kind="stable")] = np.arange(len(row))[::-1]
    return np.power(0.5, newer / selection.half_life)
