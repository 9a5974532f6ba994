"""Measure what collected episodes are worth: a run with corrections against runs with demonstrations alone.

Four arms train for equally many steps, and evaluate the same seeds:

    A   N0 demonstrations
    B   N0 demonstrations, and corrections that the run collects with its own policy
    C   N0 demonstrations, and as many expert steps of further demonstrations as B's corrections have
    D   2 N0 demonstrations

A cell is one run. A file keeps finished cells, one per line, and they are not repeated. A run that was
interrupted is resumed.

With `--actors`, measure instead how many actors the loop can take; see fleet.py.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from common import Row, completed, finish, machine, parser, results

from longview.monitoring.success import Counts, read_success

LONGVIEW = Path(sys.executable).with_name("longview")
ARMS = {
    "A": "N0 demonstrations",
    "B": "N0 + corrections",
    "C": "N0 + as many expert steps of demonstrations",
    "D": "2 N0 demonstrations",
}
BUDGET = 1.0
"""Expert steps of B's corrections, as a share of those of its demonstrations."""
SPREAD = 0.8
"""Share of the training within which B collects its corrections."""
TARGETS = {
    "corrections_over_none": ">= 15",
    "corrections_over_demonstrations": ">= 5",
    "actor_busy": ">= 0.9",
}


@dataclass(frozen=True)
class Comparison:
    """One task, and how it is compared."""

    demonstrations: int
    """Number of demonstrations in arm A, N0."""
    context_lengths: tuple[int, int]
    """Shortest and longest T_o."""
    settings: tuple[str, ...] = ()
    """Settings beyond the task's preset."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""


OFTEN = ("learner.publish_every=500", "learner.checkpoint_every=2000")
"""Settings that give the actors a new policy often. The presets publish rarely, because they evaluate each
version."""

COMPARISONS = {
    "push_and_return": Comparison(100, (4, 80), (*OFTEN, "learner.steps=8000")),
    # Even with so few demonstrations, arm A leaves nothing to gain.
    "count_scoops": Comparison(3, (1, 92), (*OFTEN, "learner.steps=4000"), seeds=(0,)),
    "square": Comparison(25, (1, 20), (*OFTEN, "learner.steps=6000"), seeds=(0,)),
    # Few simulators: an order of eight episodes would use the whole budget of five demonstrations at once.
    "grasp_and_return": Comparison(5, (4, 48), ("actors.simulators=4",), seeds=(0, 1)),
}
QUICK = {
    "return_point": Comparison(
        8, (1, 64), ("learner.steps=500", "learner.publish_every=25", "learner.warmup=20"), seeds=(0,)
    )
}


class Cell(NamedTuple):
    """One run."""

    task: str
    arm: str
    seed: int
    changes: str = ""
    """Settings beyond the comparison's own."""


COMPARED = COMPARISONS | QUICK
COLORS = {"A": "tab:gray", "B": "tab:red", "C": "tab:blue", "D": "tab:green"}

