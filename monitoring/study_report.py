"""The report of a study: report.html, and its tables as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.monitoring.comparison import ALPHA
from longview.monitoring.report import DPI, embedded, empty_plots, templates
from longview.monitoring.study import Point, Results, control, plan_warning, points, unfinished, verdicts
from longview.monitoring.success import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATEX = {symbol: f"\\{symbol}" for symbol in "%&_#${}"} | {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "–": "--",
    "−": "$-$",
}
"""LaTeX of characters that mean something else there."""
COLOURS, MARKERS, LINES = 10, "osD^vPX*", ("-", "--", ":", "-.")
"""Colours, markers and lines of the curves. Colour and marker change with every method, the line when the
colours begin again."""
LEGEND_COLUMNS = 2
"""Methods side by side in the legend."""


@dataclass(frozen=True)
class Table:
    """A table of the report, as texts."""

    title: str
    """Heading of the table."""
    note: str
    """Explanation for the reader."""
    header: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """Cells of each row."""


def write_study_report(results: Results, folder: Path) -> list[Path]:
    """Write the report of a study, as far as its cells have finished.

    Args:
        results: the study's.
        folder: where the files go: report.html, which needs no other file, tables.md, tables.tex, and
            success.csv, comparisons.csv and cost.csv with plain numbers.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, compared, spent = points(results), comparison_rows(results), cost_rows(results)
    tables = [
        success_table(found, spent),
        memory_table(found),
        seed_table(results),
        comparison_table(compared, plan_warning(results)),
        control_table(results),
        cost_table(spent),
    ]
    files = {
        "report.html": templates()
        .get_template("study.html")
        .render(
            results=results,
            done=sum(not lengths for lengths in unfinished(results)),
            tables=tables,
            plots=curves(results, found, folder),
        ),
        "tables.md": "\n".join(map(as_markdown, tables)),
        "tables.tex": "\n".join(map(as_latex, tables)),
        "success.csv": as_csv(map(point_row, found)),
        "comparisons.csv": as_csv(compared),
        "cost.csv": as_csv(spent),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def point_row(point: Point) -> dict[str, Any]:
    """Describe a point in plain numbers."""
    low, high = point.interval
    return {
        "place": point.place,
        "method": point.method,
        "T_o": point.length,
        "seeds": point.seeds,
        "successes": point.counts.successes,
        "completed": point.counts.completed,
        "episodes": point.counts.episodes,
        "success": round(point.counts.rates["success"].share, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "confidence": round(point.level, 6),
    }


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Describe every comparison in plain numbers."""
    noise = {(each.place, each.length): abs(pairs.difference) for each, pairs in control(results).items()}
    return [
        {
            "place": each.place,
            "method": each.method,
            "T_o": each.length,
            "baseline": each.other,
            "baseline_T_o": each.other_length,
            "pairs": verdict.pairs.of,
            "gained": verdict.pairs.gained,
            "lost": verdict.pairs.lost,
            "difference": round(verdict.pairs.difference, 4),
            "control_difference": noise.get((each.place, each.length)),
            "p": verdict.p,
            "look": verdict.look + 1,
            "differs": verdict.decided,
        }
        for each, verdict in verdicts(results).items()
    ]


def cost_rows(results: Results) -> list[dict[str, Any]]:
    """Add up what the finished cells of each method and place have cost."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in results.cells:
        if cell.row is not None:
            found.setdefault((cell.place, cell.method), []).append(cell.row)
    return [
        {
            "place": place,
            "method": method,
            "cells": len(rows),
            "resumed": sum(row.get("resumed", False) for row in rows),
            "training_steps": sum(row["training_steps"] for row in rows),
            "training_minutes": round(sum(row["minutes"].get("train", 0.0) for row in rows), 2),
            "minutes": round(sum(sum(row["minutes"].values()) for row in rows), 2),
            "core_hours": round(sum(sum(row["minutes"].values()) * row["cores"] for row in rows) / 60, 3),
        }
        for (place, method), rows in found.items()
    ]


def success_table(found: Sequence[Point], spent: Sequence[Mapping[str, Any]]) -> Table:
    """Make the table of success by method and T_o, with the time of training beside it."""
    minutes = {(row["place"], row["method"]): _minutes(row) for row in spent}
    lengths, rows = _by_length(found, _success)
    return Table(
        "Success, and the training that it took",
        "Success of all seeds together, with its Wilson interval. A point that was evaluated no further "
        "after an early look has a wider interval, which allows for the looks. Minutes are those of "
        "training, all seeds and policies of the row together; of cells that were stopped and resumed (>) "
        "those since the last resumption.",
        ["", *lengths, "minutes"],
        [[_joined(*key), *row, minutes[key]] for key, row in rows.items()],
    )


def memory_table(found: Sequence[Point]) -> Table:
    """Make the table of what was remembered, for places in the grid where memory can go wrong."""
    asked = {point.place for point in found if point.counts.successes < point.counts.completed}
    lengths, rows = _by_length([point for point in found if point.place in asked], _contextual)
    return Table(
        "Memory, apart from skill",
        "Of the episodes that were completed, at the right place or at another one, the share at the right "
        "one, with its 95% Wilson interval. Who always remembers has 100 %, who guesses has chance.",
        ["", *lengths],
        [[_joined(*key), *row] for key, row in rows.items()],
    )


def seed_table(results: Results) -> Table:
    """Make the table of success by seed at the longest T_o of each method, for studies of several seeds."""
    seeds = sorted({cell.seed for cell in results.cells})
    longest: dict[tuple[str, str], int] = {}
    for cell in results.cells:
        key = cell.place, cell.method
        longest[key] = max(longest.get(key, 0), *cell.lengths)
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for cell in results.cells if len(seeds) > 1 else ():
        key = cell.place, cell.method
        if (counts := cell.counts(longest[key])) is not None:
            rows.setdefault(key, {})[cell.seed] = f"{counts.successes} of {counts.episodes}"
    return Table(
        "Success of each seed",
        "At the longest T_o of each method. A seed has demonstrations and a training of its own. How far "
        "seeds of one method differ tells how much a difference between methods says about others.",
        ["", *(f"seed {seed}" for seed in seeds)],
        [[_joined(*key), *(row.get(seed, "") for seed in seeds)] for key, row in rows.items()],
    )


def _by_length(
    found: Sequence[Point], text: Callable[[Point], str]
) -> tuple[list[str], dict[tuple[str, str], list[str]]]:
    """Return a column's name for each T_o, and by place and method a text for each column."""
    lengths = sorted({point.length for point in found})
    by_row: dict[tuple[str, str], dict[int, str]] = {}
    for point in found:
        by_row.setdefault((point.place, point.method), {})[point.length] = text(point)
    rows = {key: [row.get(length, "") for length in lengths] for key, row in by_row.items()}
    return [f"T_o {length}" for length in lengths], rows


def comparison_table(rows: Sequence[Mapping[str, Any]], warning: str | None) -> Table:
    """Make the table of comparisons; a warning comes before its explanation."""
    return Table(
        "Comparisons on the same episodes",
        (f"{warning} " if warning else "")
        + "Difference of the success rates in points, on pairs of episodes with the same seed. Gained: "
        "only the method succeeded; lost: only the other one. p: McNemar's exact test, corrected for the "
        f"number of comparisons and looks; with a probability of at most {ALPHA:.0%} any claim of the "
        "table is false. Control: difference between two policies of one method; a difference that is not "
        "larger may be the training seed's.",
        [
            "",
            "T_o",
            "against",
            "T_o",
            "pairs",
            "difference",
            "gained",
            "lost",
            "p",
            "look",
            "control",
            "claim",
        ],
        [
            [
                _joined(row["place"], row["method"]),
                str(row["T_o"]),
                row["baseline"],
                str(row["baseline_T_o"]),
                str(row["pairs"]),
                _points(row["difference"]),
                str(row["gained"]),
                str(row["lost"]),
                _p(row["p"]),
                str(row["look"]),
                "" if row["control_difference"] is None else f"{100 * row['control_difference']:.1f}",
                _claim(row),
            ]
            for row in rows
            if row["pairs"]
        ],
    )


def control_table(results: Results) -> Table:
    """Make the table of the control arm."""
    return Table(
        "Noise of training",
        f"{results.control}, trained twice on the same demonstrations and evaluated on the same episodes: "
        "only the training seed differs. p is not corrected.",
        ["", "T_o", "pairs", "difference", "gained", "lost", "p"],
        [
            [
                _joined(each.place, each.other),
                str(each.length),
                str(pairs.of),
                _points(pairs.difference),
                str(pairs.gained),
                str(pairs.lost),
                _p(pairs.p),
            ]
            for each, pairs in control(results).items()
        ],
    )


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make the table of what the cells have cost."""
    return Table(
        "Cost",
        "All seeds and policies together. Minutes are those of whole runs, without the demonstrations that "
        "cells share; core-hours count every CPU that a run had. Of cells that were stopped and resumed (>), "
        "minutes of training are those since the last resumption; their other minutes hold all attempts "
        "whose end the study has seen. Cells that take another one's policy show its steps, and hardly any "
        "minutes of training.",
        ["", "cells", "training steps", "minutes of training", "minutes", "core-hours"],
        [
            [
                _joined(row["place"], row["method"]),
                f"{row['cells']} ({row['resumed']} resumed)" if row["resumed"] else str(row["cells"]),
                f"{row['training_steps']:,}",
                _minutes(row),
                f"{row['minutes']:.1f}",
                f"{row['core_hours']:.2f}",
            ]
            for row in rows
        ],
    )


def curves(results: Results, found: Sequence[Point], folder: Path) -> dict[str, str]:
    """Draw the success of all methods, and return a PNG in base64 for each place: curves over T_o of the
    methods that have several, above a row with an interval for each method that has one T_o alone.

    Args:
        results: the study's.
        found: its points.
        folder: where the PNGs are written, too.
    """
    methods = list(dict.fromkeys(cell.method for cell in results.cells))
    pictures = {}
    for number, place in enumerate(dict.fromkeys(point.place for point in found), start=1):
        lines = {
            method: sorted(
                (point for point in found if (point.place, point.method) == (place, method)),
                key=lambda point: point.length,
            )
            for method in methods
        }
        file = folder / f"success-{number}.png"
        _draw({method: line for method, line in lines.items() if line}, methods, file)
        pictures[place] = embedded(file)
    return pictures


def _draw(lines: Mapping[str, Sequence[Point]], methods: Sequence[str], file: Path) -> "Figure":
    """Draw the points of one place by method into a file. A method has the same style in every file."""
    several = {method: line for method, line in lines.items() if len(line) > 1}
    single = {method: line[0] for method, line in lines.items() if len(line) == 1}
    legend = 0.2 * math.ceil(len(several) / LEGEND_COLUMNS)
    heights = [3.0 + legend] * bool(several) + [0.7 + 0.26 * len(single)] * bool(single)
    figure, plots = empty_plots(len(heights), heights=heights)
    if several:
        _draw_curves(plots[0], several, {method: _style(methods.index(method)) for method in several})
    if single:
        _draw_rows(plots[-1], single, {method: _style(methods.index(method)) for method in single})
    figure.savefig(file, dpi=DPI)
    return figure


def _draw_curves(axes: Any, lines: Mapping[str, Sequence[Point]], styles: Mapping[str, Any]) -> None:
    """Draw success over T_o, a line for each method, with the legend below."""
    lengths = sorted({point.length for line in lines.values() for point in line})
    for index, (method, line) in enumerate(lines.items()):
        # So that no interval hides another.
        shift = min(0.08, 0.5 / len(lines)) * (index - (len(lines) - 1) / 2)
        at = [lengths.index(point.length) + shift for point in line]
        shares = [point.counts.rates["success"].share for point in line]
        reach = list(zip(*map(_reach, line), strict=True))
        axes.errorbar(at, shares, reach, label=method, linewidth=1.3, **styles[method])
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlabel("context length $T_o$")
    axes.set_ylabel("success")
    axes.set_ylim(-0.03, 1.04)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": LEGEND_COLUMNS}
    axes.legend(**below, frameon=False, fontsize="small", handlelength=3.2)


def _draw_rows(axes: Any, rows: Mapping[str, Point], styles: Mapping[str, Any]) -> None:
    """Draw a forest plot: for each method a row with its success and interval."""
    for row, (method, point) in enumerate(rows.items()):
        reach = [[side] for side in _reach(point)]
        axes.errorbar(point.counts.rates["success"].share, row, xerr=reach, **styles[method])
    names = [f"{method}, $T_o$ {point.length}" for method, point in rows.items()]
    axes.set_yticks(range(len(rows)), names, fontsize="small")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.04)
    axes.set_xlabel("success")


def _reach(point: Point) -> tuple[float, float]:
    """Return how far the interval reaches below and above the success of a point."""
    low, high = point.interval
    share = point.counts.rates["success"].share
    return max(0.0, share - low), max(0.0, high - share)


def _style(index: int) -> dict[str, Any]:
    """Return the style of a study's method, which no other has."""
    from matplotlib import colormaps

    return {
        "color": colormaps["tab10"](index % COLOURS),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index // COLOURS % len(LINES)],
        "capsize": 2.5,
        "markersize": 5,
    }


def as_markdown(table: Table) -> str:
    """Write a table as Markdown; empty without rows."""
    if not table.rows:
        return ""
    head = [
        f"### {table.title}\n",
        table.note + "\n",
        _line(table.header),
        "|---|" + "---:|" * (len(table.header) - 1),
    ]
    return "\n".join([*head, *map(_line, table.rows)]) + "\n"


def as_latex(table: Table) -> str:
    """Write a table as LaTeX, for the package booktabs; empty without rows."""
    if not table.rows:
        return ""
    body = [f"{' & '.join(map(_escaped, row))} \\\\" for row in (table.header, *table.rows)]
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        "\\begin{table}",
        f"\\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        body[0],
        "\\midrule",
        *body[1:],
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as CSV; empty without rows."""
    rows, text = list(rows), io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _joined(place: str, method: str) -> str:
    return f"{place}, {method}" if place else method


def _success(point: Point) -> str:
    return _rate(point.counts.rates["success"], point.interval)


def _contextual(point: Point) -> str:
    rate = point.counts.rates["contextual"]
    return f"{_rate(rate, rate.interval)} of {rate.of}" if rate.of else "none completed"


def _rate(rate: Rate, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * rate.share:.1f} % ({100 * low:.0f}–{100 * high:.0f})"


def _minutes(row: Mapping[str, Any]) -> str:
    """Write minutes of training; with resumed cells they are a lower bound."""
    return f"{'> ' if row['resumed'] else ''}{row['training_minutes']:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _claim(row: Mapping[str, Any]) -> str:
    if not row["differs"]:
        return "none"
    return "better" if row["difference"] > 0 else "worse"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Write a text for LaTeX; T_o becomes a formula."""
    parts = ("".join(LATEX.get(symbol, symbol) for symbol in part) for part in text.split("T_o"))
    return "$T_o$".join(parts)
