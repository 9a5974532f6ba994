from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longview.actors.task import Environment
from longview.actors.tasks.square import task


def nut(scene: Any) -> Any:
    return scene.data.body(scene.simulator.nuts[0].root_body)


def test_the_expert_puts_the_nut_around_the_peg(env: Environment, play: Callable[..., Any]) -> None:
    scene: Any = env.unwrapped
    for seed in range(6, 9):
        assert play(task, env, seed, noise=0.1).outcome == "success"
        away = nut(scene).xpos - scene.data.body("peg1").xpos
        assert np.abs(away[:2]).max() < 0.01
        assert away[2] < 0.02  # the peg ends at 0.1: the nut is well around it


@pytest.mark.parametrize("height", [0.87, 0.95])
def test_the_expert_picks_up_what_it_dropped(env: Environment, height: float) -> None:
    scene: Any = env.unwrapped
    for seed in range(4):
        env.reset(seed=seed)
        expert = task.expert(env, np.random.default_rng(seed))
        since, fallen = 0, False
        for _ in range(task.spec.max_steps):
            action = expert()
            since += since > 0 or nut(scene).xpos[2] > height
            if 0 < since <= 10:
                action[6] = -1.0
            fallen |= since > 0 and nut(scene).xpos[2] < 0.835
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert fallen
        assert info["outcome"] == "success"


def test_object_is_what_robosuite_calls_object_state(env: Environment) -> None:
    scene: Any = env.unwrapped
    env.reset(seed=4)
    for action in np.random.default_rng(4).uniform(-1, 1, (5, 7)).astype(np.float32):
        seen = env.step(action)[0]
    # Its relative pose follows from what was sensed the time before: only now is that the same.
    for _ in range(2):
        theirs = scene.simulator._get_observations(force_update=True)
    np.testing.assert_allclose(seen["object"], theirs["object-state"], atol=1e-6)
    for name in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        np.testing.assert_allclose(seen[name], theirs[name], atol=1e-6)


def test_start_and_nut_differ_between_episodes(env: Environment) -> None:
    starts = [env.reset(seed=seed)[0] for seed in range(20)]
    assert np.ptp([start["object"][8] for start in starts]) > 0.08  # its place in y
    yaws = np.array([2 * np.arctan2(start["object"][12], start["object"][13]) for start in starts])
    assert {int(quarter) for quarter in yaws % (2 * np.pi) // (np.pi / 2)} == {0, 1, 2, 3}
    assert np.ptp([start["robot0_eef_pos"] for start in starts], axis=0).min() > 0.01