Found = dict[Cell, dict[str, Any]]
"""Results by finished cell, as `taken` returns them."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tasks", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    arguments.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments.add_argument("--seeds", nargs="+", type=int, help="instead of each task's own")
    arguments.add_argument(
        "--cells", type=Path, metavar="FILE", help="finished cells; by default online.jsonl"
    )
    arguments.add_argument("--runs", type=Path, default=Path("runs/online"), help="folder of the runs")
    arguments.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of success over expert steps")
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the cells")
    arguments.add_argument("--actors", action="store_true", help="measure how many actors the loop can take")
    arguments.add_argument("--minutes", type=float, help="with --actors, as in fleet.py")
    arguments.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for all arms; those of `collect` for B alone"
    )
    options = arguments.parse_args()
    if spaced := [override for override in options.overrides if " " in override]:
        arguments.error(f"expected settings without spaces, such as key=[1,2], not {spaced[0]!r}")
    if options.actors:
        import fleet  # imported here because it chooses how this process talks to Ray

        fleet.measure(options.quick, options.minutes, options.json)
        return
    comparisons = QUICK if options.quick else {task: COMPARISONS[task] for task in options.tasks}
    cells = options.cells or Path("online-quick.jsonl" if options.quick else "online.jsonl")
    if options.quick:
        options.arms = ["A", "B"]
    where = machine(quick=options.quick)
    found = completed(
        cells,
        list(plan(options, comparisons)),
        lambda cell, done: run(cell, comparisons[cell.task], done, options),
        lambda _, result: told(result),
    )
    if options.plot:
        plot(found, options.plot)
    if options.table:
        options.table.write_text(table(found))
    finish(results(where, rows(found), ratios(found)), targets(found), options.json)


def plan(options: Namespace, comparisons: Mapping[str, Comparison]) -> Iterator[Cell]:
    """Yield the cells, seed by seed: the first comparison is complete early."""
    for task, comparison in comparisons.items():
        for seed in options.seeds or comparison.seeds:
            # C follows from what B has collected, and B from the length of A's demonstrations.
            arms = {"A", *options.arms, *(["B"] if "C" in options.arms else [])}
            every = Cell(task, "B", seed, " ".join(options.overrides))
            yield from (beside(every, arm) for arm in sorted(arms))


def beside(cell: Cell, arm: str) -> Cell:
    """Return the cell of another arm that a cell is compared with. Settings of `collect` change what B
    collects, and with it what C gets; A and D stay as they are."""
    changes = cell.changes.split() if arm in ("B", "C") else without_collect(cell.changes.split())
    return cell._replace(arm=arm, changes=" ".join(changes))


def without_collect(overrides: Sequence[str]) -> list[str]:
    """Return the settings that are not of `collect`."""
    return [override for override in overrides if not override.startswith(("collect.", "collect="))]


def run(cell: Cell, comparison: Comparison, done: Found, options: Namespace) -> dict[str, Any]:
    """Launch the run of one cell, or resume it, and return its results."""
    chosen = settings(cell, comparison, done)
    chosen += ["evaluation.final_episodes=50"] if options.quick else []
    overrides = cell.changes.split()
    chosen += overrides if cell.arm == "B" else without_collect(overrides)
    # A run of other settings, such as those of an earlier comparison, is not resumed.
    name = f"{cell.task}-{cell.arm}-{cell.seed}-{sha256(' '.join(chosen).encode()).hexdigest()[:8]}"
    if (options.runs / name).exists():
        command = [LONGVIEW, "launch", "--resume", name]
    else:
        command = [LONGVIEW, "demo", "--task", cell.task, f"name={name}", f"seed={cell.seed}", *chosen]
    environment = os.environ | {"LONGVIEW_RUNS": str(options.runs)}
    options.runs.mkdir(parents=True, exist_ok=True)
    with (options.runs.parent / f"{name}.log").open("a") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return taken(json.loads((options.runs / name / "summary.json").read_text()))


def settings(cell: Cell, comparison: Comparison, done: Found) -> list[str]:
    """Return the settings of a cell's run."""
    shortest, longest = comparison.context_lengths
    # Only the last version is evaluated, so that actors collect throughout.
    common = [f"evaluation.context_lengths=[{shortest}, {longest}]", "evaluation.episodes=0"]
    common += ["evaluation.final_episodes=200", *comparison.settings]
    count = comparison.demonstrations
    if cell.arm in ("B", "C"):
        plain = done[beside(cell, "A")]
        length = plain["demonstration_steps"] / plain["demonstrations"]
    if cell.arm == "B":
        budget = round(BUDGET * count * length)
        # Half of an episode, or more, is the policy's.
        pace = 2 * budget / (SPREAD * plain["training_steps"])
        common += ["collect.kind=takeover", f"collect.expert_steps={budget}"]
        common += [f"collect.steps_per_training_step={pace:.3g}"]
    if cell.arm == "C":
        count += round(done[beside(cell, "B")]["correction_steps"] / length)
    if cell.arm == "D":
        count *= 2
    return [*common, f"actors.demonstrations={count}"]


