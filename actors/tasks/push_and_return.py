"""Push a puck from its slot to the middle, withdraw above it, and push it back to the slot it came from.

       (0)   (4)
     (1)  mark  (3)         x is up, the robot below
          (2)

The slots look alike, and once the puck lies on the mark nothing tells the slot: the expert first leaves it
beside the mark, on any side, and pushes it onto the mark from there, slowly. The simulator holds the hand's
orientation. The task follows "Push-and-Return" of arXiv 2606.16447.
"""

from types import ModuleType
from typing import Any

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ArmTask, ToolEnv, Vector, settings
from longview.replay.episode import ArraySpec, TaskSpec

MIDDLE, RING = np.array((-0.06, 0.0)), 0.14
"""Place of the mark, and distance of the slots from it, in metres. The arm reaches behind every slot."""
ANGLES = np.pi / 5 * np.arange(1, 11, 2)
SLOTS = MIDDLE + RING * np.stack((np.cos(ANGLES), np.sin(ANGLES)), axis=1)
"""Places of the slots, in metres (5, 2)."""
SLOT, MARK, BESIDE = 0.03, 0.02, 0.09
"""Distances, in metres: a puck this close is in a slot, on the mark, beside the mark."""
PUCK = (0.04, 0.015)
"""Radius and half the height of the puck, in metres."""
SPREAD = 0.01
"""Largest distance of the puck's start from its slot's middle, in x and y, in metres."""
RISEN, ABOVE = 0.07, 0.03
"""Height of the hand above the puck's centre, and distance in x and y, at which the puck is left alone."""
START = ((-0.17, -0.08, 0.1), (-0.05, 0.08, 0.16))
"""Corners of the space in which the hand starts, in metres."""

GAIN = 1.5
"""The expert asks for this multiple of the distance that is left."""
PACE, SLOW = 0.022, 0.01
"""Metres per step that the expert asks for at most, in x and y: as a rule, and to push onto the mark."""
ASIDE = (0.035, 0.055)
"""Range of the distance from the mark's middle at which the expert leaves the puck at first, in metres."""
FLOOR, HOVER = 0.02, 0.13
"""Heights, in metres, at which the hand pushes, and at which it passes over the puck."""
BEHIND = 0.075
"""Distance from the puck's centre at which the hand comes down, in metres."""
LANE = 0.012
"""Distance from the line of the puck's way, in metres, up to which the hand pushes."""
LINGER = 3
"""Steps for which the hand goes on rising once the puck counts as left alone. A policy that imitates the
expert may turn away a little early: thanks to these steps the puck still counts as left alone by then."""
THERE = 0.009
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

    `since` counts the steps since the puck was left alone on the mark, `brought` those since it was near it.
    """

    workspace = ((MIDDLE[0], MIDDLE[1], 0.09), (0.22, 0.22, 0.075))

    def build(self, robosuite: ModuleType) -> Any:
        from robosuite.models.objects import CylinderObject

        from longview.actors.tasks.table import Mark, Table

        self.puck = CylinderObject("puck", size=PUCK, rgba=(0.8, 0.1, 0.1, 1.0), density=500.0)
        slots = [
            Mark(f"slot{index}", "cylinder", (PUCK[0] + SLOT,), (x, y), (0.25, 0.35, 0.6, 1.0))
            for index, (x, y) in enumerate(SLOTS.tolist())
        ]
        mark = Mark("mark", "cylinder", (PUCK[0] + MARK,), (MIDDLE[0], MIDDLE[1]), (0.9, 0.75, 0.2, 1.0))
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

    def outcome(self) -> str | None:
        puck = self.position(self.puck)
        away, aside = self.hand - puck, float(np.hypot(*(puck[:2] - MIDDLE)))
        alone = bool(away[2] > RISEN and np.hypot(*away[:2]) < ABOVE)
        distances = np.hypot(*(SLOTS - puck[:2]).T)
        if self.visited and alone and distances.min() < SLOT:
            return "success" if distances.argmin() == self.origin else "wrong"
        self.brought += self.brought > 0 or (alone and aside < BESIDE)
        self.since += self.visited or (alone and aside < MARK)
        return None


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it knows the slot. Where it leaves the puck at first does not depend on the slot."""
    scene = env.unwrapped
    assert isinstance(scene, PushAndReturn)
    angle = rng.uniform(0, 2 * np.pi)
    beside = MIDDLE + rng.uniform(*ASIDE) * np.array((np.cos(angle), np.sin(angle)))

    def act() -> Action:
        back, brought = scene.since > LINGER, scene.brought > LINGER
        goal = SLOTS[scene.origin] if back else MIDDLE if brought else beside
        pace = SLOW if brought and not back else PACE
        move = _move(scene.hand, scene.position(scene.puck), goal, pace)
        move[:2] *= PACE / max(PACE, np.hypot(*move[:2]))
        return scene.go(GAIN * move)

    return act


def _move(hand: Vector, puck: Vector, goal: Vector, pace: float) -> Vector:
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
    if hand[2] < FLOOR + LANE and np.hypot(*across) < LANE and 0 < along < BEHIND + LANE:
        return np.append(min(far + THERE, pace) * ahead + 1.5 * across, FLOOR - hand[2])
    to_start = to_puck - BEHIND * ahead
    away = float(np.hypot(*to_start))
    height = FLOOR + min(HOVER - FLOOR, max(0.0, 3 * (away - LANE / 2)))
    return np.append(to_start * min(1.0, raised + LANE / max(LANE, away)), height - hand[2])


task = ArmTask(spec, PushAndReturn, expert)
make = task.make
