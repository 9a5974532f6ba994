"""Bring a cube from its pad to the middle, let go, rise, and return it to the pad that it came from.

        left pad  y = +0.16      middle  y = 0      right pad  y = -0.16
           [cube] ------ 1 ----->  (mark)
           [cube] <----- 2 ------  (mark)

The pads look alike, and nothing tells the pad while the arm is busy in the middle: the simulator holds the
hand's orientation, the start posture is random, and the cube is put down anywhere on the mark. The task
follows "Grasp-and-Return" of arXiv 2606.16447.
"""

from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import OPEN, ArmTask, TableEnv, Vector, reach, settings
from longview.replay.episode import ArraySpec, TaskSpec

PAD_Y = 0.16
"""Distance of the pads from the middle, to its left and right, in metres."""
PAD = 0.05
"""Half a side of a pad, in metres. A cube lies on the pad if its centre is above it."""
MARK = 0.03
"""Radius of the mark in the middle, in metres."""
CUBE = 0.02
"""Half a side of the cube, in metres."""
SPREAD = 0.02
"""Largest distance of the cube's start from its pad's centre, in x and y, in metres."""
YAW = 0.1
"""Largest turn of the cube at the start, in radians."""
RISEN = 0.06
"""Height of the hand above the cube's centre, in metres, from which the cube counts as left alone."""
LIFTED = 0.005
"""Height above the table, in metres, from which the cube is in the air."""

GAIN = 1.5
"""The expert asks for this multiple of the distance that is left."""
NEAR, THERE = 0.01, 0.004
"""Distances, in metres, at which the hand grasps the cube, and at which the cube is lowered to its goal."""
STILL = 0.025
"""Speed of the cube, in metres per second, below which it is let go."""
ON_MARK, ON_PAD = 0.028, 0.035
"""Largest distance of a cube that has arrived from the middle of the mark, and of the pad, in metres."""
CARRY, CARRY_BACK = 0.1, 0.03
"""Heights at which the cube is carried there and back, in metres. They differ, and the hand rises along
another line than it comes down, so that a single frame shows whether the cube is on its way there or back."""
RETREAT = np.array((-0.03, 0.0, 0.05))
"""Displacement per step, before the gain, with which the hand leaves the cube, in metres (3,)."""
LINGER = 3
"""Steps for which the hand goes on leaving once the cube counts as left alone. A policy that imitates the
expert may turn back a little early: thanks to these steps the cube still counts as left alone by then."""
SLANT = 0.02
"""Distance of the cube from its goal, in metres, at which it begins to come down."""
REST = 0.018
"""The expert puts the cube down up to this far from the middle of mark or pad, in x and y, in metres."""

