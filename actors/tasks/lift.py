"""robosuite's Lift: a Panda arm lifts a cube from a table. Needs no memory; everything that matters is seen.

Panda with robosuite's default controller for it (OSC_POSE, deltas, base frame) and gripper, 20 Hz; observed
are the state keys that robomimic calls low-dim. Nothing is rendered.
"""

import logging
import os
from importlib import import_module
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from actors.task import Action, Environment, Expert, Observation, action_space, observation_space
from replay.episode import ArraySpec, TaskSpec

METRES, RADIANS = 0.05, 0.5
"""What the controller makes of a full action, per step, if the arm could follow at once."""
GAIN = 2.0
"""The expert asks for this multiple of what is missing: the arm covers about a fifth of it in a step."""
NEAR = 0.012
"""From this close to the cube's centre, in metres, the expert closes the gripper."""
HOVER = 0.08
"""Height above the cube, in metres, at which the expert approaches it from the side."""
OPEN = 0.07
"""Distance of the fingers, in metres, above which the gripper counts as open."""

spec = TaskSpec(
    name="lift",
    observation={
        "robot0_eef_pos": ArraySpec((3,), low=-2.0, high=2.0),
        "robot0_eef_quat": ArraySpec((4,), low=-1.0, high=1.0),
        "robot0_gripper_qpos": ArraySpec((2,), low=-0.1, high=0.1),
        "object": ArraySpec((10,), low=-2.0, high=2.0),
    },
    action=ArraySpec((7,), low=-1.0, high=1.0),
    control_hz=20.0,
    max_steps=120,
    context_lengths=(1, 2, 8, 16),
    demonstrations=50,
)

Vector = NDArray[np.float64]


class Lift(gymnasium.Env[Observation, Action]):
    """The environment; actions are displacement (3), rotation vector (3) and gripper (open < 0 < close)."""

    observation_space = observation_space(spec)
    action_space = action_space(spec)

    def __init__(self) -> None:
        self.simulator = _simulator()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        # Start joints are drawn from the one, the cube's pose from the other.
        self.simulator.rng = self.simulator.placement_initializer.rng = self.np_random
        self._step = 0
        return _observe(self.simulator.reset()), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not np.isfinite(action).all():
            raise ValueError(f"action must be finite, not {action}")
        observed = self.simulator.step(action)[0]
        lifted = bool(self.simulator._check_success())
        self._step += 1
        late = self._step >= spec.max_steps and not lifted
        info = {"outcome": "success" if lifted else "failure"} if lifted or late else {}
        return _observe(observed), float(lifted), lifted, late, info

    def close(self) -> None:
        self.simulator.close()


def make() -> Environment:
    """A new simulator.

    Raises:
        ImportError: robosuite, or the system library that it needs, is not installed.
    """
    return Lift()


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Reaches above the cube, descends, grasps and lifts; each follows from the simulator's state alone."""
    lift = env.unwrapped
    assert isinstance(lift, Lift)
    simulator = lift.simulator
    gripper = simulator.robots[0].gripper["right"]
    site = simulator.sim.model.site_name2id(gripper.important_sites["grip_site"])

    def act() -> Action:
        data = simulator.sim.data
        width = float(data.get_joint_qpos(gripper.joints[0]) - data.get_joint_qpos(gripper.joints[1]))
        hand, axes = data.site_xpos[site], data.site_xmat[site].reshape(3, 3)
        cube = data.body_xpos[simulator.cube_body_id]
        cube_axes = data.body_xmat[simulator.cube_body_id].reshape(3, 3)
        grasped = simulator._check_grasp(gripper=gripper, object_geoms=simulator.cube)
        return _action(hand, axes, cube, cube_axes, width, grasped)

    return act


def _action(
    hand: Vector, axes: Vector, cube: Vector, cube_axes: Vector, width: float, grasped: bool
) -> Action:
    """What to do with the hand at `hand` (3,), oriented as `axes` (3, 3; columns), about the cube."""
    offset = cube - hand
    aside = float(np.hypot(offset[0], offset[1]))
    # Once it closes it goes on within a wider range: the width of the gripper is all the memory it needs.
    near = max(aside, abs(offset[2])) < (NEAR if width > OPEN else 2 * NEAR)
    if grasped:
        offset = np.array((0.0, 0.0, HOVER))
    elif not near:
        offset[2] += min(max(0.0, 3 * (aside - NEAR / 2)), HOVER)
    turn = 0.5 * np.cross(axes, _upright(cube_axes), axis=0).sum(axis=1)
    moves = GAIN * np.concatenate((offset / METRES, turn / RADIANS))
    return np.clip((*moves, 1.0 if near or grasped else -1.0), -1.0, 1.0).astype(np.float32)


def _upright(cube_axes: Vector) -> Vector:
    """Orientation (3, 3) of a hand that points down, fingers along the cube's faces, turned the least."""
    yaw = np.arctan2(cube_axes[1, 0], cube_axes[0, 0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    sine, cosine = np.sin(yaw), np.cos(yaw)
    return np.array(((-sine, cosine, 0.0), (cosine, sine, 0.0), (0.0, 0.0, -1.0)))


def _observe(observed: dict[str, Vector]) -> Observation:
    theirs = observed | {"object": observed["object-state"]}
    return {key: theirs[key].astype(np.float32) for key in spec.observation}


def _simulator() -> Any:
    return _robosuite().make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        renderer="mujoco",
        control_freq=spec.control_hz,
        ignore_done=True,
        hard_reset=False,
        # The cube's size is drawn only here: the same in all simulators, or equal seeds would differ.
        seed=0,
    )


def _robosuite() -> ModuleType:
    # On import it warns of extras that we do not use, and sets MUJOCO_GL, with which processes started from
    # this one could not import mujoco where there is no EGL.
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    renderer = os.environ.get("MUJOCO_GL")
    try:
        return import_module("robosuite")
    except ImportError as error:
        if "libGL" not in str(error):
            raise
        hint = f"task lift: robosuite cannot be imported ({error}); install the system package libgl1"
        raise ImportError(hint) from error
    finally:
        if renderer is None:
            os.environ.pop("MUJOCO_GL", None)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
