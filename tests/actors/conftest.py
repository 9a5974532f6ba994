"""A task whose episodes end badly, in every possible way."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest

from longview.actors.environment import action_space, observation_space
from longview.actors.task import Action, ActionError, Environment, Expert, Observation
from longview.replay.episode import ArraySpec, TaskSpec

SPEC = TaskSpec(
    name="fragile",
    observation={"count": ArraySpec((1,)), "picture": ArraySpec((2, 2, 3), "uint8")},
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=12,
    context_lengths=(1,),
    demonstrations=8,
)


@dataclass(frozen=True)
class Case:
    """Event of an episode, and what must come of it."""

    event: str
    steps: int
    """Steps that are recorded."""
    outcome: str


CASES = (
    Case("nothing", 12, "success"),
    Case("diverges, and says so", 9, "invalid"),
    Case("observation not finite", 9, "invalid"),
    Case("observation not finite", 0, "invalid"),
    Case("reward not finite", 9, "invalid"),
    Case("not finite from the start", 0, "invalid"),
    Case("action refused", 9, "failure"),
    Case("action refused", 0, "failure"),
)


class FragileEnv(gymnasium.Env[Observation, Action]):
    """A simulator that observes the number of steps; the seed decides on the case."""

    observation_space = observation_space(SPEC)
    action_space = action_space(SPEC)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.case, self.count = Fragile.case(seed), 0
        return self.observe(self.case.event == "not finite from the start"), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        event, due = self.case.event, self.count == self.case.steps
        if due and event == "action refused":
            raise ActionError(f"action[0] is refused: {action[0]}")
        self.count += 1
        ended = self.count == self.case.steps and event in ("nothing", "diverges, and says so")
        reward = np.inf if due and event == "reward not finite" else 0.0
        observation = self.observe(due and event == "observation not finite")
        return observation, reward, ended, False, {"outcome": self.case.outcome} if ended else {}

    def observe(self, broken: bool) -> Observation:
        count = np.nan if broken else float(self.count)
        return {"count": np.array((count,), np.float32), "picture": np.zeros((2, 2, 3), np.uint8)}


class Fragile:
    """A task with simulators of that kind."""

    spec = SPEC

    def make(self, render_mode: str | None = None) -> Environment:
        return FragileEnv()

    def expert(self, env: Environment, rng: np.random.Generator) -> Expert:
        return lambda: np.zeros(1, np.float32)

    @staticmethod
    def case(seed: int) -> Case:
        return CASES[seed // 2 % len(CASES)]


@pytest.fixture
def fragile() -> Fragile:
    return Fragile()
