"""Scoop twice from a bowl, then press a button: only memory tells how often the bowl was visited.

        start  y = 0.06 .. 0.42       bowl  y = -0.02       button  y = -0.2
          o ------ slowly ----->  in  \\   ^  out  --------->  (press)
                                       \\_/

The tool goes in on the far side of the bowl, sweeps through it and comes out on the near side, so one frame
shows the stage of a scoop. All scoops look alike. The start is near or far, so that the time that has passed
does not tell the number of scoops either. The task follows "Marshmallows" of arXiv 2606.16447.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ArmTask, ToolEnv, Vector, settings
from longview.replay.episode import ArraySpec, TaskSpec

SCOOPS = 2
"""Number of scoops before the button must be pressed."""
BOWL, RADIUS = (0.0, -0.02), 0.07
"""Middle and radius of the bowl, in metres."""
BUTTON, REACH = (0.0, -0.2), 0.03
"""Middle of the button, and distance from it at which a press still counts, in metres."""
DEPTH, RIM = 0.05, 0.09
"""Heights of the hand, in metres: a scoop is below `DEPTH`, then above `RIM`, in the bowl both times."""
PRESSED = 0.05
"""Height, in metres, below which the hand presses the button."""
START = ((-0.05, 0.06), (0.05, 0.42))
"""Corners of the area in which the hand starts, in metres, at the height `HOVER`."""

GAIN = 1.5
"""The expert asks for this multiple of the distance that is left."""
SLOW, STEADY = 0.003, 0.006
"""Largest step that the expert asks for, in metres: to the bowl, and through it. The arm does two thirds."""
FLOOR, HOVER = 0.035, 0.12
"""Heights, in metres, at which the expert sweeps through the bowl and moves above it."""
SWEEP = 0.02
"""Distance from the bowl's middle, in x, at which the expert goes in and comes out, in metres."""
SPREAD = 0.01
"""Largest offset of a scoop's place, in x and y, in metres; drawn for every scoop."""
NEAR = 0.006
"""Distance, in x and y, from the next place at which the expert begins to go down or up, in metres."""

spec = TaskSpec(
    name="count_scoops",
    observation={"hand_pos": ArraySpec((3,), low=-1.0, high=1.0)},
    action=ArraySpec((3,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=300,
    context_lengths=(1, 8, 16, 32, 64, 92),
    demonstrations=100,
    # Without memory, a policy stops after each scoop with the same probability p. It succeeds in p (1 - p).
    chance=0.25,
)


class CountScoops(ToolEnv):
    """The simulator. An action is a place to go to; the closed gripper is the tool.

    `scoops` counts completed scoops; `under` is true during one.
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

    def answer(self) -> float:
        return self.scoops

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
        """Return the distance of the hand to a place (2,), seen from above, in metres."""
        return float(np.hypot(*(self.hand[:2] - place)))


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it knows the number of scoops, and chooses the place of each anew."""
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
    """Return the way (3,) to a place (2,) at the height `before`, and from there to the height `after`."""
    # A wider range once it goes up or down keeps it from changing its mind.
    near = NEAR if abs(scene.hand[2] - before) < 2 * NEAR else 3 * NEAR
    height = after if scene.aside(place) < near else before
    missing: Vector = np.append(place, height) - scene.hand
    return missing


task = ArmTask(spec, CountScoops, expert)
make = task.make
