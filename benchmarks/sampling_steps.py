"""Compare numbers of sampling steps by a policy's success and by the time of a decision.

Without a trained policy, one is trained on return_point first. Every number of steps plays the same episodes
with the same noise, at the policy's longest context. A decision is for one robot.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import Row, finish, interleaved, machine, parser, ratio, results
from policies import Acting
from rich.progress import track
from training import demonstrated, evaluated, success, training

from longview.actors.task import Task
from longview.cluster.run.config import preset_file, read_config, task_of
from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import Policy, load_policy

TEN = 10
"""Sampling steps that all others are compared with."""
NOW = DiffusionConfig.sampling_steps
"""Sampling steps by default."""
TASK = "return_point"
"""Task of the policy that is trained where none is given."""
FEWEST, FIVE = (1, 2), 5
"""Sampling steps that five are compared with, too."""
TARGETS = {
    "decision_now_over_ten": "<= 0.6",
    "success_now_minus_ten": ">= -1",
    **{f"success_{steps}_minus_five": ">= -2" for steps in FEWEST},
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--policy", type=Path, metavar="FILE", help="a trained diffusion policy")
    options.add_argument("--episodes", type=int, help="by default 300, and 60 with --quick")
    options.add_argument(
        "--steps", type=numbers, default=(1, 2, 3, 5, 10), metavar="N,N,...", help="sampling steps to compare"
    )
    options.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the task's preset")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(chosen.policy) if chosen.policy else trained(600 if chosen.quick else None)
    if not isinstance(policy, DiffusionPolicy):
        options.error(f"{chosen.policy}: only a diffusion policy has sampling steps")
    name, episodes = policy.spec.name, chosen.episodes or (60 if chosen.quick else 300)
    task = task_of(read_config(preset_file(name), chosen.overrides, task=name))
    where = machine(policy=chosen.policy and str(chosen.policy), task=name, episodes=episodes)
    policies = {steps: sampling(policy, steps) for steps in sorted({*chosen.steps, NOW, FIVE, TEN})}
    times = decisions(policies, rounds=15 if chosen.quick else 60)
    rates = successes(policies, task, episodes)
    ratios = {
        "decision_now_over_ten": ratio(times[NOW], times[TEN]),
        "success_now_minus_ten": rates[NOW] - rates[TEN],
        **{f"success_{steps}_minus_five": rates[steps] - rates[FIVE] for steps in FEWEST if steps in rates},
    }
    case = f"{name}, T_o {policy.horizon.context}"
    finish(results(where, rows(times, rates, case), ratios), TARGETS, chosen.json)


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers that are separated by commas."""
    return tuple(int(number) for number in text.split(","))


def trained(steps: int | None) -> Policy:
    """Train a policy for `TASK` by its preset.

    Args:
        steps: training steps; None for those of the preset.
    """
    config = read_config(preset_file(TASK), [] if steps is None else [f"learner.steps={steps}"], task=TASK)
    task = task_of(config)
    with demonstrated(task, config.actors, task.spec.demonstrations, seed=0) as store:
        return training(task, store, config.learner, seed=0)


def sampling(policy: DiffusionPolicy, steps: int) -> DiffusionPolicy:
    """Copy a policy, to act with this number of sampling steps."""
    other = deepcopy(policy)
    other.config = replace(policy.config, sampling_steps=steps)
    return other


def decisions(policies: dict[int, DiffusionPolicy], rounds: int) -> dict[int, list[float]]:
    """Measure the milliseconds of a decision for one robot, by sampling steps."""
    sides = {
        str(steps): partial(Acting(policy, robots=1).decide, policy.horizon.context)
        for steps, policy in policies.items()
    }
    return {int(steps): times for steps, times in interleaved(sides, rounds).items()}


def successes(policies: dict[int, DiffusionPolicy], task: Task, episodes: int) -> dict[int, float]:
    """Measure success in percent, by sampling steps."""
    rates = {}
    for steps, policy in track(policies.items(), "evaluating", transient=True):
        (outcomes,) = evaluated(task, policy, [policy.horizon.context], episodes)
        rates[steps] = 100 * success(outcomes).share
    return rates


def rows(times: dict[int, list[float]], rates: dict[int, float], case: str) -> list[Row]:
    """Return the rows of the table, each measure by sampling steps."""
    made = []
    for measure, unit, samples in (
        ("success", "%", {steps: [rate] for steps, rate in rates.items()}),
        ("success_minus_ten", "points", {steps: [rate - rates[TEN]] for steps, rate in rates.items()}),
        ("decision", "ms", times),
        ("decision_over_ten", "", {
            steps: [one / ten for one, ten in zip(some, times[TEN], strict=True)]
            for steps, some in times.items()
        }),
    ):  # fmt: skip
        made += [Row(measure, f"{case}, {steps} steps", unit, some) for steps, some in samples.items()]
    return made


if __name__ == "__main__":
    main()
