from collections import Counter
from typing import Any

import numpy as np

from longview.actors.task import Environment
from longview.actors.tasks.grasp_and_return import PAD_Y, task


def test_without_memory_the_expert_is_at_chance(env: Environment) -> None:
    """The expert guesses the side once the cube has been left alone in the middle."""
    outcomes = Counter(guessed(env, seed) for seed in range(24))
    assert set(outcomes) == {"success", "wrong"}
    assert 5 <= outcomes["wrong"] <= 19


def guessed(env: Environment, seed: int) -> str:
    env.reset(seed=seed)
    scene: Any = env.unwrapped
    origin, guess = scene.side, np.random.default_rng(seed).choice((-1, 1))
    expert = task.expert(env, np.random.default_rng(seed))
    while True:
        # The expert is told the guess, the simulator judges by the origin.
        scene.side = guess if scene.visited else origin
        action, scene.side = expert(), origin
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return str(info["outcome"])


def test_a_cube_that_was_not_left_in_the_middle_is_not_returned(env: Environment) -> None:
    """Opening the gripper over the pad where it lies ends nothing."""
    env.reset(seed=0)
    for _ in range(10):
        _, _, terminated, _, info = env.step(np.array((0, 0, 0, -1), np.float32))
        assert not terminated
        assert not info


def test_both_sides_occur_and_nothing_else_depends_on_them(env: Environment) -> None:
    starts = [env.reset(seed=seed)[0] for seed in range(40)]
    sides = np.array([np.sign(start["cube_pos"][1]) for start in starts])
    assert 10 < (sides > 0).sum() < 30
    assert all(abs(abs(start["cube_pos"][1]) - PAD_Y) < 0.03 for start in starts)
    hands = np.array([start["hand_pos"] for start in starts])
    assert np.ptp(hands, axis=0).min() > 0.02
