"""Compare rules for what to learn from episodes that a policy and an expert share.

A policy learns from a few demonstrations. Then it acts, and the expert takes over where their plans differ
and hands back. Each rule chooses steps of these same episodes, and a new policy learns from them and the
demonstrations, for as many steps. Interventions and outcomes are the only signals that the rules use.

A cell is one training and its evaluation. A file keeps finished cells, one per line, and they are not
repeated.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Row, completed, finish, machine, parser, results
from numpy.typing import NDArray
from training import evaluated, success, training

from longview.actors.config import CollectConfig
from longview.actors.task import Task
from longview.actors.worker import Order, Worker
from longview.cluster.run.config import RunConfig, preset_file, read_config, task_of
from longview.cluster.run.services import redis_server
from longview.learner.policy import Policy
from longview.learner.session import PolicySession
from longview.monitoring.hub import Hub
from longview.monitoring.success import Rate
from longview.replay.config import StoreConfig
from longview.replay.episode import BY_EXPERT, BY_POLICY, CONTROLLER, Episode
from longview.replay.store import EpisodeStore

SHARED = CollectConfig(kind="takeover", gate="distance", distance=0.1, hand_back=True)
"""How policy and expert share an episode."""
BLAMED = 16
"""Steps before an intervention that led to it: two decisions."""
DEMONSTRATIONS, COLLECTED, EVALUATED = 5, 24, 200

Controllers = NDArray[np.uint8]
Rule = Callable[[Episode], Controllers | None]
"""Returns who counts as in control of each step (T,): a policy's steps are not learnt from. None leaves the
episode out."""


def as_recorded(episode: Episode) -> Controllers:
    """Learn from the expert's steps."""
    return np.asarray(episode.arrays[CONTROLLER])


def of_successes(rule: Rule, episode: Episode) -> Controllers | None:
    """Apply a rule to successes, and leave every other episode out."""
    return rule(episode) if episode.outcome == "success" else None


def whole(episode: Episode) -> Controllers:
    """Learn from every step."""
    return np.full(episode.length, BY_EXPERT, np.uint8)


def approved(episode: Episode) -> Controllers:
    """Learn from every step but the last `BLAMED` of the policy's before each intervention."""
    expert = as_recorded(episode) != BY_POLICY
    starts = np.flatnonzero(np.diff(expert.astype(int), prepend=0) == 1)
    step = np.arange(episode.length)
    blamed = ((step >= starts[:, None] - BLAMED) & (step < starts[:, None])).any(axis=0)
    return np.where(blamed & ~expert, BY_POLICY, BY_EXPERT).astype(np.uint8)


RULES: Mapping[str, tuple[str | None, Rule]] = {
    "demonstrations alone": (None, as_recorded),
    "the expert's steps": ("correction", as_recorded),
    "the expert's steps of successes": ("correction", partial(of_successes, as_recorded)),
    "all steps of successes": ("correction", partial(of_successes, whole)),
    "all steps but those before an intervention": ("correction", approved),
    "all steps": ("correction", whole),
    "the policy's own successes": ("rollout", partial(of_successes, whole)),
    "the policy's own episodes": ("rollout", whole),
}
"""Source of the episodes, and the rule. The last two need no expert."""


class Cell(NamedTuple):
    """One training and its evaluation."""

    task: str
    rule: str
    seed: int
    changes: str = ""
    """Changes of the task's preset."""


Found = dict[Cell, dict[str, Any]]
"""Results by finished cell: `outcomes` of the evaluation by context length, as text, and `steps` learnt from
in the collected episodes."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--task", default="return_point")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument(
        "--cells", type=Path, metavar="FILE", help="finished cells; by default outcomes.jsonl"
    )
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the cells")
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the task's preset")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    base = read_config(preset_file(options.task), settings(options), task=options.task)
    where = machine(task=options.task, steps=base.learner.steps)
    changes, episodes = " ".join(options.overrides), 20 if options.quick else EVALUATED
    shared = cache(lambda seed: share(task_of(base), base, seed))
    found = completed(
        options.cells or Path("outcomes-quick.jsonl" if options.quick else "outcomes.jsonl"),
        [Cell(options.task, rule, seed, changes) for seed in options.seeds for rule in RULES],
        lambda cell, _: run(cell, base, shared(cell.seed), episodes),
        lambda _, result: str(result["outcomes"]),
    )
    if options.table:
        options.table.write_text(table(found))
    finish(results(where, rows(found), {}), {}, options.json)


def settings(options: Namespace) -> list[str]:
    """Return the settings that the study changes in the task's preset."""
    quick = ["learner.steps=60", "learner.warmup=10"] if options.quick else ["learner.steps=1000"]
    return [f"actors.demonstrations={DEMONSTRATIONS}", *quick, *options.overrides]


