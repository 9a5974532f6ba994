"""Counting: a task for testing the pipeline. Its observation is a counter, so any gap, repeat or swap shows.

An episode counts up from a start of its own; start and length follow from its seed. The right action is the
count that is observed, so an episode succeeds only if every action answered its own observation.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action, Environment, Expert
from longview.replay.episode import ArraySpec, TaskSpec

LENGTHS = (3, 41)
"""Range of episode lengths, in steps."""

spec = TaskSpec(
    name="counting",
    observation={"count": ArraySpec((1,), low=0.0, high=1e6)},
    action=ArraySpec((1,), low=0.0, high=1e6),
    control_hz=10.0,
    max_steps=LENGTHS[1],
    context_lengths=(1, 8, 64),
    demonstrations=20,
)


class Counting(TaskEnv):
    """The simulator; it has no pictures."""

    def start(self, rng: np.random.Generator) -> None:
        self.count = 1000 * int(rng.integers(1, 900))
        self._end = self.count + int(rng.integers(*LENGTHS))
        self._right = self._all_right = True

    def advance(self, action: Action) -> None:
        self._right = float(action[0]) == self.count
        self._all_right &= self._right
        self.count += 1

    def observe(self) -> Mapping[str, ArrayLike]:
        return {"count": (self.count,)}

    def outcome(self) -> str | None:
        if self.count < self._end:
            return None
        return "success" if self._all_right else "failure"

    def reward(self, outcome: str | None) -> float:
        """Return 1 for a right action, else 0."""
        return float(self._right)


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it repeats the count."""
    counter = env.unwrapped
    assert isinstance(counter, Counting)
    return lambda: np.array((counter.count,), np.float32)


task = SimulatedTask(spec, Counting, expert)
make = task.make
