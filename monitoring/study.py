"""Results of a study, from its finished cells: success by method and T_o, and which methods differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from longview.monitoring.comparison import ALPHA, Pairs, Verdict, alpha_spent, decide
from longview.monitoring.success import Counts, wilson_interval


@dataclass(frozen=True)
class StudyCell:
    """One run of a study, finished or not."""

    place: str
    """Place in the study's grid, as a text; empty where there is only one."""
    method: str
    """Name of the method."""
    seed: int
    """Seed of the run."""
    lengths: tuple[int, ...]
    """Context lengths T_o that the cell is evaluated at."""
    row: Mapping[str, Any] | None
    """Line of the finished cells' file; None before the cell has finished."""

    def counts(self, length: int) -> Counts | None:
        """Return the counts at a T_o; None before it has been evaluated."""
        found = self.row["success"].get(str(length)) if self.row is not None else None
        return Counts(**found) if found is not None else None

    def endings(self, length: int) -> str:
        """Return the outcome of every episode at a T_o by its first letter, in the order of their seeds.
        Empty before it has been evaluated, and for cells whose file does not tell."""
        endings: str = self.row["endings"].get(str(length), "") if self.row is not None else ""
        return endings

    def rolled_out(self, length: int) -> int:
        """Return the number of episodes at a T_o."""
        counts = self.counts(length)
        return len(self.endings(length)) or (counts.episodes if counts is not None else 0)


@dataclass(frozen=True)
class Results:
    """Everything that a study has found so far."""

    name: str
    """Name of the study."""
    cells: Sequence[StudyCell]
    """All planned cells."""
    baseline: str
    """Method that the others are compared with."""
    control: str | None
    """Method that has a control arm; None: no method."""
    again: str
    """Name of the control arm."""
    looks: tuple[int, ...]
    """Evaluation episodes of each cell and T_o, ascending, after which comparisons are looked at."""


class Comparison(NamedTuple):
    """Two methods at one place in the grid, each at one T_o."""

    place: str
    method: str
    length: int
    other: str
    other_length: int


