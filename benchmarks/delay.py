"""Measure success and jerk of a robot that moves on while its decisions are made.

A decision comes into force 0, 2 or 4 steps after the frame that it was made from. Until then the robot
executes what was decided before. Two policies of each task learn from the same demonstrations:

    plain       knows nothing of the actions under way; the first of its own are dropped (plain switching)
    continued   trained with `max_delay=4`: it continues the actions under way

Each acts at the task's longest T_o, on the same episodes at every delay. Jerk is the third difference of the
hand's position over time: the root of its mean square over the steps of all episodes, in m/s^3. The expert's
own jerk is there to compare.

A cell is one policy at one delay. A file keeps finished cells, one per line, and they are not repeated.
Trained policies are kept in a folder.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from common import Row, completed, finish, machine, parser, ratio, results
from numpy.typing import NDArray
from training import demonstrated, success, training

from longview.actors.config import ActorsConfig
from longview.actors.environment import SimulatedTask
from longview.actors.task import Action, Observation
from longview.actors.worker import Order, Worker
from longview.cluster.run.config import RunConfig, preset_file, read_config, task_of
from longview.learner.policy import Policy, load_policy, policy_to_bytes
from longview.learner.session import PolicySession
from longview.monitoring.hub import Hub
from longview.monitoring.success import Rate

HANDS = {"lift": "robot0_eef_pos", "grasp_and_return": "hand_pos"}
"""Observation with the hand's position in metres, by task."""
DELAYS = (0, 2, 4)
"""Steps from the frame of a decision until it comes into force."""
POLICIES: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "continued": (f"learner.policy.max_delay={max(DELAYS)}",),
}
"""Settings of each policy, beyond those of the task's preset."""
SETTINGS = ("learner.policy.execute=8", "learner.validation_episodes=0")
"""Settings of both policies. A delay of four steps needs decisions for eight; the preset of lift has four."""
SHORT = (
    *("actors.demonstrations=5", "actors.simulators=4"),
    *("learner.steps=60", "learner.publish_every=60", "learner.warmup=10"),
)
"""Settings with `--quick`."""


class Cell(NamedTuple):
    """One policy at one delay, or the expert, whose seed and delay are 0."""

    task: str
    policy: str
    seed: int
    delay: int


Found = dict[Cell, dict[str, Any]]
"""Results by finished cell."""


class Tracked(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """Simulator that adds the hand's positions (steps + 1, 3) of each episode to a list."""

    def __init__(self, env: Any, key: str, tracks: list[list[NDArray[np.float32]]]) -> None:
        super().__init__(env)
        self.key, self.tracks = key, tracks

    def reset(self, **kwargs: Any) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.tracks.append([np.array(observation[self.key])])
        self.track = self.tracks[-1]
        return observation, info

    def step(self, action: Action) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        stepped = self.env.step(action)
        self.track.append(np.array(stepped[0][self.key]))
        return stepped


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tasks", nargs="+", choices=list(HANDS), default=list(HANDS))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--episodes", type=int, default=200, help="episodes of each cell")
    arguments.add_argument(
        "--cells", type=Path, metavar="FILE", help="finished cells; by default delay.jsonl"
    )
    arguments.add_argument("--policies", type=Path, default=Path("runs/delay"), help="folder of the policies")
    arguments.add_argument("--table", type=Path, metavar="FILE", help="a Markdown table of the cells")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_args()
    if options.quick:
        options.seeds, options.episodes, options.overrides = [0], 4, [*SHORT, *options.overrides]
        options.policies = options.policies.with_name(f"{options.policies.name}-quick")
    torch.set_num_threads(1)
    cells = options.cells or Path("delay-quick.jsonl" if options.quick else "delay.jsonl")
    where = machine(quick=options.quick, episodes=options.episodes)
    found = completed(
        cells, list(plan(options)), lambda cell, _: run(cell, options), lambda _, result: told(result)
    )
    if options.table:
        options.table.write_text(table(found))
    finish(results(where, rows(found), ratios(found)), {}, options.json)


def plan(options: Namespace) -> Iterator[Cell]:
    """Yield the cells, task by task: the expert, then both policies of each seed at every delay."""
    for task in options.tasks:
        yield Cell(task, "expert", 0, 0)
        for seed in options.seeds:
            yield from (Cell(task, policy, seed, delay) for policy in POLICIES for delay in DELAYS)


