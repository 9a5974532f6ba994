"""Scoop twice from a bowl, then press a button: nothing but memory tells how often the bowl was visited.

        start  y = 0.06 .. 0.42       bowl  y = -0.02       button  y = -0.2
          o ------ slowly ----->  in  \\   ^  out  --------->  (press)
                                       \\_/

The tool goes in on the far side of the bowl, sweeps through it and comes out on the near side, so one frame
shows where in a scoop it is; all scoops look alike. The start is near or far, so that neither does the time
that has passed tell how many there were. After "Marshmallows" of arXiv 2606.16447.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ArmTask, ToolEnv, Vector, settings
from longview.replay.episode import ArraySpec, TaskSpec

SCOOPS = 2
"""How many there must be before the button is pressed."""
BOWL, RADIUS = (0.0, -0.02), 0.07
"""Its middle and its radius, in metres."""
BUTTON, REACH = (0.0, -0.2), 0.03
"""Its middle, and how far from that a press still counts."""
DEPTH, RIM = 0.05, 0.09
"""A scoop is the hand below the one height, then above the other, in the bowl both times."""
PRESSED = 0.05
"""Height of the hand below which it presses the button."""
START = ((-0.05, 0.06), (0.05, 0.42))
"""Corners of where the hand starts, at the height `HOVER`."""

GAIN = 1.5
"""The expert asks for this multiple of what is missing."""
SLOW, STEADY = 0.003, 0.006
"""And at most this many metres of it on its way to the bowl, and through it; the arm covers two thirds."""
FLOOR, HOVER = 0.035, 0.12
"""Heights at which the expert sweeps through the bowl and moves above it."""
SWEEP = 0.02
"""How far from the bowl's middle, in x, the expert goes in and comes out."""
SPREAD = 0.01
"""And how much the places of two scoops differ, in x and y."""
NEAR = 0.006
"""From this close, in x and y, to where it goes in, comes out or presses it turns down or up."""

spec = TaskSpec(
    name="count_scoops",
    observation={"hand_pos": ArraySpec((3,), low=-1.0, high=1.0)},
    action=ArraySpec((3,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=300,
    context_lengths=(1, 8, 16, 32, 64, 92),
    demonstrations=100,
    # A scoop is the last with probability p, the same after each: p (1 - p) is at most this.
    chance=0.25,
)


class CountScoops(ToolEnv):
    """The environment; actions are places to go to, the closed gripper is the tool.

    `scoops` were completed; `under` while one is on.
    """

    workspace: ClassVar[tuple[Sequence[float], Sequence[float]]] = ((0.0, 0.1, 0.1), (0.1, 0.35, 0.1))

    def build(self, robosuite: ModuleType) -> Any:
        from longview.actors.tasks.table import Mark, Table

        bowl = Mark("bowl", "cylinder", (RADIUS,), BOWL, (0.95, 0.9, 0.8, 0.5), height=0.06)
        button = Mark("button", "cylinder", (REACH,), BUTTON, (0.8, 0.1, 0.1, 1.0), height=0.03)
        return Table([], [bowl, button], settings(self.task_spec))

    def place(self) -> None:
        self.scoops, self.under = 0, False
        self.start_at(np.array((*self.np_random.uniform(*START), HOVER)), steps=30)

    def state(self) -> dict[str, Vector]:
        return {"hand_pos": self.hand}

    def outcome(self) -> str | None:
        height, inside = self.hand[2], self.aside(BOWL) < RADIUS
        if height < DEPTH and inside:
            self.under = True
        if height > RIM and self.under:
            self.under = False
            self.scoops += inside
        if height < PRESSED and self.aside(BUTTON) < REACH:
            return "failure" if self.scoops == 0 else "success" if self.scoops == SCOOPS else "wrong"
        return None

    def aside(self, place: Vector | tuple[float, float]) -> float:
        """Distance of the hand, seen from above, to a place (2,)."""
        return float(np.hypot(*(self.hand[:2] - place)))


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Knows how many scoops there were. Where exactly it scoops is its own choice, drawn anew each time."""
    scene = env.unwrapped
    assert isinstance(scene, CountScoops)
    sweep = np.array((SWEEP, 0.0))
    spots = BOWL + rng.uniform(-SPREAD, SPREAD, (SCOOPS + 1, 2))

    def act() -> Action:
        spot = spots[min(scene.scoops + scene.under, SCOOPS)]
        if scene.under:
            move, pace = _leg(scene, spot - sweep, FLOOR, HOVER), STEADY
        elif scene.scoops < SCOOPS:
            pace = SLOW if scene.aside(BOWL) > RADIUS else np.inf
            move = _leg(scene, spot + sweep, HOVER, FLOOR)
        else:
            move, pace = _leg(scene, np.array(BUTTON), HOVER, PRESSED - NEAR), np.inf
        move[:2] *= min(1.0, pace / np.hypot(*move[:2]))
        return scene.go(GAIN * move)

    return act


def _leg(scene: CountScoops, place: Vector, before: float, after: float) -> Vector:
    """What is missing (3,) to a place (2,) at the height `before`, and there to the height `after`."""
    # Once it goes up or down it stays with that within a wider range.
    near = NEAR if abs(scene.hand[2] - before) < 2 * NEAR else 3 * NEAR
    height = after if scene.aside(place) < near else before
    missing: Vector = np.append(place, height) - scene.hand
    return missing


task = ArmTask(spec, CountScoops, expert)
make = task.make