def share(task: Task, base: RunConfig, seed: int) -> Mapping[str | None, list[Episode]]:
    """Collect what the cells of a seed learn from, by source: demonstrations, and episodes of a policy that
    has learnt from them, with an expert and without."""
    count, longest = base.demonstration_count(task.spec), task.spec.context_lengths[-1]
    demonstrations = collected(task, base, seed, Order("demo", 0, count), None)
    typical = float(np.mean([episode.length for episode in demonstrations]))
    first = learnt(task, base, seed, demonstrations)
    orders = [
        Order(source, 0, COLLECTED, longest, version=0, typical_steps=typical)
        for source in ("correction", "rollout")
    ]
    shared = {order.purpose: collected(task, base, seed, order, first) for order in orders}
    return {None: [], "demo": demonstrations, **shared}


def run(
    cell: Cell, base: RunConfig, shared: Mapping[str | None, list[Episode]], episodes: int
) -> dict[str, Any]:
    """Train and evaluate one cell, and return its results."""
    task, (source, rule) = task_of(base), RULES[cell.rule]
    grid = (task.spec.context_lengths[0], task.spec.context_lengths[-1])
    chosen = list(ruled(shared[source], rule))
    policy = learnt(task, base, cell.seed, [*shared["demo"], *chosen])
    outcomes = map(dict, evaluated(task, policy, grid, episodes))
    return {
        "steps": int(sum((as_recorded(episode) != BY_POLICY).sum() for episode in chosen)),
        "episodes": Counter(episode.outcome for episode in shared[source]),
        "outcomes": dict(zip(map(str, grid), outcomes, strict=True)),
    }


def ruled(episodes: Sequence[Episode], rule: Rule) -> Iterator[Episode]:
    """Yield the episodes that a rule learns from, as corrections."""
    for episode in episodes:
        if episode.outcome != "invalid" and (controllers := rule(episode)) is not None:
            meta = replace(episode.meta, source="correction")
            yield replace(episode, meta=meta, arrays={**episode.arrays, CONTROLLER: controllers})


def collected(task: Task, base: RunConfig, seed: int, order: Order, policy: Policy | None) -> list[Episode]:
    """Collect the episodes of an order."""
    with empty_store(task) as store:
        worker = Worker(task, base.actors, seed, "actor-0", store, Hub().report, SHARED)
        worker.work(order, policy and PolicySession(policy, base.actors.simulators))
        return [store.read(id) for id in store.ids()]


def learnt(task: Task, base: RunConfig, seed: int, episodes: Sequence[Episode]) -> Policy:
    """Train a policy on episodes."""
    with empty_store(task) as store:
        for episode in episodes:
            store.add(episode)
        return training(task, store, base.learner, seed)


@contextmanager
def empty_store(task: Task) -> Iterator[EpisodeStore]:
    """Provide a store that knows the task."""
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        store = EpisodeStore.connect(url, task.spec.name, StoreConfig())
        store.register(task.spec)
        yield store
        store.close()


def by_rule(found: Found) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each rule with its results, one for each seed."""
    for rule in dict.fromkeys(cell.rule for cell in found):
        yield rule, [result for cell, result in found.items() if cell.rule == rule]


def rows(found: Found) -> list[Row]:
    """Return rows of success by rule and context length, one sample per seed."""
    made = []
    for rule, some in by_rule(found):
        for length in some[0]["outcomes"]:
            shares = [100 * success(result["outcomes"][length]).share for result in some]
            made.append(Row("success", f"{rule}, T_o {length}", "%", shares))
    return made


def table(found: Found) -> str:
    """Format success as Markdown, with Wilson intervals, all seeds together."""
    lengths = list(next(iter(found.values()))["outcomes"])
    lines = [
        f"| learnt from | steps | {' | '.join(f'T_o {length}' for length in lengths)} | in each seed |",
        f"|---|{'---:|' * (len(lengths) + 2)}",
    ]
    for rule, some in by_rule(found):
        shown = []
        for length in lengths:
            every = [success(result["outcomes"][length]) for result in some]
            rate = Rate(sum(r.count for r in every), sum(r.of for r in every))
            low, high = rate.interval
            shown.append(f"{100 * rate.share:.1f} % ({100 * low:.0f}-{100 * high:.0f})")
        each = ", ".join(f"{100 * success(result['outcomes'][lengths[-1]]).share:.0f}" for result in some)
        steps = sum(result["steps"] for result in some) / len(some)
        lines.append(f"| {rule} | {steps:,.0f} | {' | '.join(shown)} | {each} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
