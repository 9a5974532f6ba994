"""Measure how fast the simulators step, with and without cameras.

The same is measured of unchanged robosuite, and of the physics alone.
"""

import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import mujoco
import numpy as np
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds

from longview.actors.config import CamerasConfig
from longview.actors.task import Environment, load_task
from longview.actors.tasks.arm import import_robosuite, settings

CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZE = 84
TARGETS = {"state_over_stock": ">= 3", "rgb_over_stock": ">= 2.5"}
OURS = ("lift", "grasp_and_return", "push_t", "return_point")

MEMORY = """
import sys
from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
env = load_task("lift", CamerasConfig(tuple(sys.argv[1:]))).make()
env.reset(seed=0)
for _ in range(5):
    env.step(env.action_space.sample())
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmRSS")))
"""


def main() -> None:
    options = arguments(__doc__ or "")
    where = machine(quick=options.quick)
    rounds, steps, frames = (3, 100, 10) if options.quick else (9, 300, 40)
    state = interleaved(state_sides(steps), rounds)
    rgb = interleaved(rgb_sides(frames), rounds)
    tasks = interleaved({name: stepping(load_task(name).make(), steps) for name in OURS}, rounds)
    rows = [
        *(Row("state_steps", f"lift, {side}", "steps/s", rates) for side, rates in state.items()),
        *(Row("rgb_steps", f"lift, 2 x {SIZE} x {SIZE}, {side}", "steps/s", r) for side, r in rgb.items()),
        *(Row("task_steps", name, "steps/s", rates) for name, rates in tasks.items()),
        Row("memory", "a process with one lift, state", "MiB", [memory(())]),
        Row("memory", f"a process with one lift, {len(CAMERAS)} cameras", "MiB", [memory(CAMERAS)]),
    ]
    ratios = {
        "state_over_stock": ratio(state["longview"], state["robosuite"]),
        "rgb_over_stock": ratio(rgb["longview, fast"], rgb["robosuite"]),
    }
    finish(results(where, rows, ratios), TARGETS, options.json)


def state_sides(steps: int) -> dict[str, Callable[[], float]]:
    """Return the sides of the comparison from state: robosuite's Lift, Longview's, and the physics alone."""
    return {
        "robosuite": stock_stepping({}, steps),
        "longview": stepping(load_task("lift").make(), steps),
        "mj_step alone": physics(steps),
    }


def rgb_sides(steps: int) -> dict[str, Callable[[], float]]:
    """Return the sides of the comparison with cameras: robosuite's Lift, and Longview's in both qualities."""
    cameras = {
        "has_offscreen_renderer": True,
        "use_camera_obs": True,
        "camera_names": list(CAMERAS),
        "camera_heights": SIZE,
        "camera_widths": SIZE,
    }
    ours = {
        f"longview, {quality}": stepping(
            load_task("lift", CamerasConfig(CAMERAS, SIZE, quality)).make(), steps
        )
        for quality in ("fast", "full")
    }
    return {"robosuite": stock_stepping(cameras, steps), **ours}


def stock_stepping(changes: dict[str, Any], steps: int) -> Callable[[], float]:
    """Return a function that measures the steps per second of robosuite's own Lift."""
    stock = import_robosuite().make("Lift", **(settings(load_task("lift").spec) | changes))

    def rate() -> float:
        stock.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (steps, 7))
        return steps / seconds(lambda: [stock.step(action) for action in actions])

    return rate


def stepping(env: Environment, steps: int) -> Callable[[], float]:
    """Return a function that measures an environment's steps per second under random actions.

    Resets of episodes that end are not timed.
    """

    def rate() -> float:
        env.reset(seed=0)
        env.action_space.seed(0)
        actions, taken = [env.action_space.sample() for _ in range(steps)], 0.0
        for action in actions:
            started = perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            taken += perf_counter() - started
            if terminated or truncated:
                env.reset()
        return steps / taken

    return rate


def physics(steps: int) -> Callable[[], float]:
    """Return a function that measures control steps per second of the physics alone, the upper limit."""
    env: Any = load_task("lift").make()
    env.reset(seed=0)
    model, data = env.model, env.data
    substeps = round(1 / env.task_spec.control_hz / model.opt.timestep)

    def rate() -> float:
        return steps / seconds(lambda: mujoco.mj_step(model, data, nstep=steps * substeps))

    return rate


def memory(cameras: tuple[str, ...]) -> float:
    """Return the MiB that a process with one simulator holds."""
    out = subprocess.run([sys.executable, "-c", MEMORY, *cameras], check=True, capture_output=True, text=True)
    return int(out.stdout) / 1024


if __name__ == "__main__":
    main()