def config_of(task: str, policy: str, options: Namespace) -> RunConfig:
    """Return the config of a policy's training."""
    settings = [*SETTINGS, *POLICIES.get(policy, ()), *options.overrides]
    return read_config(preset_file(task), settings, task=task)


def run(cell: Cell, options: Namespace) -> dict[str, Any]:
    """Let the policy of one cell act, and return its outcomes and its jerk."""
    worker, tracks = actor(cell.task, 4 if options.quick else 25)
    tracks.clear()
    if cell.policy == "expert":
        outcomes = worker.work(Order("evaluation", 0, options.episodes), None).outcomes
    else:
        policy = trained(cell, options)
        order = Order("evaluation", 0, options.episodes, policy.horizon.context, version=0, delay=cell.delay)
        outcomes = worker.work(order, PolicySession(policy, len(worker.envs))).outcomes
    return {"outcomes": outcomes, "jerk": jerk(tracks, worker.task.spec.control_hz)}


@cache
def actor(task: str, simulators: int) -> tuple[Worker, list[list[NDArray[np.float32]]]]:
    """Make an actor of a task, and the list of its hands' tracks."""
    plain, tracks = task_of(read_config(preset_file(task), task=task)), list[list[NDArray[np.float32]]]()
    tracked = SimulatedTask(
        plain.spec,
        lambda spec, render_mode: Tracked(plain.make(render_mode), HANDS[task], tracks),
        plain.expert,
    )
    return Worker(tracked, ActorsConfig(simulators=simulators), 0, "actor-0", None, Hub().report), tracks


def trained(cell: Cell, options: Namespace) -> Policy:
    """Return the policy of a cell; train it if the folder does not hold it yet."""
    file = options.policies / f"{cell.task}-{cell.policy}-{cell.seed}.safetensors"
    if not file.exists():
        config = config_of(cell.task, cell.policy, options)
        task = task_of(config)
        episodes = config.demonstration_count(task.spec)
        with demonstrated(task, config.actors, episodes, cell.seed) as store:
            policy = training(task, store, config.learner, cell.seed)
        options.policies.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_bytes(policy_to_bytes(policy))
        unfinished.rename(file)
    return load_policy(file)


def jerk(tracks: list[list[NDArray[np.float32]]], hz: float) -> float:
    """Return the root mean square of the jerk of all tracks, in m/s^3."""
    jerks = [np.diff(np.array(track, np.float64), n=3, axis=0) * hz**3 for track in tracks]
    return float(np.sqrt(np.square(np.concatenate(jerks)).sum(axis=1).mean()))


def told(result: Mapping[str, Any]) -> str:
    """Describe a cell's result in one line."""
    return f"success {100 * success(result['outcomes']).share:.1f} %, jerk {result['jerk']:.1f} m/s^3"


def grouped(found: Found) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Group results by task, policy and delay: one result per seed."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell, result in found.items():
        groups.setdefault((cell.task, cell.policy, cell.delay), []).append(result)
    return groups


def rows(found: Found) -> list[Row]:
    """Return rows of success and jerk, one sample per seed."""
    made = []
    for (task, policy, delay), some in grouped(found).items():
        case = f"{task}, {policy}, delay {delay}"
        made.append(Row("success", case, "%", [100 * success(each["outcomes"]).share for each in some]))
        made.append(Row("jerk", case, "m/s^3", [each["jerk"] for each in some]))
    return made


def ratios(found: Found) -> dict[str, float]:
    """Return the jerk of the policy that continues over that of plain switching, by task and delay."""
    groups = grouped(found)
    return {
        f"jerk_{task}_{delay}": ratio(
            [each["jerk"] for each in some], [each["jerk"] for each in groups[task, "plain", delay]]
        )
        for (task, policy, delay), some in groups.items()
        if policy == "continued"
    }


def table(found: Found) -> str:
    """Format success with Wilson intervals, all seeds together, and the mean jerk as Markdown."""
    lines = ["| task | policy | delay | seeds | success | jerk, m/s³ |", "|---|---|" + "---:|" * 4]
    for (task, policy, delay), some in grouped(found).items():
        rates = [success(each["outcomes"]) for each in some]
        rate = Rate(sum(each.count for each in rates), sum(each.of for each in rates))
        low, high = rate.interval
        share = f"{100 * rate.share:.1f} % ({100 * low:.0f}-{100 * high:.0f})"
        mean = float(np.mean([each["jerk"] for each in some]))
        lines.append(f"| {task} | {policy} | {delay} | {len(some)} | {share} | {mean:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
