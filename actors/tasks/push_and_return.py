"""Push a puck from its slot to the mark, withdraw above it, and push it back to the slot it came from.

       (0)   (4)
     (1)       (3)          x is up, the robot below
         mark
          (2)

The slots look alike, and once the puck lies on the mark nothing tells the slot: the expert first leaves it
about the middle of the slots, at random, and pushes it onto the mark from there. The simulator holds the
hand's orientation. The task follows "Push-and-Return" of arXiv 2606.16447.

A push is unstable: the puck slips aside unless the hand follows. A policy must therefore decide anew every
few centimetres, and it must have seen corrections: the expert pushes slowly, its corrections grow with the
distance from the puck's way, and its demonstrations are noisy.
"""

from types import ModuleType
from typing import Any

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ArmTask, ToolEnv, Vector, settings
from longview.replay.episode import ArraySpec, TaskSpec

MIDDLE, RING = np.array((-0.04, 0.0)), 0.125
"""Middle of the slots, and their distance from it, in metres. The arm reaches behind every slot."""
MARK_PLACE = MIDDLE - (0.055, 0.0)
"""Place of the mark, in metres."""
ANGLES = np.pi / 5 * np.arange(1, 11, 2)
SLOTS = MIDDLE + RING * np.stack((np.cos(ANGLES), np.sin(ANGLES)), axis=1)
"""Places of the slots, in metres (5, 2)."""
SLOT, MARK, CENTRED = 0.035, 0.03, 0.06
"""Distances, in metres: a puck whose centre is this close is in a slot, on the mark, about the middle."""
PUCK = (0.05, 0.015)
"""Radius and half the height of the puck, in metres."""
FRICTION = 0.3
"""Friction of the puck. With robosuite's 1, a hand that pushes presses the puck down as hard as it pushes,
and the puck jams."""
SPREAD = 0.01
"""Largest distance of the puck's start from its slot's middle, in x and y, in metres."""
RISEN, ABOVE = 0.07, 0.03
"""Height of the hand above the puck's centre, and distance in x and y, at which the puck is left alone."""
START = ((-0.09, -0.1, 0.1), (0.03, 0.1, 0.16))
"""Corners of the space in which the hand starts, in metres."""

GAIN = 1.5
"""The expert asks for this multiple of the distance that is left."""
PACE, PUSH = 0.03, 0.013
"""Metres per step that the expert asks for at most, in x and y: as a rule, and to push."""
STOP, AIM = np.array((0.015, 0.04)), 0.006
"""Largest distances in x and y, in metres, of the expert's first stop from the middle and of its second from
the mark. They blur where the puck comes to rest, which would tell the side it was pushed from."""
FLOOR, HOVER = 0.02, 0.13
"""Heights, in metres, at which the hand pushes, and at which it passes over the puck."""
LOW = 0.04
"""Height, in metres, below which the hand pushes."""
BEHIND, NEAR = 0.095, 0.02
"""Distances, in metres: the hand comes down this far behind the puck's centre, and goes all the way down once
it is this near to that place."""
LANE = 0.03
"""Distance from the line of the puck's way, in metres, up to which the hand pushes, the slower the farther.
It corrects by as much as it is off the line."""
LINGER = 3
"""Steps for which the hand goes on rising once the puck counts as left alone. A policy that imitates the
expert may turn away a little early: thanks to these steps the puck still counts as left alone by then."""
THERE = 0.012
"""Distance of the puck from its goal, in metres, at which the expert leaves it."""

