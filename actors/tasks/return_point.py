"""A point that must return to the side it came from: the smallest task that needs memory.

Two lanes, joined in the middle by a slow lift:

        (-1, 1) =========== upper lane =========== (1, 1)
                               |  |
                               |  |  lift: 20 to 32 steps, whatever the policy does
                               |  |
        (-1, 0) =========== lower lane =========== (1, 0)

The point starts at one end of the lower lane, goes to the middle, waits in the lift while it rises, and must
leave along the upper lane to the side it came from. Only its position is observed. On the lift the position
does not tell the side: drift blurs where the point entered, and the time on the lift is drawn independently
of the side. A policy that sees only the present can do no better than chance.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action, Environment, Expert
from longview.replay.episode import ArraySpec, TaskSpec

SPEED = 0.08
"""Distance per step at full action."""
HALF_LIFT = 0.15
"""Half the width of the lift."""
HALF_LANE = 0.1
"""Half the height of a lane."""
LIFT_STEPS = (20, 33)
"""Range of the lift's duration, in steps; drawn anew for every episode."""
LIFT_DRIFT = 0.04
"""Standard deviation of the sideways drift on the lift, per step. It blurs the entry within a few steps."""
END = 1.0
"""Distance of the upper lane's ends from the middle. The episode ends when the point arrives at one."""
PICTURE = 256
"""Pixels a side of the picture that `render` draws."""

spec = TaskSpec(
    name="return_point",
    observation={"position": ArraySpec((2,), low=-1.2, high=1.2)},
    action=ArraySpec((2,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=100,
    context_lengths=(1, 8, 16, 24, 32, 48, 64),
    demonstrations=50,
    chance=0.5,
)


class ReturnPoint(TaskEnv):
    """The simulator; actions are velocities as a share of `SPEED`."""

    def start(self, rng: np.random.Generator) -> None:
        self.side = -1 if self.memory_rng.random() < 0.5 else 1
        self.x = self.side * rng.uniform(0.9, 1.1)
        self.y = rng.uniform(-HALF_LANE, HALF_LANE)
        self._rise = 1.0 / rng.integers(*LIFT_STEPS)
        self._drift = (LIFT_DRIFT * rng.standard_normal(spec.max_steps)).tolist()

    def advance(self, action: Action) -> None:
        ax, ay = action.tolist()
        dx, dy = SPEED * ax, SPEED * ay
        if HALF_LANE < self.y < 1 - HALF_LANE:
            self.x = _clip(self.x + dx + self._drift[self.steps], HALF_LIFT)
            self.y += min(dy, self._rise)
        else:
            lane = round(self.y)
            self.x = _clip(self.x + dx, 1.2)
            self.y += min(dy, self._rise) if lane == 0 else dy
            if abs(self.x) > HALF_LIFT:
                self.y = lane + _clip(self.y - lane, HALF_LANE)
            self.y = min(max(self.y, -HALF_LANE), 1 + HALF_LANE)

    def observe(self) -> Mapping[str, ArrayLike]:
        return {"position": (self.x, self.y)}

    def answer(self) -> float:
        return self.side

    def outcome(self) -> str | None:
        if self.y < 1 - HALF_LANE or abs(self.x) < END:
            return None
        return "success" if self.x * self.side > 0 else "wrong"

    def render(self) -> NDArray[np.uint8]:
        """Draw a picture of the scene, (H, W, 3) uint8; green is the side to return to."""
        return _draw(self.x, self.y, self.side)


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it walks in, rises at a place that does not depend on the side, and walks out."""
    point = env.unwrapped
    assert isinstance(point, ReturnPoint)
    rest = rng.uniform(-0.1, 0.1)

    def act() -> Action:
        if point.y >= 1 - HALF_LANE:
            toward = (float(point.side), (1 - point.y) / SPEED)
        elif point.y > HALF_LANE or abs(point.x) < 0.8 * HALF_LIFT:
            toward = ((rest - point.x) / (4 * SPEED), 1.0)
        else:
            toward = (-math.copysign(1.0, point.x), -point.y / SPEED)
        return np.clip(np.array(toward, np.float32), -1, 1)

    return act


task = SimulatedTask(spec, ReturnPoint, expert)
make = task.make


def _draw(x: float, y: float, side: int) -> NDArray[np.uint8]:
    across, up = np.linspace(-1.4, 1.4, PICTURE), np.linspace(1.9, -0.9, PICTURE)[:, None]
    pixel = 2.8 / PICTURE
    picture = np.full((PICTURE, PICTURE, 3), (250, 249, 246), np.float64)

    def paint(colour: tuple[int, int, int], distance: NDArray[np.float64]) -> None:
        """Paint a shape: the pixels at negative distance from its edge, with a smooth edge."""
        seen = distance < 0.5 * pixel
        cover = np.clip(0.5 - distance[seen] / pixel, 0, 1)[:, None]
        picture[seen] += cover * (np.array(colour) - picture[seen])

    def box(cx: float, cy: float, width: float, height: float) -> NDArray[np.float64]:
        inside: NDArray[np.float64] = np.maximum(np.abs(across - cx) - width, np.abs(up - cy) - height)
        return inside

    lift = float(np.interp(y, (HALF_LANE, 1 - HALF_LANE), (0, 1)))
    paint((232, 228, 218), box(0, 0.5, HALF_LIFT, 0.5 + HALF_LANE))
    for lane in (0, 1):
        paint((205, 212, 222), box(0, lane, 1.2, HALF_LANE))
    for lane in (0, 1):
        paint((120, 184, 138), box(side * 1.1, lane, 0.1, HALF_LANE))
    paint((70, 78, 92), box(0, lift - HALF_LANE, HALF_LIFT, 0.02))
    paint((255, 255, 255), np.hypot(across - x, up - y) - 0.075)
    paint((206, 66, 56), np.hypot(across - x, up - y) - 0.06)
    return picture.round().astype(np.uint8)


def _clip(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
