"""Observations are a counter: a task for testing the pipeline, where any gap, repeat or swap shows.

An episode counts up from a start of its own; its length follows from its seed as well. The right action is
the count that is observed, so an episode succeeds only if every action belonged to its own observation.
"""

from typing import Any

import gymnasium
import numpy as np

from longview.actors.task import (
    Action,
    Environment,
    Expert,
    Observation,
    action_space,
    checked_action,
    observation_space,
)
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


class Counting(gymnasium.Env[Observation, Action]):
    """The environment."""

    observation_space = observation_space(spec)
    action_space = action_space(spec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 1000 * int(self.np_random.integers(1, 900))
        self._end = self.count + int(self.np_random.integers(*LENGTHS))
        self._right = True
        return self._observe(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        right = float(checked_action(spec, action)[0]) == self.count
        self._right &= right
        self.count += 1
        ended = self.count >= self._end
        info = {"outcome": "success" if self._right else "failure"} if ended else {}
        return self._observe(), float(right), ended, False, info

    def _observe(self) -> Observation:
        return {"count": np.array((self.count,), np.float32)}


def make(render_mode: str | None = None) -> Environment:
    """A new counter; it has no pictures."""
    return Counting()


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Says the count."""
    counter = env.unwrapped
    assert isinstance(counter, Counting)
    return lambda: np.array((counter.count,), np.float32)