spec = TaskSpec(
    name="push_and_return",
    observation={
        "hand_pos": ArraySpec((3,), low=-1.0, high=1.0),
        "puck_pos": ArraySpec((3,), low=-1.0, high=1.0),
    },
    action=ArraySpec((3,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=250,
    context_lengths=(4, 8, 32, 48, 60, 72, 80),
    demonstrations=200,
    chance=0.2,
)


class PushAndReturn(ToolEnv):
    """The simulator. An action is a place for the hand; the closed gripper is the tool.

    `since` counts the steps since the puck was left alone on the mark, `brought` those since it was left
    alone about the middle.
    """

    workspace = ((MIDDLE[0], MIDDLE[1], 0.09), (0.22, 0.22, 0.075))

    def build(self, robosuite: ModuleType) -> Any:
        from robosuite.models.objects import CylinderObject

        from longview.actors.tasks.table import Mark, Table

        self.puck = CylinderObject(
            "puck", size=PUCK, rgba=(0.8, 0.1, 0.1, 1.0), density=500.0, friction=FRICTION
        )
        # With a higher priority, its friction holds against whatever it touches; otherwise the larger does.
        for geom in self.puck.get_obj().iter("geom"):
            geom.set("priority", "1")
        slots = [
            Mark(f"slot{index}", "cylinder", (SLOT,), (x, y), (0.25, 0.35, 0.6, 1.0))
            for index, (x, y) in enumerate(SLOTS.tolist())
        ]
        mark = Mark("mark", "cylinder", (MARK,), tuple(MARK_PLACE), (0.9, 0.75, 0.2, 1.0))
        return Table([self.puck], [*slots, mark], settings(self.task_spec))

    def place(self) -> None:
        self.origin = int(self.memory_rng.integers(len(SLOTS)))
        self.brought = self.since = 0
        self.put(self.puck, (*(SLOTS[self.origin] + self.np_random.uniform(-SPREAD, SPREAD, 2)), PUCK[1]))
        self.start_at(self.np_random.uniform(*START), steps=20)

    @property
    def visited(self) -> bool:
        """Whether the puck may be returned."""
        return self.since > 0

    def state(self) -> dict[str, Vector]:
        return {"hand_pos": self.hand, "puck_pos": self.position(self.puck)}

    def answer(self) -> float:
        return self.origin

    def outcome(self) -> str | None:
        puck = self.position(self.puck)
        away, places = self.hand - puck, np.stack((MIDDLE, MARK_PLACE, *SLOTS))
        alone = bool(away[2] > RISEN and np.hypot(*away[:2]) < ABOVE)
        from_middle, from_mark, *from_slots = np.hypot(*(places - puck[:2]).T)
        if self.visited and alone and min(from_slots) < SLOT:
            return "success" if np.argmin(from_slots) == self.origin else "wrong"
        self.brought += self.brought > 0 or (alone and from_middle < CENTRED)
        self.since += self.visited or (alone and from_mark < MARK)
        return None


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it knows the slot. Where it leaves the puck on the way does not depend on the slot."""
    scene = env.unwrapped
    assert isinstance(scene, PushAndReturn)
    stop, aim = MIDDLE + rng.uniform(-STOP, STOP), MARK_PLACE + rng.uniform(-AIM, AIM, 2)

    def act() -> Action:
        back, brought = scene.since > LINGER, scene.brought > LINGER
        goal = SLOTS[scene.origin] if back else aim if brought else stop
        move = _move(scene.hand, scene.position(scene.puck), goal)
        move[:2] *= PACE / max(PACE, np.hypot(*move[:2]))
        return scene.go(GAIN * move)

    return act


def _move(hand: Vector, puck: Vector, goal: Vector) -> Vector:
    """Return the hand's move (3,) that pushes the puck at `puck` (3,) to `goal` (2,), then rises above it."""
    to_puck, to_goal = puck[:2] - hand[:2], goal - puck[:2]
    far = float(np.hypot(*to_goal))
    raised = min(1.0, max(0.0, (hand[2] - FLOOR) / (HOVER - FLOOR)))
    # A wider range once it withdraws keeps it from changing its mind.
    if far < THERE * (1 + raised):
        return np.append((2 * raised - 0.5) * to_puck, HOVER - hand[2])
    ahead = to_goal / far
    along = float(to_puck @ ahead)
    across = to_puck - along * ahead
    straight = 1 - float(np.hypot(*across)) / LANE
    if hand[2] < LOW and straight > 0 and 0 < along < BEHIND + LANE:
        return np.append(straight * PUSH * ahead + across, FLOOR - hand[2])
    to_start = to_puck - BEHIND * ahead
    away = float(np.hypot(*to_start))
    height = FLOOR + min(HOVER - FLOOR, max(0.0, 3 * (away - NEAR)))
    return np.append(to_start * min(1.0, raised + LANE / max(LANE, away)), height - hand[2])


task = ArmTask(spec, PushAndReturn, expert)
make = task.make