spec = TaskSpec(
    name="grasp_and_return",
    observation={
        "hand_pos": ArraySpec((3,), low=-1.0, high=1.0),
        "gripper": ArraySpec((1,), low=0.0, high=0.1),
        "cube_pos": ArraySpec((3,), low=-1.0, high=1.0),
    },
    action=ArraySpec((4,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=150,
    context_lengths=(4, 8, 16, 20, 24, 48),
    demonstrations=100,
    chance=0.5,
)


class GraspAndReturn(TableEnv):
    """The simulator. `since` counts the steps since the cube was left alone on the mark; 0 before."""

    pad: ClassVar[tuple[float, float]] = (0.0, PAD_Y)
    """Place (x, y) of the left pad, relative to the middle, in metres. The right one lies opposite, at -y."""

    def build(self, robosuite: ModuleType) -> Any:
        from robosuite.models.objects import BoxObject

        from longview.actors.tasks.table import Mark, Table

        self.cube = BoxObject("cube", size=(CUBE,) * 3, rgba=(0.8, 0.1, 0.1, 1.0), density=500.0)
        pads = [
            Mark(name, "box", (PAD, PAD), self.pad_on(side), (0.25, 0.35, 0.6, 1.0))
            for name, side in (("left_pad", 1), ("right_pad", -1))
        ]
        mark = Mark("mark", "cylinder", (MARK,), (0.0, 0.0), (0.9, 0.75, 0.2, 1.0))
        return Table([self.cube], [*pads, mark], settings(self.task_spec))

    def place(self) -> None:
        self.side = -1 if self.memory_rng.random() < 0.5 else 1
        self.since = 0
        x, y = self.pad_on(self.side) + self.np_random.uniform(-SPREAD, SPREAD, 2)
        yaw = self.np_random.uniform(-YAW, YAW)
        self.put(self.cube, (x, y, CUBE), yaw)

    def pad_on(self, side: int) -> tuple[float, float]:
        """Return the place of the pad on a side: 1 left, -1 right; in metres."""
        x, y = self.pad
        return x, side * y

    @property
    def visited(self) -> bool:
        """Whether the cube may be returned."""
        return self.since > 0

    def state(self) -> dict[str, Vector]:
        return {
            "hand_pos": self.hand,
            "gripper": np.array([self.width]),
            "cube_pos": self.position(self.cube),
        }

    def answer(self) -> float:
        return self.side

    def outcome(self) -> str | None:
        x, y, z = self.position(self.cube)
        put_down = z < CUBE + LIFTED and self.width > OPEN
        if self.visited or (put_down and np.hypot(x, y) < MARK and self.hand[2] - z > RISEN):
            self.since += 1
        pad_x, pad_y = self.pad
        if self.visited and put_down and max(abs(x - pad_x), abs(abs(y) - pad_y)) < PAD:
            return "success" if y * self.side > 0 else "wrong"
        return None


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it knows the side. Where it puts the cube down does not depend on the side."""
    scene = env.unwrapped
    assert isinstance(scene, GraspAndReturn)
    on_mark, on_pad = rng.uniform(-REST, REST, (2, 2))
    angle = rng.uniform(0, 2 * np.pi)
    slant = SLANT * np.array((np.cos(angle), np.sin(angle)))
    gripper = scene.simulator.robots[0].gripper["right"]

    def act() -> Action:
        cube = scene.position(scene.cube)
        grasped = scene.simulator._check_grasp(gripper=gripper, object_geoms=scene.cube)
        back = scene.since > LINGER
        place = np.array(scene.pad_on(scene.side) if back else (0.0, 0.0))
        goal = place + (on_pad if back else on_mark)
        off, speed = np.hypot(*(cube[:2] - place)), np.hypot(*scene.velocity(scene.cube)[:2])
        there = bool(off < (ON_PAD if back else ON_MARK) and speed < STILL)
        height = CARRY_BACK if back else CARRY
        move, grip = _move(scene.hand, scene.width, cube, grasped, there, goal, slant, height)
        return scene.towards(GAIN * move, grip)

    return act


def _move(
    hand: Vector,
    width: float,
    cube: Vector,
    grasped: bool,
    there: bool,
    goal: Vector,
    slant: Vector,
    carry: float,
) -> tuple[Vector, float]:
    """Return the hand's move (3,) and grip that bring the cube at `cube` (3,) to `goal` (2,) and leave it.

    The cube comes down along a slope from `goal + slant`, so the arm's last movement has a direction that
    does not depend on where the cube came from.
    """
    raised = min(1.0, max(0.0, cube[2] - CUBE) / carry)
    to_goal = goal + raised * slant - cube[:2]
    if there and cube[2] < CUBE + LIFTED:
        # Let go, then rise.
        return RETREAT if width > OPEN else np.zeros(3), -1.0
    if grasped:
        # Up, across, down: the height follows from the distance, and the cube is lifted before it is moved.
        far = float(np.hypot(*to_goal))
        height = CUBE + min(carry, max(0.0, 2 * (far - THERE)))
        across = to_goal * (raised if far > 2 * SLANT else 1.5)
        return np.array((*across, height - cube[2])), 1.0
    return reach(cube - hand, width, NEAR, CARRY)


task = ArmTask(spec, GraspAndReturn, expert)
make = task.make
