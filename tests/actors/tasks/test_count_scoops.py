from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longview.actors.task import Environment
from longview.actors.tasks.count_scoops import BUTTON, HOVER, PRESSED, RIM, SCOOPS, START, task


def test_the_expert_scoops_twice_and_presses(env: Environment, play: Callable[..., Any]) -> None:
    for seed in range(6, 9):
        played = play(task, env, seed, noise=0.02)
        assert played.outcome == "success"
        heights = np.array([seen["hand_pos"][2] for seen in played.observations])
        assert np.count_nonzero((heights[:-1] < RIM) & (heights[1:] >= RIM)) == SCOOPS


@pytest.mark.parametrize(("scoops", "outcome"), [(0, "failure"), (1, "wrong"), (2, "success"), (3, "wrong")])
def test_only_two_scoops_succeed(env: Environment, scoops: int, outcome: str) -> None:
    env.reset(seed=2)
    scene: Any = env.unwrapped
    expert = task.expert(env, np.random.default_rng(2))
    terminated = truncated = False
    while not (terminated or truncated):
        # The expert is told of two when it should press, and of none before; the simulator counts.
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


def test_the_first_scoop_comes_early_or_late(env: Environment) -> None:
    starts = np.array([env.reset(seed=seed)[0]["hand_pos"] for seed in range(30)])
    np.testing.assert_allclose(starts[:, 2], HOVER, atol=0.005)
    assert (starts[:, :2] > np.array(START[0]) - 0.01).all()
    assert (starts[:, :2] < np.array(START[1]) + 0.01).all()
    assert np.ptp(starts[:, 1]) > 0.8 * (START[1][1] - START[0][1])


def test_hovering_above_the_button_presses_nothing(env: Environment) -> None:
    env.reset(seed=0)
    scene: Any = env.unwrapped
    above = np.array((*BUTTON, PRESSED + 0.02))
    for _ in range(60):
        _, reward, terminated, _, info = env.step(scene.go(above - scene.hand))
        assert (reward, terminated, info) == (0.0, False, {})
    np.testing.assert_allclose(scene.hand, above, atol=0.01)
