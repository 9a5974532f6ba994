"""Measure success over context length: policies trained at one T_o each, and one policy trained at many.

A cell is one training and its evaluation. A file keeps finished cells, one per line, and they are not
repeated. An interrupted study continues where it stopped, and processes with different seeds share the work.
"""

import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Row, finish, finished, machine, parser, results
from rich.console import Console

from longview.actors.config import ActorsConfig
from longview.actors.task import Task
from longview.actors.worker import Order, Worker
from longview.cluster.run.config import RunConfig, preset_file, read_config, task_of
from longview.cluster.run.services import redis_server
from longview.learner.config import LearnerConfig, policy_config
from longview.learner.laps import TrainingProgress
from longview.learner.normalize import measure
from longview.learner.policy import Policy
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.monitoring.hub import Hub
from longview.monitoring.success import Rate
from longview.replay.config import StoreConfig
from longview.replay.episode import Episode
from longview.replay.store import EpisodeStore

GRIDS = {"return_point": (1, 8, 32, 48, 64), "grasp_and_return": (4, 16, 24, 48)}
"""Context lengths that are compared, by task."""
SETTINGS = {
    "return_point": ("actors.demonstrations=25", "learner.steps=1500", "learner.batch_size=128"),
    # The preset trains an MLP, which has no widths.
    "grasp_and_return": ("learner.policy.architecture=unet_cross", "learner.policy.widths=[64]"),
}
CURRICULA = ("progressive", "sprinkle", "fixed")
"""The first two train one policy at many lengths, with as many steps as `fixed` trains at one."""
SIMULATORS, EVALUATED = 25, 200
TARGETS = {"joint_over_specialists": "<= 0.35", "joint_minus_specialists": ">= -5"}


class Cell(NamedTuple):
    """One training and its evaluation."""

    task: str
    architecture: str
    demonstrations: int
    curriculum: str
    context_length: int
    """Longest T_o that it trains at; with `fixed` the only one."""
    seed: int


Found = dict[Cell, dict[str, Any]]
"""Results by finished cell: `seconds` and `outcomes`.

`seconds` is the processor time of training, which other processes hardly change. `outcomes` counts episodes
by context length (as text, a JSON key) and outcome.
"""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--task", choices=list(GRIDS), default="return_point")
    arguments.add_argument("--architectures", nargs="+", default=["unet_cross", "unet_film", "dit"])
    arguments.add_argument("--curricula", nargs="+", choices=CURRICULA, default=CURRICULA)
    arguments.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], help="multiples of the task's demonstrations"
    )
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--cells", type=Path, default=Path("context_lengths.jsonl"), metavar="FILE")
    arguments.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of the cells")
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the cells")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    base = read_config(preset_file(options.task), settings(options), task=options.task)
    where = machine(task=options.task, steps=base.learner.steps, batch_size=base.learner.batch_size)
    cells = list(planned(options, base))
    done = finished(options.cells, Cell)
    console = Console()
    for number, cell in enumerate(cells, start=1):
        if cell not in done:
            console.print(f"{number} of {len(cells)}: {cell}", highlight=False)
            done[cell] = run(cell, base, 20 if options.quick else EVALUATED)
            with options.cells.open("a") as file:
                file.write(json.dumps({"cell": cell, **done[cell]}) + "\n")
    found = {cell: done[cell] for cell in cells}
    if options.plot:
        plot(found, options.plot)
    if options.table:
        options.table.write_text(table(found))
    finish(results(where, rows(found), ratios(found)), TARGETS, options.json)


def settings(options: Namespace) -> list[str]:
    """Return the settings that the study changes in the task's preset."""
    quick = ["learner.steps=60", "learner.warmup=10"] if options.quick else []
    return [*SETTINGS[options.task], *quick, *options.overrides]


def planned(options: Namespace, base: RunConfig) -> Iterator[Cell]:
    """Yield the cells seed by seed, so that the first complete table comes early."""
    grid = GRIDS[options.task][:: 2 if options.quick else 1]
    count = base.demonstration_count(task_of(base).spec)
    for seed, scale, architecture in product(options.seeds, options.scales, options.architectures):
        cell = partial(Cell, options.task, architecture, round(scale * count))
        for kind in options.curricula:
            for length in grid if kind == "fixed" else grid[-1:]:
                yield cell(kind, length, seed)


