"""Which steps of which episodes to draw: pure functions of what there is and of a random generator.

Legend: N rows of the table, S strata, E episodes of a stratum, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longview.replay.episode import OUTCOMES, SOURCES, Selection, stratum_names
from longview.replay.errors import StoreError

STEPS: Final = 8
"""From where an episode is looked for first, it is this close, or looked for in another way."""


@dataclass(frozen=True)
class Table:
    """What is known of all episodes, a row each; the order of the rows means nothing."""

    order_E: NDArray[np.int64]
    """Rows of the episodes that may be drawn from, sorted by id, whenever they came."""
    id_N: NDArray[np.bytes_]
    length_N: NDArray[np.int32]
    """Steps that may be drawn: 0 of an episode that is invalid or held out, and of a row not in use."""
    source_N: NDArray[np.int8]
    """Its number in `SOURCES`."""
    outcome_N: NDArray[np.int8]
    """Its number in `OUTCOMES`."""
    task_N: NDArray[np.int32]
    """Its number in `tasks`."""
    committed_N: NDArray[np.int64]
    """When, in microseconds."""
    priority_N: NDArray[np.float64]
    tasks: Sequence[str]


@dataclass(frozen=True)
class Stratum:
    """The episodes of one part of the mix."""

    name: str
    row_E: NDArray[np.int32]
    end_E: NDArray[np.float64]
    """Weights of the episodes, up to and including each."""
    before_B: NDArray[np.int32]
    """How many of `end_E` lie before each of B equal parts of the total weight."""

    @staticmethod
    def of(name: str, row_E: NDArray[np.int64], weight_E: NDArray[np.float64]) -> "Stratum":
        """From positive weights; each half of a part has one end on average."""
        end_E, parts = np.cumsum(weight_E), 2 * len(row_E)
        ends_B = np.bincount((end_E * (parts / end_E[-1])).astype(np.int64), minlength=parts + 1)
        # In 32 bits: the less memory, the more of it is in the processor's cache.
        return Stratum(name, row_E.astype(np.int32), end_E, (np.cumsum(ends_B) - ends_B).astype(np.int32))

    def rows(self, point_D: NDArray[np.float64]) -> NDArray[np.int32]:
        """Of the episodes at these points of the total weight, each in [0, 1). In a few steps, however many
        episodes there are: a binary search waits for memory again and again."""
        point_D = point_D * self.end_E[-1]
        last, parts = len(self.row_E) - 1, 2 * len(self.row_E)
        found_D: NDArray[Any] = self.before_B[(point_D * (parts / self.end_E[-1])).astype(np.int64)]
        for _ in range(STEPS):
            beyond_D = (self.end_E[found_D] <= point_D) & (found_D < last)
            if not beyond_D.any():
                break
            found_D += beyond_D
        else:  # some have weights that are tiny beside those of others
            found_D = np.minimum(np.searchsorted(self.end_E, point_D, side="right"), last)
        return self.row_E.take(found_D)


@dataclass(frozen=True)
class Plan:
    """What a selection comes to, given what is stored."""

    table: Table
    selection: Selection
    strata: Sequence[Stratum]
    """Those that have something to draw."""
    share_S: NDArray[np.float64]
    """Their parts of the draws, which sum to 1."""
    chance_N: NDArray[np.float64]
    """Chance that one draw picks a certain step of that episode."""

    @cached_property
    def steps(self) -> int:
        """How many there are to draw from."""
        return int(self.table.length_N[self.chance_N > 0].sum())


class Draw(NamedTuple):
    """One drawn step."""

    id: str
    length: int
    """Of its episode."""
    now: int
    """The step, counted from the episode's start."""
    probability: float
    """Chance that one draw picks this step."""
    stratum: str


def plan(table: Table, selection: Selection) -> Plan:
    """How to draw: takes time in proportion to the episodes, and then serves until they change.

    Raises:
        StoreError: nothing that is stored is selected.
    """
    strata, shares, weights = [], [], []
    # Sorted: the order of the mapping must not matter.
    for name, share in sorted(selection.mix.items()):
        row_E = table.order_E[_selected(table, selection, name)[table.order_E]]
        weight_E = share * _weights(table, selection, row_E)
        row_E, weight_E = row_E[weight_E > 0], weight_E[weight_E > 0]
        if len(row_E):
            strata.append(Stratum.of(name, row_E, weight_E))
            shares.append(share)
            weights.append(weight_E)
    if not strata:
        stored = np.bincount(table.source_N[table.order_E], minlength=len(SOURCES)).tolist()
        raise StoreError(
            f"no episodes to draw from: mix is {dict(selection.mix)}, outcomes are "
            f"{', '.join(selection.outcomes) or 'all'}, task is {selection.task or 'any'}; "
            f"episodes stored are {dict(zip(SOURCES, stored, strict=True))}"
        )
    share_S = np.array(shares) / sum(shares)
    chance_N = np.zeros(len(table.length_N))
    for stratum, share, weight_E in zip(strata, share_S, weights, strict=True):
        chance_N[stratum.row_E] += share / stratum.end_E[-1] * weight_E / table.length_N[stratum.row_E]
    return Plan(table, selection, strata, share_S, chance_N)


def draw(plan: Plan, count: int, rng: np.random.Generator) -> list[Draw]:
    """Independent draws: a stratum by its share, an episode of it by its weight, a step of that uniformly.

    Args:
        plan: equal ones and equal states of `rng` give equal draws.
        count: D, the number of draws.
        rng: the only source of chance.
    """
    stratum_D = rng.choice(len(plan.strata), size=count, p=plan.share_S)
    point_D, place_D = rng.random((2, count))
    row_D = np.empty(count, np.int32)
    for number, stratum in enumerate(plan.strata):
        drawn = stratum_D == number
        row_D[drawn] = stratum.rows(point_D[drawn])
    length_D = plan.table.length_N[row_D]
    columns = (length_D, (place_D * length_D).astype(np.int64), plan.chance_N[row_D], stratum_D)
    return [
        Draw(id.decode(), length, now, probability, plan.strata[stratum].name)
        for id, length, now, probability, stratum in zip(
            plan.table.id_N[row_D].tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]


def _selected(table: Table, selection: Selection, stratum: str) -> NDArray[np.bool_]:
    """(N,): is it of that stratum, and one that the selection draws from?"""
    source, outcome, task = stratum_names(stratum)
    selected_N = table.length_N > 0
    if source != "*":
        selected_N &= table.source_N == SOURCES.index(source)
    for outcomes in (selection.outcomes, () if outcome == "*" else (outcome,)):
        if outcomes:
            selected_N &= np.isin(table.outcome_N, [OUTCOMES.index(name) for name in outcomes])
    for wanted in (selection.task, None if task == "*" else task):
        if wanted is not None:
            selected_N &= table.task_N == (table.tasks.index(wanted) if wanted in table.tasks else -1)
    return selected_N


def _weights(table: Table, selection: Selection, row_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E,): how often an episode is drawn, in proportion to the others of its stratum."""
    match selection.by:
        case "steps":
            return table.length_N[row_E].astype(np.float64)
        case "episodes":
            return np.ones(len(row_E))
        case "priority":
            return table.priority_N[row_E]
    newer_E = np.empty(len(row_E), np.int64)
    newer_E[np.argsort(table.committed_N[row_E], kind="stable")] = np.arange(len(row_E))[::-1]
    return np.power(0.5, newer_E / selection.half_life)