def taken(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Take the results from a run's summary."""
    by_source = {
        source: [row for row in summary["episodes"] if row["source"] == source]
        for source in ("demo", "correction")
    }
    seconds = summary["actor_seconds"]
    return {
        # The held-out demonstrations are among them, in every arm.
        "demonstrations": sum(row["episodes"] for row in by_source["demo"]),
        "demonstration_steps": sum(row["steps"] for row in by_source["demo"]),
        "corrections": sum(row["episodes"] for row in by_source["correction"]),
        "correction_steps": summary["expert_steps"],
        "success": summary["success"][summary["task"]],
        "training_steps": summary["config"]["learner"]["steps"],
        # Of the run's last launch. Actors that the limiter holds are not idle: the learner has as much data
        # as it asks for. Nor are those that may collect no more.
        "busy": 1 - seconds["waiting"] / sum(seconds.values()),
        "limited": seconds["limited"] / sum(seconds.values()),
        "ended": seconds["ended"] / sum(seconds.values()),
        "minutes": round(sum(summary["phases"].values()) / 60, 1),
    }


def told(result: Mapping[str, Any]) -> str:
    """Describe a cell's result in one line."""
    rates = [
        f"T_o {length}: {100 * counts.rates['success'].share:.1f} % "
        f"(completed {100 * counts.rates['completed'].share:.1f} %)"
        for length, counts in read_success(result["success"]).items()
    ]
    return f"{'; '.join(rates)}; {expert_steps(result):,} expert steps; {result['minutes']} min"


def pooled(found: Found, task: str, arm: str, length: int) -> Counts:
    """Add up the counts of all seeds of an arm at one context length."""
    every = [
        read_success(result["success"])[length]
        for cell, result in found.items()
        if (cell.task, cell.arm) == (task, arm)
    ]
    return Counts(
        sum(counts.successes for counts in every),
        sum(counts.completed for counts in every),
        sum(counts.episodes for counts in every),
    )


def expert_steps(result: Mapping[str, Any]) -> int:
    """Return the expert steps that a run has used."""
    return int(result["demonstration_steps"] + result["correction_steps"])


def grouped(found: Found) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Group results by task and arm: one result per seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell, result in found.items():
        groups.setdefault((cell.task, cell.arm), []).append(result)
    return groups


def rows(found: Found) -> list[Row]:
    """Return rows of success, completion, expert steps and time, one sample per seed."""
    made = []
    for (task, arm), some in grouped(found).items():
        every = [read_success(result["success"]) for result in some]
        for length in every[0]:
            for kind in every[0][length].rates:
                shares = [100 * success[length].rates[kind].share for success in every]
                made.append(Row(kind, f"{task} {arm}, T_o {length}", "%", shares))
        made.append(Row("expert_steps", f"{task} {arm}", "steps", [expert_steps(result) for result in some]))
        made.append(Row("time", f"{task} {arm}", "min", [result["minutes"] for result in some]))
    return made


def ratios(found: Found) -> dict[str, float]:
    """Return by task the points of success at the longest T_o that corrections add to what A and C reach, and
    the shares of time in which actors that collect were not idle, in which the limiter held them, and in
    which they were done because the expert's steps were spent."""
    groups, made = grouped(found), dict[str, float]()
    for task in dict.fromkeys(cell.task for cell in found):
        longest = COMPARED[task].context_lengths[1]
        for other, name in (("A", "corrections_over_none"), ("C", "corrections_over_demonstrations")):
            if {(task, "B"), (task, other)} <= groups.keys():
                ours, theirs = (pooled(found, task, arm, longest).rates["success"] for arm in ("B", other))
                made[f"{name}: {task}"] = 100 * (ours.share - theirs.share)
    collecting = [result for cell, result in found.items() if cell.arm == "B"]
    if collecting:
        made |= {
            f"actor_{share}": mean(result[share] for result in collecting if share in result)
            for share in ("busy", "limited", "ended")
            if any(share in result for result in collecting)
        }
    return made


def targets(found: Found) -> dict[str, str]:
    """Return the target of each ratio of `found` that has one."""
    names = {name: name.partition(":")[0] for name in ratios(found)}
    return {name: TARGETS[kind] for name, kind in names.items() if kind in TARGETS}


def plot(found: Found, file: Path) -> None:
    """Plot success with Wilson intervals over expert steps, all seeds together, a panel per task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(cell.task for cell in found))
    figure = Figure(figsize=(3.8 * len(tasks), 3.6), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for length, fill in zip(COMPARED[task].context_lengths, ("none", "full"), strict=True):
            for (name, arm), some in grouped(found).items():
                if name == task:
                    rate = pooled(found, task, arm, length).rates["success"]
                    ends = np.abs(np.array(rate.interval) - rate.share)[:, None]
                    steps = mean(map(expert_steps, some)) / 1000
                    style = {"color": COLORS[arm], "marker": "o", "fillstyle": fill, "capsize": 3}
                    axes.errorbar([steps], [rate.share], ends, label=f"{arm}, T_o {length}", **style)
        axes.set(title=task, xlabel="expert steps, in thousands", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")  # each task has context lengths of its own
    panels[0].set_ylabel("success")
    figure.savefig(file, dpi=130)


def table(found: Found) -> str:
    """Format success as Markdown, with Wilson intervals, all seeds together."""
    lines = [
        "| task | arm | seeds | expert steps | shortest T_o | completed | right of completed "
        "| longest T_o | completed | right of completed |",
        "|---|---|" + "---:|" * 8,
    ]
    for (task, arm), some in grouped(found).items():
        counts = [pooled(found, task, arm, length) for length in COMPARED[task].context_lengths]
        shown = []
        for count in counts:
            low, high = count.rates["success"].interval
            shown.append(f"{100 * count.rates['success'].share:.1f} % ({100 * low:.0f}-{100 * high:.0f})")
            shown += [f"{100 * count.rates[kind].share:.1f} %" for kind in ("completed", "contextual")]
        steps = f"{mean(map(expert_steps, some)):,.0f}"
        lines.append(f"| {' | '.join((task, f'{arm}: {ARMS[arm]}', str(len(some)), steps, *shown))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