def run(cell: Cell, base: RunConfig, episodes: int) -> dict[str, Any]:
    """Train and evaluate one cell."""
    policy = policy_config(
        base.learner.policy, architecture=cell.architecture, context_length=cell.context_length
    )
    curriculum = replace(base.learner.curriculum, kind=cell.curriculum)
    config = replace(base.learner, policy=policy, curriculum=curriculum)
    task = task_of(base)
    with demonstrated(task, base.actors, cell.demonstrations, cell.seed) as store:
        started = time.process_time()
        trained = training(task, store, config, cell.seed)
        seconds = time.process_time() - started
    grid = (cell.context_length,) if cell.curriculum == "fixed" else GRIDS[cell.task]
    return {
        "seconds": seconds,
        "outcomes": dict(zip(map(str, grid), evaluated(task, trained, grid, episodes), strict=True)),
    }


@contextmanager
def demonstrated(task: Task, actors: ActorsConfig, episodes: int, seed: int) -> Iterator[EpisodeStore]:
    """Provide a store with new demonstrations, collected with this seed."""
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        store = EpisodeStore.connect(url, task.spec.name, StoreConfig())
        store.register(task.spec)
        worker = Worker(task, actors, seed, "actor-0", store, Hub().report)
        worker.work(Order("demo", 0, episodes), None)
        yield store


def training(
    task: Task,
    store: EpisodeStore,
    config: LearnerConfig,
    seed: int,
    report: Callable[[TrainingProgress], None] = lambda _: None,
    validation: Sequence[Episode] = (),
) -> Policy:
    """Train on a store's demonstrations, as a learner rank does."""
    with TemporaryDirectory() as checkpoints:
        return train(
            config,
            task.spec,
            seed=seed,
            draw=lambda step, before, after, count: store.sample(
                config.mix, count, before, after, np.random.default_rng((seed, 0, step))
            ),
            statistics=lambda: measure(map(store.read, store.ids("demo")), task.spec),
            publish=lambda version, weights: None,
            report=report,
            validation=validation,
            should_stop=lambda: False,
            checkpoints=Path(checkpoints),
        )


def evaluated(
    task: Task, policy: Policy, lengths: Sequence[int], episodes: int
) -> Iterator[Mapping[str, int]]:
    """Evaluate a policy at each context length, on the same episodes, and yield the outcomes of each."""
    actors = ActorsConfig(simulators=SIMULATORS)
    worker = Worker(task, actors, 0, "actor-0", None, Hub().report)
    for length in lengths:
        order = Order("evaluation", 0, episodes, length, version=0)
        yield worker.work(order, PolicySession(policy, SIMULATORS)).outcomes


def rows(found: Found) -> list[Row]:
    """Return rows of success, of training time, and of a joint training's gain; one sample per seed."""
    made = []
    for group, cells in by_seed(found).items():
        entries = [found[cell] for cell in cells]
        name = f"{group.architecture}, N {group.demonstrations}, {group.curriculum}"
        made.append(Row("training", f"{name} {group.context_length}", "s", [e["seconds"] for e in entries]))
        for length in entries[0]["outcomes"]:
            samples = [100 * success(entry["outcomes"][length]).share for entry in entries]
            made.append(Row("success", f"{name}, T_o {length}", "%", samples))
        if group.curriculum != "fixed" and specialists(found, cells[0]):
            worst = min(np.mean([ahead(found, cell) for cell in cells], axis=0))
            made.append(Row("joint_minus_specialists", f"{name}, its worst T_o", "points", [100 * worst]))
    return made


def ratios(found: Found) -> dict[str, float]:
    """Return the time of one joint training over the time of all single-length ones, averaged over seeds."""
    shares = [
        entry["seconds"] / sum(found[other]["seconds"] for other in specialists(found, cell))
        for cell, entry in found.items()
        if (cell.architecture, cell.curriculum) == ("unet_cross", "progressive") and specialists(found, cell)
    ]
    return {"joint_over_specialists": mean(shares)} if shares else {}


