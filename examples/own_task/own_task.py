"""A task of your own in one file: remember whether the lamp was lit.

    x = -1  <------------------  x = 0  ------------------>  x = 1
    dark                     door, shut at first                lit

For three steps a policy sees whether a lamp is lit. Some steps later a door opens: the point must go to the
right if the lamp was lit, else to the left. Only memory says which.

    longview check-task own_task:task
    longview demo --task own_task:task
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longview.actors.environment import SimulatedTask, TaskEnv
from longview.replay.episode import ArraySpec, TaskSpec

SHOWN = 3
"""Steps for which the lamp is seen."""
OPENS = (8, 17)
"""Range of the step at which the door opens; drawn anew for every episode."""
SPEED = 0.2
"""Distance per step at full action."""

spec = TaskSpec(
    name="own_task",
    observation={
        "position": ArraySpec((1,), low=-1.2, high=1.2),
        "lamp": ArraySpec((1,), low=-1.0, high=1.0),
        "door": ArraySpec((1,), low=0.0, high=1.0),
    },
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=40,
    context_lengths=(1, 8, 24),
    demonstrations=50,
    chance=0.5,
)


class Corridor(TaskEnv):
    """The simulator; the action is the velocity as a share of `SPEED`."""

    def start(self, rng: np.random.Generator) -> None:
        self.side = 1 if self.memory_rng.random() < 0.5 else -1
        self.opens = int(rng.integers(*OPENS))
        self.x = float(rng.uniform(-0.1, 0.1))

    def advance(self, action: NDArray[np.float32]) -> None:
        if self.steps >= self.opens:
            self.x += SPEED * float(action[0])

    def observe(self) -> Mapping[str, ArrayLike]:
        return {
            "position": [self.x],
            "lamp": [self.side if self.steps < SHOWN else 0],
            "door": [self.steps >= self.opens],
        }

    def outcome(self) -> str | None:
        if abs(self.x) < 1:
            return None
        return "success" if self.x * self.side > 0 else "wrong"

    def render(self) -> NDArray[np.uint8]:
        """Draw the corridor, (64, 256, 3) uint8: the point is red, the side to go to is green."""
        picture = np.full((64, 256, 3), 235, np.uint8)
        columns = np.linspace(-1.2, 1.2, 256)
        picture[24:40, columns * self.side > 1] = (120, 184, 138)
        picture[16:48, abs(columns - self.x) < 0.05] = (206, 66, 56)
        return picture


def expert(env: TaskEnv, rng: np.random.Generator) -> Callable[[], NDArray[np.float32]]:
    """Knows the side, and goes there as soon as the door is open. Its pace is its own choice."""
    corridor = env.unwrapped
    assert isinstance(corridor, Corridor)
    pace = rng.uniform(0.6, 1.0)

    def act() -> NDArray[np.float32]:
        opened = corridor.steps >= corridor.opens
        return np.array([pace * corridor.side * opened], np.float32)

    return act


task = SimulatedTask(spec, Corridor, expert)