@dataclass(frozen=True)
class Point:
    """Success of a method at one place in the grid and one T_o, all seeds together."""

    place: str
    """Place in the study's grid."""
    method: str
    """Name of the method."""
    length: int
    """T_o that the policy acted with."""
    counts: Counts
    """Counts of all finished cells."""
    seeds: int
    """Number of finished cells."""
    level: float
    """Confidence of the interval, at least 0.95: 1 minus what the point's last look may spend."""

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the Wilson interval of success, adjusted for the looks."""
        return wilson_interval(self.counts.successes, self.counts.episodes, self.level)


def points(results: Results) -> list[Point]:
    """Add up the finished cells of each method, place and T_o."""
    found: dict[tuple[str, str, int], list[StudyCell]] = {}
    for cell in results.cells:
        for length in cell.lengths:
            if cell.counts(length) is not None:
                found.setdefault((cell.place, cell.method, length), []).append(cell)
    spent, made = alpha_spent(results.looks), []
    for (place, method, length), cells in found.items():
        look = _look(results, min(cell.rolled_out(length) for cell in cells))
        counts = _sum([each for cell in cells if (each := cell.counts(length)) is not None])
        made.append(Point(place, method, length, counts, len(cells), 1 - spent[look]))
    return made


def comparisons(results: Results) -> list[Comparison]:
    """List all comparisons of the study: each method with the baseline, at every T_o that both have. Methods
    that have no T_o in common are compared at the longest T_o of each."""
    return [
        comparison
        for place, methods in _lengths(results).items()
        for method in methods
        if method not in (results.baseline, results.again) and results.baseline in methods
        for comparison in _between(place, method, results.baseline, methods)
    ]


def control(results: Results) -> dict[Comparison, Pairs]:
    """Compare the control arm with its method, of which it differs in the training seed alone, after as many
    episodes as both have."""
    found = {}
    for place, methods in _lengths(results).items():
        if results.control in methods and results.again in methods:
            for each in _between(place, results.again, results.control, methods):
                for look in results.looks:
                    if (pairs := pairs_at(results, each, look)) is not None:
                        found[each] = pairs
    return found


def verdicts(results: Results) -> dict[Comparison, Verdict]:
    """Decide all comparisons, as far as their cells have finished. A claim is false with a probability of at
    most `ALPHA`, for all comparisons and looks together."""
    return decide(
        comparisons(results),
        results.looks,
        lambda comparison, episodes: pairs_at(results, comparison, episodes),
        ALPHA,
    )


def undecided(results: Results) -> set[tuple[str, str, int]]:
    """Find the points, by place, method and T_o, that need more episodes: those of a comparison that is not
    decided, and those that are in none."""
    found = verdicts(results)
    compared = {point for each in found for point in _points_of(each)}
    open_ = {point for each, verdict in found.items() if not verdict.decided for point in _points_of(each)}
    every = {(cell.place, cell.method, length) for cell in results.cells for length in cell.lengths}
    open_ |= {point for point in every - compared if point[1] != results.again}
    # The control arm shows the noise of its method, so it gets as many episodes.
    twins = {(place, results.again, length) for place, method, length in open_ if method == results.control}
    return open_ | (twins & every)


def wanted(results: Results, look: int) -> list[tuple[int, ...]]:
    """Choose, for each cell, the context lengths at which it lacks episodes of this look: all at the first
    look, later those of points that are not decided."""
    still = undecided(results) if look else None
    return [
        tuple(
            length
            for length in cell.lengths
            if cell.rolled_out(length) < results.looks[look]
            and (still is None or (cell.place, cell.method, length) in still)
        )
        for cell in results.cells
    ]


def unfinished(results: Results) -> list[tuple[int, ...]]:
    """Choose, for each cell, the context lengths that some look still wants, or may want. A cell without any
    has finished."""
    first, last = wanted(results, 0), wanted(results, len(results.looks) - 1)
    return [
        tuple(length for length in cell.lengths if length in {*lacking, *open_})
        for cell, lacking, open_ in zip(results.cells, first, last, strict=True)
    ]


def plan_of(results: Results) -> dict[str, Any]:
    """Describe what the probability of a false claim is shared out over. It holds if no row of the study was
    looked at under another plan."""
    return {
        "looks": list(results.looks),
        "comparisons": len(comparisons(results)),
        "baseline": results.baseline,
        "methods": list(dict.fromkeys(cell.method for cell in results.cells)),
        "seeds": sorted({cell.seed for cell in results.cells}),
    }


def plan_warning(results: Results) -> str | None:
    """Say that cells were looked at under other plans than the present one; None if none was. What cells of
    earlier versions do not tell of their plan counts as that of the present one."""
    now = plan_of(results)
    others: list[dict[str, Any]] = []
    for cell in results.cells:
        for plan in (cell.row or {}).get("plans", []):
            if (other := now | plan) != now and other not in others:
                others.append(other)
    if not others:
        return None
    told = "; ".join(
        ", ".join(f"{key} {value}" for key, value in other.items() if value != now[key]) for other in others
    )
    differing = ", ".join(
        f"{key} {value}" for key, value in now.items() if any(other[key] != value for other in others)
    )
    return (
        f"The chance of a false claim may exceed {ALPHA:.0%}: cells were also looked at under another plan "
        f"({told}) than the present one ({differing}). For a claim that holds, keep one plan from the start, "
        "or run new seeds under the present one."
    )


def pairs_at(results: Results, comparison: Comparison, episodes: int) -> Pairs | None:
    """Count the pairs of a comparison in the first episodes of every seed.

    Args:
        results: the study's.
        comparison: the two methods.
        episodes: number of episodes of each seed.

    Returns:
        The pairs of all seeds; None if a seed has fewer episodes of either method, or its file does not tell
        the outcome of each episode.
    """
    place, method, length, other, other_length = comparison
    sides = [
        {
            cell.seed: cell.endings(at)
            for cell in results.cells
            if (cell.place, cell.method) == (place, name) and at in cell.lengths
        }
        for name, at in ((method, length), (other, other_length))
    ]
    if any(len(endings) < episodes for side in sides for endings in side.values()):
        return None
    pairs = [
        (ours == "s", theirs == "s")
        for seed in sides[0].keys() & sides[1].keys()
        for ours, theirs in zip(sides[0][seed][:episodes], sides[1][seed][:episodes], strict=True)
        if "i" not in (ours, theirs)
    ]
    return Pairs(pairs.count((True, False)), pairs.count((False, True)), len(pairs))


def _between(
    place: str, method: str, other: str, lengths: Mapping[str, Sequence[int]]
) -> Iterator[Comparison]:
    """Yield the comparisons of two methods at one place."""
    ours, theirs = lengths[method], lengths[other]
    both = [length for length in ours if length in theirs]
    for length, other_length in [(each, each) for each in both] or [(max(ours), max(theirs))]:
        yield Comparison(place, method, length, other, other_length)


def _lengths(results: Results) -> dict[str, dict[str, list[int]]]:
    """Return the context lengths, ascending, by place and method."""
    found: dict[str, dict[str, set[int]]] = {}
    for cell in results.cells:
        found.setdefault(cell.place, {}).setdefault(cell.method, set()).update(cell.lengths)
    return {
        place: {method: sorted(lengths) for method, lengths in methods.items()}
        for place, methods in found.items()
    }


def _points_of(comparison: Comparison) -> tuple[tuple[str, str, int], tuple[str, str, int]]:
    place, method, length, other, other_length = comparison
    return (place, method, length), (place, other, other_length)


def _look(results: Results, episodes: int) -> int:
    """Return the index of the last look that this number of episodes of a cell has reached; 0 before the
    first."""
    return max((look for look, needed in enumerate(results.looks) if episodes >= needed), default=0)


def _sum(counts: Sequence[Counts]) -> Counts:
    return Counts(
        sum(each.successes for each in counts),
        sum(each.completed for each in counts),
        sum(each.episodes for each in counts),
    )
