from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from longview.actors.task import Environment, Observation, Task, load_task


class Played(NamedTuple):
    """An episode of a task's expert, or of random actions where the task has none."""

    observations: list[Observation]
    """Observations before every step and at the end: one more than steps."""
    rewards: list[float]
    outcome: str
    terminated: bool

    def end(self) -> str:
        """Tell how and where the episode ended, to the last bit."""
        last = np.concatenate([array.ravel() for array in self.observations[-1].values()])
        return f"{self.outcome} after {len(self.rewards)} steps at {last.tobytes().hex()}"


@pytest.fixture(scope="session")
def play() -> Callable[..., Played]:
    return play_episode


def play_episode(task: Task, env: Environment, seed: int, noise: float = 0.0) -> Played:
    rng = np.random.default_rng((seed, 2))
    observation, info = env.reset(seed=seed)
    space = task.spec.action
    act = task.expert(env, rng) if task.expert else lambda: rng.uniform(space.low, space.high, space.shape)
    observations, rewards = [observation], []
    terminated = truncated = False
    while not (terminated or truncated):
        assert "outcome" not in info
        right = act()
        action = right + noise * rng.standard_normal(right.shape, np.float32)
        action = np.clip(action, space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    return Played(observations, rewards, info["outcome"], terminated)


@pytest.fixture(scope="session")
def simulators() -> Iterator[Callable[[str], Environment]]:
    """A simulator of each task, shared by all tests: an episode follows from its seed alone."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(closing(load_task(name).make())))


@pytest.fixture
def env(request: pytest.FixtureRequest, simulators: Callable[[str], Environment]) -> Environment:
    """A simulator of the `task` of the test's module."""
    return simulators(request.module.task.spec.name)
