"""robosuite's NutAssemblySquare: a Panda arm puts a square nut around a peg. It needs no memory.

The arm has robosuite's default controller for it (OSC_POSE, deltas, base frame) and gripper, at 20 Hz. A
policy observes the state keys that robomimic calls low-dim. `object` has robosuite 1.5's order. Its pose of
the nut relative to the hand is the present one; robosuite's own is one step old.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ROBOT_STATE, ArmTask, RobosuiteEnv, Vector, reach
from longview.replay.episode import ArraySpec, TaskSpec

HANDLE = 0.06
"""Distance from the nut's middle, in metres, at which the expert grasps it."""
TOP, CARRY = 0.1, 0.14
"""Heights above the peg's middle, in metres: the end of the peg, and the nut while it is carried."""
ALIGNED, TURNED = 0.004, 0.1
"""Errors, in metres and radians, up to which the nut is lowered; twice as much once it is around the peg."""
POSE = ("SquareNut_pos", "SquareNut_quat")
RELATIVE = ("SquareNut_to_robot0_eef_pos", "SquareNut_to_robot0_eef_quat")
"""Names of robosuite's observables that make up `object`: first `RELATIVE`, which follows from `POSE`."""

spec = TaskSpec(
    name="square",
    observation={**ROBOT_STATE, "object": ArraySpec((14,), low=-2.0, high=2.0)},
    action=ArraySpec((7,), low=-1.0, high=1.0),
    control_hz=20.0,
    max_steps=400,
    context_lengths=(1, 2, 5, 10, 12, 16, 20),
    demonstrations=50,
)


class Square(RobosuiteEnv):
    """The simulator."""

    robosuite_name = "NutAssemblySquare"

    def samplers(self) -> Sequence[Any]:
        # The initializer draws nothing itself: it has a sampler for each nut.
        return list(self.simulator.placement_initializer.samplers.values())

    def state(self) -> dict[str, Vector]:
        sensed = self.sense((*ROBOT_STATE, "world_pose_in_gripper", *POSE, *RELATIVE))
        nut = np.concatenate([sensed[name] for name in (*RELATIVE, *POSE)])
        return {name: sensed[name] for name in ROBOT_STATE} | {"object": nut}


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it grasps the handle, lifts, turns, carries and lowers, by the present state alone."""
    scene = env.unwrapped
    assert isinstance(scene, Square)
    simulator = scene.simulator
    gripper, nut = simulator.robots[0].gripper["right"], simulator.nuts[0]

    def act() -> Action:
        body, peg = scene.data.body(nut.root_body), scene.data.body("peg1").xpos
        axes = body.xmat.reshape(3, 3)
        yaw = float(np.arctan2(axes[1, 0], axes[0, 0]))
        if simulator._check_grasp(gripper=gripper, object_geoms=nut):
            move, turn = _carry(body.xpos - peg, yaw)
            return scene.towards(move, scene.yaw + turn, 1.0)
        move, grip = reach(body.xpos + HANDLE * axes[:, 0] - scene.arm.hand, scene.width)
        # The handle can be held in two ways. Take the nearer one, and prefer an untwisted wrist.
        return scene.towards(move, yaw + np.pi * np.round((scene.yaw / 2 - yaw) / np.pi), grip)

    return act


def _carry(nut: Vector, yaw: float) -> tuple[Vector, float]:
    """Return how to move (3,) and turn the nut at `nut` (3,), relative to the peg's middle."""
    # The nut fits around the peg in four ways. With the handle away from the robot it would be out of reach.
    inward = yaw % (2 * np.pi) - np.pi
    turn = np.pi / 2 * np.clip(np.round(inward / (np.pi / 2)), -1, 1) - inward
    slack = 2 if nut[2] < TOP else 1
    if np.hypot(nut[0], nut[1]) < slack * ALIGNED and abs(turn) < slack * TURNED:
        return -nut, turn
    # Up, then across.
    raised = min(1.0, max(0.0, (nut[2] - TOP) / (CARRY - TOP)))
    return np.array((*(-raised * nut[:2]), CARRY - nut[2])), turn


task = ArmTask(spec, Square, expert)
make = task.make
