"""Measure what a trained policy is worth where its task has changed: grasp_and_return with moved pads.

Three arms learn from the same few demonstrations of the new places, for equally many steps:

    scratch    random weights
    full       the weights of a policy of the old places, all of them trained
    adapters   the weights of a policy of the old places, and only adapters of rank 8 trained

Two controls: `base` is that policy at the old places, `unchanged` the same policy at the new ones.

A cell is one run. A file keeps finished cells, one per line, and they are not repeated. A run that was
interrupted is resumed.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from common import Row, completed, finish, machine, parser, results

from longview.actors.tasks import grasp_and_return
from longview.actors.tasks.arm import ArmTask
from longview.actors.tasks.grasp_and_return import GraspAndReturn, expert
from longview.cluster.run.config import preset_file
from longview.learner.files import adapter_file, policy_file
from longview.monitoring.success import Rate, read_success

LONGVIEW = Path(sys.executable).with_name("longview")
LENGTHS = (4, 48)
"""Context lengths T_o that are evaluated: one that does not reach back, and the longest."""
DEMONSTRATIONS = (5, 20, 50)
"""Numbers of demonstrations of the new places."""
SEEDS = (0, 1, 2)
ARMS: Mapping[str, tuple[str, ...]] = {
    "scratch": (),
    "full": ("learner.start_from=base", "learner.learning_rate=0.0005"),
    "adapters": ("learner.start_from=base", "learner.adapters.rank=8"),
}
"""Settings of each arm, beyond those of the task."""
EVALUATED = (f"evaluation.context_lengths={list(LENGTHS)}", "evaluation.episodes=0")
LONG = ("evaluation.final_episodes=200",)
"""Settings of every run, and those of every run without `--quick`."""
SHORT = (
    *("actors.demonstrations=5", "evaluation.final_episodes=4"),
    *("learner.steps=60", "learner.publish_every=60", "learner.warmup=10"),
)
"""Settings of every run with `--quick`."""
MOVED = (
    "task=finetune:task",
    "learner.steps=2000",
    "learner.publish_every=2000",
    "learner.validation_episodes=0",
)
"""Settings of the runs at the new places. Held-out demonstrations would be further demonstrations."""


class MovedPads(GraspAndReturn):
    """The simulator of grasp_and_return with its pads elsewhere. They do not overlap with the old ones."""

    pad = (0.12, 0.12)


task = ArmTask(replace(grasp_and_return.spec, name="moved_pads"), MovedPads, expert)


class Cell(NamedTuple):
    """One run, or the evaluation of the base where nothing is trained."""

    arm: str
    demonstrations: int
    seed: int


BASE, UNCHANGED = Cell("base", 100, 0), Cell("unchanged", 0, 0)
Found = dict[Cell, dict[str, Any]]
"""Results by finished cell."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments.add_argument("--demonstrations", nargs="+", type=int, default=DEMONSTRATIONS)
    arguments.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments.add_argument(
        "--cells", type=Path, metavar="FILE", help="finished cells; by default finetune.jsonl"
    )
    arguments.add_argument("--runs", type=Path, default=Path("runs/finetune"), help="folder of the runs")
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the cells")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_args()
    if options.quick:
        options.demonstrations, options.seeds = [5], [0]
        options.runs = options.runs.with_name(f"{options.runs.name}-quick")
    cells = options.cells or Path("finetune-quick.jsonl" if options.quick else "finetune.jsonl")
    where = machine(quick=options.quick)
    found = completed(
        cells,
        list(plan(options)),
        lambda cell, _: evaluate(options) if cell == UNCHANGED else run(cell, options),
        lambda _, result: told(result),
    )
    if options.table:
        options.table.write_text(table(found))
    finish(results(where, rows(found), {}), {}, options.json)


def plan(options: Namespace) -> Iterator[Cell]:
    """Yield the cells: the controls, then the arms, seed by seed."""
    yield from (BASE, UNCHANGED)
    for seed in options.seeds:
        for demonstrations in options.demonstrations:
            yield from (Cell(arm, demonstrations, seed) for arm in options.arms)


