"""Functions that all benchmarks share: measuring, and reporting the results.

A benchmark is a script `benchmarks/<name>.py [--quick] [--json FILE]`. It prints a table and writes
`{"machine": {...}, "rows": [...], "ratios": {"<name>": x}}`.
"""

import json
import os
import platform
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from operator import ge, le
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

PACKAGES = ("numpy", "torch", "ray", "redis", "robosuite", "mujoco")
"""Packages whose versions change the figures."""

WIDTH = 140
"""Width of the printed tables, in characters, where the output is no terminal."""

Cell = TypeVar("Cell")

Targets = Mapping[str, str]
"""Target of each measure or ratio, by its name: `<= 150` or `>= 0.8`, in the measure's unit."""


@dataclass(frozen=True)
class Row:
    """One figure, with every sample that was measured of it."""

    measure: str
    case: str
    unit: str
    samples: Sequence[float]

    @property
    def value(self) -> float:
        """Median of the samples."""
        return median(self.samples)


def parser(description: str) -> ArgumentParser:
    """Make a command-line parser with `--quick` and `--json`, to which a benchmark may add options."""
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="less exact figures, within two minutes on 2 cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    return parser


def arguments(description: str) -> Namespace:
    """Parse the command line of a benchmark without options of its own."""
    return parser(description).parse_args()


def seconds(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    started = perf_counter()
    call()
    return perf_counter() - started


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once per round, in a new random order each round.

    All sides of a round thus meet the machine in the same state, and a slow change affects all of them alike.
    The random order prevents one side from always running on the caches that the same other side left behind.
    """
    rng = random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in rng.sample(list(sides), len(sides)):
            samples[name].append(sides[name]())
    return samples


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over all rounds of one side's sample divided by the other's."""
    return median(a / b for a, b in zip(above, below, strict=True))


def machine(**settings: Any) -> dict[str, Any]:
    """Describe the machine and its software. Call it before measuring, because it records the load."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **settings,
    }


def finished(file: Path, cell: Callable[..., Cell]) -> dict[Cell, dict[str, Any]]:
    """Read the results by cell of a study, one line each; ignore a last line that was cut off.

    Args:
        file: the results so far; it need not exist yet.
        cell: makes a cell of the values that name it.
    """
    # Imported here because gpu.py, which has no cells, runs where nothing of the store is installed.
    from longview.cluster.run.folder import read_rows

    return {cell(*row.pop("cell")): row for row in read_rows(file)}


def completed(
    file: Path,
    cells: Sequence[Cell],
    run: Callable[[Cell, Mapping[Cell, Mapping[str, Any]]], dict[str, Any]],
    told: Callable[[Cell, Mapping[str, Any]], str],
) -> dict[Cell, dict[str, Any]]:
    """Run the cells of a study that a file does not hold, add a line for each, and return all results.

    Args:
        file: the results so far; it need not exist yet.
        cells: the cells, named tuples, in the order in which they are run.
        run: runs a cell, given the results so far.
        told: describes a result in one line.
    """
    from longview.cluster.run.folder import append_row  # as in `finished`

    done, console = finished(file, type(cells[0])), Console()
    for number, cell in enumerate(cells, start=1):
        if cell not in done:
            console.print(f"{number} of {len(cells)}: {cell}", highlight=False)
            done[cell] = {**run(cell, done), "cpu": machine()["cpu"]}
            append_row(file, {"cell": cell, **done[cell]})
            console.print(f"  {told(cell, done[cell])}", highlight=False)
    return {cell: done[cell] for cell in cells}


def results(where: Mapping[str, Any], rows: Sequence[Row], ratios: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    plain = [
        {
            "measure": row.measure,
            "case": row.case,
            "unit": row.unit,
            "value": row.value,
            "low": min(row.samples),
            "high": max(row.samples),
            "samples": list(row.samples),
        }
        for row in rows
    ]
    return {"machine": dict(where), "rows": plain, "ratios": dict(ratios)}


def finish(found: Mapping[str, Any], targets: Targets, file: Path | None) -> None:
    """Print the tables of `results`; write `results` to `file` if one is given."""
    if file is not None:
        file.write_text(json.dumps(found, indent=2) + "\n")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(", ".join(f"{name} {value}" for name, value in found["machine"].items()), highlight=False)
    console.print(_table(found["rows"], targets))
    console.print(_ratio_table(found["ratios"], targets))


def _table(rows: Sequence[Mapping[str, Any]], targets: Targets) -> Table:
    table = Table("measure", "case", box=SIMPLE)
    for column in ("median", "lowest", "highest", "samples"):
        table.add_column(column, justify="right")
    for column in ("unit", "target"):
        table.add_column(column)
    for row in rows:
        figures = (_figure(row[name]) for name in ("value", "low", "high"))
        verdict = _verdict(row["value"], targets.get(row["measure"]))
        table.add_row(row["measure"], row["case"], *figures, str(len(row["samples"])), row["unit"], verdict)
    return table


def _ratio_table(ratios: Mapping[str, float], targets: Targets) -> Table:
    table = Table("ratio", "median", "target", box=SIMPLE)
    for name, value in ratios.items():
        table.add_row(name, _figure(value), _verdict(value, targets.get(name)))
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdict(value: float, target: str | None) -> str:
    if target is None:
        return ""
    sign, limit = target.split()
    met = {"<=": le, ">=": ge}[sign](value, float(limit))
    return f"{target} [green]met[/]" if met else f"{target} [bold red]missed[/]"
