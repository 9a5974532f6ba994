"""Push a puck from its slot to the middle, withdraw above it, and push it back to the slot it came from.

       (0)   (4)
     (1)  mark  (3)         x is up, the robot below
          (2)

The slots look alike, and once the puck lies on the mark nothing tells which one it came from: it is first
left beside the mark, on any side, and pushed onto it from there, slowly; the environment holds the hand's
orientation. After "Push-and-Return" of arXiv 2606.16447.
"""

from types import ModuleType
from typing import Any

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ArmTask, ToolEnv, Vector, settings
from longview.replay.episode import ArraySpec, TaskSpec

MIDDLE, RING = np.array((-0.06, 0.0)), 0.14
"""Place of the mark, and distance of the slots from it, in metres. The arm reaches behind all of them."""
ANGLES = np.pi / 5 * np.arange(1, 11, 2)
SLOTS = MIDDLE + RING * np.stack((np.cos(ANGLES), np.sin(ANGLES)), axis=1)
"""The slots' places, (5, 2)."""
SLOT, MARK, BESIDE = 0.03, 0.02, 0.09
"""How far the puck may lie from the middle of its slot, and of the mark, to be in, on and beside them."""
PUCK = (0.04, 0.015)
"""Its radius and half its height."""
SPREAD = 0.01
"""The puck starts up to this far from its slot's middle, in x and y."""
RISEN, ABOVE = 0.07, 0.03
"""The puck is left alone with the hand this high above its centre, or higher, and this close in x and y."""
START = ((-0.17, -0.08, 0.1), (-0.05, 0.08, 0.16))
"""Corners of where the hand starts."""

GAIN = 1.5
"""The expert asks for this multiple of what is missing."""
PACE, SLOW = 0.022, 0.01
"""And at most this many metres of it, in x and y; and of a push onto the mark."""
ASIDE = (0.035, 0.055)
"""How far from the middle of the mark the expert leaves the puck at first."""
FLOOR, HOVER = 0.02, 0.13
"""Heights at which the hand pushes, and at which it passes over the puck."""
BEHIND = 0.075
"""How far from the puck's centre the hand comes down."""
LANE = 0.012
"""It pushes as long as it is this close to the line along which the puck is to move."""
LINGER = 3
"""Steps for which it goes on rising once the puck counts as left alone: who imitates it turns away at times
a little too soon, and must have got far enough by then."""
THERE = 0.009
"""How close to its goal the puck must be to be left."""

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
    """The environment; actions are places for the hand, the closed gripper is the tool.

    So many steps `since` the puck was left alone on the mark, and since it was `brought` close to it.
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
    """Knows the slot. Where it leaves the puck beside the mark is its own choice, whatever the slot."""
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
    """What pushes the puck at `puck` (3,) to `goal` (2,), and leaves it there with the hand above it."""
    to_puck, to_goal = puck[:2] - hand[:2], goal - puck[:2]
    far = float(np.hypot(*to_goal))
    raised = min(1.0, max(0.0, (hand[2] - FLOOR) / (HOVER - FLOOR)))
    # Once it withdraws it stays with that within a wider range.
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