def run(cell: Cell, options: Namespace) -> dict[str, Any]:
    """Launch the run of one cell, or resume it, and return its results."""
    name = "base" if cell == BASE else f"{cell.arm}-{cell.demonstrations}-{cell.seed}"
    if (options.runs / name).exists():
        arguments = ["launch", "--resume", name]
    else:
        arguments = ["launch", str(preset_file("grasp_and_return")), f"name={name}", f"seed={cell.seed}"]
        arguments += [f"actors.demonstrations={cell.demonstrations}", *EVALUATED]
        arguments += () if cell == BASE else (*MOVED, *ARMS[cell.arm])
        arguments += [*(SHORT if options.quick else LONG), *options.overrides]
    options.runs.mkdir(parents=True, exist_ok=True)
    with (options.runs.parent / f"{options.runs.name}-{name}.log").open("a") as log:
        longview(arguments, options, stdout=log, stderr=subprocess.STDOUT)
    summary = json.loads((options.runs / name / "summary.json").read_text())
    saved = (adapter_file if cell.arm == "adapters" else policy_file)(options.runs / name)
    return {
        "success": summary["success"][summary["task"]],
        "training_seconds": summary["phases"]["train"],
        "bytes": saved.stat().st_size,
    }


def evaluate(options: Namespace) -> dict[str, Any]:
    """Evaluate the policy of the old places at the new ones, and return the results."""
    arguments = ["evaluate", "base", "--task", "finetune:task", "--json", "actors.simulators=8"]
    arguments += ["--context", ",".join(map(str, LENGTHS)), "--episodes", "4" if options.quick else "200"]
    printed = longview(arguments, options, stdout=subprocess.PIPE)
    found = json.loads(printed.splitlines()[-1])["success"][task.spec.name]
    saved = policy_file(options.runs / "base")
    return {"success": found, "training_seconds": 0.0, "bytes": saved.stat().st_size}


def longview(arguments: list[str], options: Namespace, **streams: Any) -> str:
    """Run a command of `longview` that finds this file's task, and return what it prints."""
    path = os.pathsep.join(
        filter(None, (str(Path(__file__).parent.absolute()), os.environ.get("PYTHONPATH")))
    )
    environment = os.environ | {"LONGVIEW_RUNS": str(options.runs), "PYTHONPATH": path}
    return subprocess.run([LONGVIEW, *arguments], env=environment, text=True, check=True, **streams).stdout


def told(result: Mapping[str, Any]) -> str:
    """Describe a cell's result in one line."""
    rates = [
        f"T_o {length}: {100 * counts.rates['success'].share:.1f} %"
        for length, counts in read_success(result["success"]).items()
    ]
    return f"{'; '.join(rates)}; {result['training_seconds']:.0f} s; {result['bytes']:,} bytes"


def grouped(found: Found) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Group results by arm and number of demonstrations: one result per seed."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell, result in found.items():
        groups.setdefault((cell.arm, cell.demonstrations), []).append(result)
    return groups


def rows(found: Found) -> list[Row]:
    """Return rows of success, training time and bytes saved, one sample per seed."""
    made = []
    for (arm, demonstrations), some in grouped(found).items():
        case = f"{arm}, {demonstrations} demonstrations"
        for length in LENGTHS:
            shares = [100 * read_success(result["success"])[length].rates["success"].share for result in some]
            made.append(Row("success", f"{case}, T_o {length}", "%", shares))
        made.append(Row("training", case, "s", [result["training_seconds"] for result in some]))
        made.append(Row("saved", case, "bytes", [result["bytes"] for result in some]))
    return made


def table(found: Found) -> str:
    """Format success at the longest T_o as Markdown, with Wilson intervals, all seeds together."""
    lines = ["| arm | demonstrations | seeds | success | training | saved |", "|---|" + "---:|" * 5]
    for (arm, demonstrations), some in grouped(found).items():
        counts = [read_success(result["success"])[LENGTHS[-1]] for result in some]
        rate = Rate(sum(each.successes for each in counts), sum(each.episodes for each in counts))
        low, high = rate.interval
        success = f"{100 * rate.share:.1f} % ({100 * low:.0f}-{100 * high:.0f})"
        seconds, size = (mean(result[name] for result in some) for name in ("training_seconds", "bytes"))
        figures = f"{len(some)} | {success} | {seconds:.0f} s | {size / 1000:,.0f} kB"
        lines.append(f"| {arm} | {demonstrations} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