def by_seed(found: Found) -> dict[Cell, list[Cell]]:
    """Group the cells that differ only in their seed."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in found:
        groups.setdefault(cell._replace(seed=0), []).append(cell)
    return groups


def specialists(found: Found, joint: Cell) -> list[Cell]:
    """Return the single-length trainings that a joint training is compared with."""
    alike = [cell for cell in found if cell.curriculum == "fixed"]
    return [cell for cell in alike if joint._replace(curriculum=cell[3], context_length=cell[4]) == cell]


def ahead(found: Found, joint: Cell) -> list[float]:
    """Return how much a joint training's success exceeds that of each single-length training."""
    return [
        success(found[joint]["outcomes"][length]).share - success(outcomes).share
        for cell in specialists(found, joint)
        for length, outcomes in found[cell]["outcomes"].items()
    ]


def success(outcomes: Mapping[str, int]) -> Rate:
    """Return successes as a share of all episodes."""
    return Rate(outcomes.get("success", 0), sum(outcomes.values()))


def plot(found: Found, file: Path) -> None:
    """Plot success with Wilson intervals over context length, all seeds together, by architecture."""
    from matplotlib.figure import Figure

    architectures = list(dict.fromkeys(cell.architecture for cell in found))
    figure = Figure(figsize=(4 * len(architectures), 3.6), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(architectures), sharey=True, squeeze=False)[0]
    lengths = sorted({length for entry in found.values() for length in entry["outcomes"]}, key=int)
    for axes, architecture in zip(panels, architectures, strict=True):
        for shift, kind in zip((-0.08, 0.0, 0.08), ("fixed", "progressive", "sprinkle"), strict=True):
            some = [entry for cell, entry in found.items() if cell[1] == architecture and cell[3] == kind]
            series = [pooled(some, length) for length in lengths]
            share = np.array([rate.share for rate in series])
            ends = np.array([rate.interval for rate in series]).T
            places = np.arange(len(lengths)) + shift
            axes.errorbar(places, share, abs(ends - share), label=kind, marker="o", capsize=3)
        axes.set(title=architecture, xlabel="context length T_o", ylim=(0, 1.02))
        axes.set_xticks(range(len(lengths)), lengths)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("success")
    panels[-1].legend(loc="lower right")
    figure.savefig(file, dpi=130)


def table(found: Found) -> str:
    """Format success by context length as Markdown, with Wilson intervals, all seeds together."""
    lengths = sorted({length for entry in found.values() for length in entry["outcomes"]}, key=int)
    lines = [
        f"| | {' | '.join(f'T_o {length}' for length in lengths)} | training, processor time |",
        f"|---|{'---:|' * (len(lengths) + 1)}",
    ]
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in found:
        groups.setdefault((cell.architecture, cell.demonstrations, cell.curriculum), []).append(cell)
    for (architecture, demonstrations, kind), cells in groups.items():
        entries = [found[cell] for cell in cells]
        rates = [pooled(entries, length) for length in lengths]
        shown = [
            f"{100 * rate.share:.1f} % ({100 * low:.0f}-{100 * high:.0f})"
            for rate in rates
            for low, high in [rate.interval]
        ]
        seconds = sum(entry["seconds"] for entry in entries) / len({cell.seed for cell in cells})
        name = (
            f"{architecture}, N {demonstrations}, {'a policy for each' if kind == 'fixed' else f'`{kind}`'}"
        )
        together = " together" if kind == "fixed" else ""
        lines.append(f"| {name} | {' | '.join(shown)} | {seconds:.0f} s{together} |")
    return "\n".join(lines) + "\n"


def pooled(entries: Sequence[dict[str, Any]], length: str) -> Rate:
    """Return the success of all entries' episodes together at one context length."""
    counts = sum((Counter(entry["outcomes"].get(length)) for entry in entries), Counter[str]())
    return success(counts)


if __name__ == "__main__":
    main()
