"""Measure how fast the simulators step, with and without cameras, and how much memory they take.

Speed is compared with unchanged robosuite, and with the physics alone.
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
TARGETS = {
    "state_over_stock": ">= 3",
    "rgb_over_stock": ">= 2.5",
    "memory_per_simulator": "<= 30",
    "memory_per_simulator_rgb": "<= 70",
}
OURS = ("lift", "grasp_and_return", "push_t", "return_point")

COUNT = 16
"""Simulators of the process whose memory is measured."""
MEMORY = """
import sys
from time import perf_counter
from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
from longview.actors.tasks.arm import import_robosuite

def simulator():
    env = task.make()
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    return env

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

task = load_task("lift", CamerasConfig(tuple(sys.argv[2:])))
import_robosuite()
started = perf_counter()
first = simulator()
one = held()
others = [simulator() for _ in range(int(sys.argv[1]) - 1)]
print(one, held(), perf_counter() - started)
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
        *memory_rows("", ()),
        *memory_rows("_rgb", CAMERAS),
    ]
    ratios = {
        "state_over_stock": ratio(state["longview"], state["robosuite"]),
        "state_over_physics": ratio(state["longview"], state["mj_step alone"]),
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


def memory_rows(suffix: str, cameras: tuple[str, ...]) -> list[Row]:
    """Return what the first and each further simulator of a process take, and the time to make all of them.

    Args:
        suffix: end of the measures' names.
        cameras: names of the cameras.
    """
    command = [sys.executable, "-c", MEMORY, str(COUNT), *cameras]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    one, all_of_them, taken = map(float, out.split())
    case = f"{len(cameras)} cameras" if cameras else "state"
    further = (all_of_them - one) / (COUNT - 1)
    return [
        Row(f"memory{suffix}", f"a process with one lift, {case}", "MB", [one / 1e6]),
        Row(f"memory_per_simulator{suffix}", f"a further lift, {case}", "MB", [further / 1e6]),
        Row(f"making{suffix}", f"{COUNT} simulators of lift, {case}", "s", [taken]),
    ]


if __name__ == "__main__":
    main()
