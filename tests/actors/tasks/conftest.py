from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from actors.task import Environment, Observation, Task


class Played(NamedTuple):
    """One episode of a task's expert."""

    observations: list[Observation]
    """What was seen before every step, and at the end: one more than there are steps."""
    rewards: list[float]
    outcome: str
    terminated: bool


@pytest.fixture(scope="session")
def play() -> Callable[..., Played]:
    return _play


def _play(task: Task, env: Environment, seed: int, noise: float = 0.0) -> Played:
    rng = np.random.default_rng((seed, 2))
    observation, info = env.reset(seed=seed)
    assert task.expert is not None
    expert = task.expert(env, rng)
    observations, rewards = [observation], []
    terminated = truncated = False
    while not (terminated or truncated):
        assert "outcome" not in info
        right = expert()
        action = right + noise * rng.standard_normal(right.shape, np.float32)
        action = np.clip(action, task.spec.action.low, task.spec.action.high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    return Played(observations, rewards, info["outcome"], terminated)
