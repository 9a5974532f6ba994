"""Hold `longview audit` to the truth: data of tasks of which it is known whether they need memory.

Demonstrations are collected with a seed of their own, exported, and audited as anybody's data. A file keeps
finished audits, one per line, and they are not repeated.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

from common import Row, completed, finish, machine, parser, results

from longview.actors.task import load_task

LONGVIEW = Path(sys.executable).with_name("longview")
EPISODES: Final = 100
NEEDED: Final = {
    # T_o from which a trained policy succeeds as often as with a longer one (docs/tasks.md); None: no memory.
    "return_point": 32,
    "grasp_and_return": 40,
    "count_scoops": 32,
    "lift": None,
    "square": None,
    "push_t": None,
    "push_and_return": 60,
}
REPORTED: Final = ("push_and_return",)
"""Tasks whose verdicts are shown and not counted."""
TARGETS: Final = {"right": ">= 5", "minutes": "<= 15"}
FOUND: Final = (
    "memory",
    "verdict",
    "T_o",
    "reach_steps",
    "confidence",
    "gain",
    "chance",
    "episodes",
    "controls",
    "more_episodes",
)
"""Entries of an answer that a cell keeps."""


class Cell(NamedTuple):
    """One audit."""

    task: str
    seed: int


Found = Mapping[Cell, Mapping[str, Any]]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tasks", nargs="+", choices=list(NEEDED), default=list(NEEDED))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103])
    arguments.add_argument(
        "--cells", type=Path, metavar="FILE", help="finished audits; by default audit.jsonl"
    )
    arguments.add_argument("--data", type=Path, default=Path("runs/audit"), help="folder of the data sets")
    arguments.add_argument(
        "--push-t", type=Path, metavar="DATASET", help="the human demonstrations of Push-T"
    )
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the audits")
    options = arguments.parse_args()
    if options.quick:
        options.tasks, options.seeds = ["return_point"], [101]
    where = machine(quick=options.quick)
    cells = options.cells or Path("audit-quick.jsonl" if options.quick else "audit.jsonl")
    planned = [Cell(task, seed) for seed in options.seeds for task in options.tasks]
    if options.push_t is None:
        planned = [cell for cell in planned if cell.task != "push_t"]
    found = completed(cells, planned, lambda cell, _: audit(cell, options.data, options.push_t), told)
    if options.table:
        options.table.write_text(table(found))
    ratios = {f"right: seed {seed}": score(found, seed) for seed in options.seeds}
    targets = dict.fromkeys(ratios, TARGETS["right"]) if not options.quick else {}
    minutes = [Row("minutes", cell.task, "min", [result["minutes"]]) for cell, result in found.items()]
    finish(results(where, minutes, ratios), targets | {"minutes": TARGETS["minutes"]}, options.json)


def audit(cell: Cell, folder: Path, push_t: Path | None) -> dict[str, Any]:
    """Collect and export a data set, unless it is there, and audit it."""
    folder.mkdir(parents=True, exist_ok=True)  # for reports also where nothing is collected
    if cell.task == "push_t":
        assert push_t is not None
        data, seed = push_t, ["--seed", str(cell.seed)]  # there is only one: other parts are held out
    else:
        data, seed = folder / f"{cell.task}-{cell.seed}.hdf5", []
        if not data.exists():
            collect(cell, data)
    rate = load_task(cell.task).spec.control_hz
    started = perf_counter()
    report = folder / f"{cell.task}-{cell.seed}.html"
    command = ["audit", str(data), "--hz", f"{rate:g}", "--report", str(report), "--json", *seed]
    answer = json.loads(longview(command))
    return {key: answer[key] for key in FOUND} | {"minutes": round((perf_counter() - started) / 60, 2)}


def collect(cell: Cell, data: Path) -> None:
    """Let the expert demonstrate a task, and export what it did."""
    data.parent.mkdir(parents=True, exist_ok=True)
    name = f"audit-{cell.task}-{cell.seed}"
    longview(["collect", cell.task, "--episodes", str(EPISODES), f"name={name}", f"seed={cell.seed}"])
    longview(["store", "export", str(data), name, "--format", "robomimic"])


def longview(arguments: Sequence[str]) -> str:
    """Run a command of Longview, and return what it prints."""
    return subprocess.run([LONGVIEW, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def right(cell: Cell, result: Mapping[str, Any]) -> bool:
    """Tell whether a verdict is right: memory or none, and a T_o from the needed one to twice as long."""
    needed = NEEDED[cell.task]
    if needed is None:
        return result["memory"] is False
    return result["memory"] is True and needed <= result["T_o"] <= 2 * needed


def score(found: Found, seed: int) -> int:
    """Count the right verdicts of a seed."""
    return sum(
        right(cell, result)
        for cell, result in found.items()
        if cell.seed == seed and cell.task not in REPORTED
    )


def told(cell: Cell, result: Mapping[str, Any]) -> str:
    """Describe an audit in one line."""
    verdict = "right" if right(cell, result) else "wrong"
    return (
        f"{result['verdict']}, T_o {result['T_o']}, confidence {result['confidence']:.0%}, gain "
        f"{result['gain']:.0%}: {verdict}; {result['minutes']} min"
    )


def table(found: Found) -> str:
    """Format verdicts as Markdown, a row for each task and a column for each seed."""
    seeds = sorted({cell.seed for cell in found})
    lines = [
        f"| task | needs | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "|---|---|" + "---|" * len(seeds),
    ]
    for task in dict.fromkeys(cell.task for cell in found):
        needed = NEEDED[task]
        verdicts = []
        for seed in seeds:
            cell = Cell(task, seed)
            result = found.get(cell)
            if result is None:
                verdicts.append("")
                continue
            mark = "" if right(cell, result) else " (wrong)"
            said = f"T_o {result['T_o']}" if result["memory"] else "none"
            said = "unclear" if result["memory"] is None else said
            verdicts.append(f"{said}, {100 * result['gain']:.0f} %, {result['confidence']:.0%}{mark}")
        needs = "none" if needed is None else f"T_o {needed}"
        lines.append(f"| {task} | {needs} | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
