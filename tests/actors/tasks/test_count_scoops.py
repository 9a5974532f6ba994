import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from actors.task import Environment
from actors.tasks.count_scoops import BUTTON, HOVER, PRESSED, RIM, SCOOPS, START, task


@pytest.fixture(scope="module")
def env() -> Iterator[Environment]:
    env = task.make()
    yield env
    env.close()


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_scoops_twice_and_presses(
    env: Environment, play: Callable[..., Any], noise: float
) -> None:
    for seed in range(10):
        played = play(task, env, seed, noise)
        assert (played.outcome, played.terminated, played.rewards[-1]) == ("success", True, 1.0)
        heights = np.array([seen["hand_pos"][2] for seen in played.observations])
        assert np.count_nonzero((heights[:-1] < RIM) & (heights[1:] >= RIM)) == SCOOPS


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_succeeds_in_98_of_100(env: Environment, play: Callable[..., Any], noise: float) -> None:
    outcomes = [play(task, env, seed, noise).outcome for seed in range(200)]
    assert outcomes.count("success") >= 0.98 * len(outcomes)


@pytest.mark.parametrize(("scoops", "outcome"), [(0, "failure"), (1, "wrong"), (2, "success"), (3, "wrong")])
def test_only_two_scoops_succeed(env: Environment, scoops: int, outcome: str) -> None:
    env.reset(seed=2)
    scene: Any = env.unwrapped
    expert = task.expert(env, np.random.default_rng(2))
    terminated = truncated = False
    while not (terminated or truncated):
        # The expert is told of two when it shall press, and of none before; the environment counts.
        counted = scene.scoops
        scene.scoops = SCOOPS if counted >= scoops else 0
        action, scene.scoops = expert(), counted
        _, reward, terminated, truncated, info = env.step(action)
    assert (info["outcome"], terminated, scene.scoops) == (outcome, True, scoops)
    assert reward == float(outcome == "success")


def test_dipping_in_and_leaving_at_the_side_is_no_scoop(env: Environment) -> None:
    env.reset(seed=0)
    scene: Any = env.unwrapped
    for place in ((0.0, -0.02, HOVER), (0.0, -0.02, 0.03), (0.0, 0.12, 0.03), (0.0, 0.12, HOVER)):
        for _ in range(20):
            env.step(scene.towards(place - scene.hand, 1.0)[:3])
        np.testing.assert_allclose(scene.hand, place, atol=0.01)
        assert scene.under == (place[2] < RIM)
    assert scene.scoops == 0


def test_the_expert_recovers_from_where_it_would_not_have_gone(env: Environment) -> None:
    for seed in range(4):
        env.reset(seed=seed)
        scene: Any = env.unwrapped
        expert, rng = task.expert(env, np.random.default_rng(seed)), np.random.default_rng(seed)
        for step in range(task.spec.max_steps):
            if step % 25 in (12, 13, 14):
                action = scene.towards(rng.uniform((-0.05, -0.05, -0.01), 0.05), 1.0)[:3]
            else:
                action = expert()
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert info["outcome"] == "success"


def test_the_first_scoop_comes_early_or_late(env: Environment) -> None:
    starts = np.array([env.reset(seed=seed)[0]["hand_pos"] for seed in range(30)])
    np.testing.assert_allclose(starts[:, 2], HOVER, atol=0.005)
    assert (starts[:, :2] > np.array(START[0]) - 0.01).all()
    assert (starts[:, :2] < np.array(START[1]) + 0.01).all()
    assert np.ptp(starts[:, 1]) > 0.8 * (START[1][1] - START[0][1])


def test_hovering_ends_at_the_time_limit_as_failure(env: Environment) -> None:
    env.reset(seed=0)
    scene: Any = env.unwrapped
    above = np.array((*BUTTON, PRESSED + 0.02))
    for step in range(1, task.spec.max_steps + 1):
        _, reward, terminated, truncated, info = env.step(scene.towards(above - scene.hand, 1.0)[:3])
        assert (reward, terminated, truncated) == (0.0, False, step == task.spec.max_steps)
    assert info == {"outcome": "failure"}


def test_another_process_gives_the_same_episode(env: Environment, play: Callable[..., Any]) -> None:
    script = """
import numpy as np
from actors.tasks.count_scoops import task
env = task.make()
env.reset(seed=21)
expert = task.expert(env, np.random.default_rng((21, 2)))
ended = False
while not ended:
    seen, _, terminated, truncated, info = env.step(expert())
    ended = terminated or truncated
    print(*(float(value).hex() for value in seen["hand_pos"]))
"""
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not out.stderr
    play(task, env, 3)
    played = play(task, env, 21)
    ours = [" ".join(float(value).hex() for value in seen["hand_pos"]) for seen in played.observations[1:]]
    assert out.stdout.splitlines() == ours
