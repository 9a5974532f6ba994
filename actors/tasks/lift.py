"""robosuite's Lift: a Panda arm lifts a cube from a table. Needs no memory; everything that matters is seen.

Panda with robosuite's default controller for it (OSC_POSE, deltas, base frame) and gripper, 20 Hz; observed
are the state keys that robomimic calls low-dim.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from actors.task import Action, Environment, Expert
from actors.tasks.arm import ROBOT_STATE, ArmEnv, ArmTask, Vector, settings
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
CUBE = ("cube_pos", "cube_quat", "gripper_to_cube_pos")
"""robosuite's observables that make up `object`."""

spec = TaskSpec(
    name="lift",
    observation={**ROBOT_STATE, "object": ArraySpec((10,), low=-2.0, high=2.0)},
    action=ArraySpec((7,), low=-1.0, high=1.0),
    control_hz=20.0,
    max_steps=120,
    context_lengths=(1, 2, 8, 16),
    demonstrations=50,
)


class Lift(ArmEnv):
    """The environment; actions are displacement (3), rotation vector (3) and gripper (open < 0 < close)."""

    def build(self, robosuite: ModuleType) -> Any:
        return robosuite.make("Lift", **settings(self.task.spec))

    def samplers(self) -> Sequence[Any]:
        return [self.simulator.placement_initializer]

    def act(self, action: Vector) -> None:
        self.arm.step(action[:3], action[3:6], action[6])

    def state(self) -> dict[str, Vector]:
        sensed = self.sense((*ROBOT_STATE, *CUBE))
        return sensed | {"object": np.concatenate([sensed.pop(name) for name in CUBE])}

    def outcome(self) -> str | None:
        return "success" if self.simulator._check_success() else None


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


task = ArmTask(spec, Lift, expert)
make = task.make
