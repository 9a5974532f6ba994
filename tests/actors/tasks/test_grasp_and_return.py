from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from actors.task import ActionError, Environment
from actors.tasks.grasp_and_return import PAD_Y, task


@pytest.fixture(scope="module")
def env() -> Iterator[Environment]:
    env = task.make()
    yield env
    env.close()


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_returns_the_cube(env: Environment, play: Callable[..., Any], noise: float) -> None:
    for seed in range(6):
        played = play(task, env, seed, noise)
        assert played.outcome == "success"
        assert 45 < len(played.rewards) < 110


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_succeeds_in_98_of_100(env: Environment, play: Callable[..., Any], noise: float) -> None:
    outcomes = [play(task, env, seed, noise).outcome for seed in range(200)]
    assert outcomes.count("success") >= 0.98 * len(outcomes)


def test_without_memory_the_expert_is_at_chance(env: Environment) -> None:
    """The same script, that guesses the side once the cube has been left alone in the middle."""
    outcomes = Counter(guessed(env, seed) for seed in range(24))
    assert set(outcomes) == {"success", "wrong"}
    assert 5 <= outcomes["wrong"] <= 19


def guessed(env: Environment, seed: int) -> str:
    env.reset(seed=seed)
    scene: Any = env.unwrapped
    origin, guess = scene.side, np.random.default_rng(seed).choice((-1, 1))
    expert = task.expert(env, np.random.default_rng(seed))
    while True:
        # The expert is told the guess, the environment judges by the origin.
        scene.side = guess if scene.visited else origin
        action, scene.side = expert(), origin
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return str(info["outcome"])


def test_the_expert_recovers_from_where_it_would_not_have_gone(env: Environment) -> None:
    for seed in range(4):
        env.reset(seed=seed)
        expert, rng = task.expert(env, np.random.default_rng(seed)), np.random.default_rng(seed)
        for step in range(task.spec.max_steps):
            astray = step % 30 in (12, 13, 14)
            action = rng.uniform(-1, 1, 4).astype(np.float32) if astray else expert()
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert info["outcome"] == "success"


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_a_bad_action_is_refused_by_name_and_value(env: Environment, bad: float) -> None:
    env.reset(seed=0)
    action = np.array((0, 0, bad, 0), np.float32)
    with pytest.raises(ActionError, match=rf"grasp_and_return: action\[2\] must be in \[-1, 1\], not {bad}"):
        env.step(action)


def test_a_simulator_that_diverges_says_so(env: Environment) -> None:
    env.reset(seed=0)
    scene: Any = env.unwrapped
    scene.data.qvel[:] = 1e12
    observation, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert (terminated, reward, info["outcome"]) == (True, 0.0, "invalid")
    assert all(np.isfinite(value).all() for value in observation.values())
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[2]
