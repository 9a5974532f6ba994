import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from actors.task import ActionError, Environment
from actors.tasks.push_and_return import MIDDLE, RING, SLOTS, task


@pytest.fixture(scope="module")
def env() -> Iterator[Environment]:
    env = task.make()
    yield env
    env.close()


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_returns_the_puck(env: Environment, play: Callable[..., Any], noise: float) -> None:
    for seed in range(6):
        played = play(task, env, seed, noise)
        assert played.outcome == "success"
        assert 120 < len(played.rewards) < 240


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_expert_succeeds_in_98_of_100(env: Environment, play: Callable[..., Any], noise: float) -> None:
    outcomes = [play(task, env, seed, noise).outcome for seed in range(200)]
    assert outcomes.count("success") >= 0.98 * len(outcomes)


def test_a_puck_returned_to_another_slot_is_wrong(env: Environment) -> None:
    """The same script, told another slot once the puck has been left alone on the mark."""
    for seed in range(4):
        assert led_astray(env, seed, by=seed + 1) == "wrong"


def led_astray(env: Environment, seed: int, by: int) -> str:
    env.reset(seed=seed)
    scene: Any = env.unwrapped
    origin = scene.origin
    expert = task.expert(env, np.random.default_rng(seed))
    while True:
        # The expert is told one slot, the environment judges by the other.
        scene.origin = (origin + by * scene.visited) % len(SLOTS)
        action, scene.origin = expert(), origin
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return str(info["outcome"])


def test_the_expert_recovers_from_where_it_would_not_have_gone(env: Environment) -> None:
    for seed in range(4):
        env.reset(seed=seed)
        expert, rng = task.expert(env, np.random.default_rng(seed)), np.random.default_rng(seed)
        for step in range(task.spec.max_steps):
            astray = step % 40 in (12, 13, 14)
            action = rng.uniform(-1, 1, 3).astype(np.float32) if astray else expert()
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                break
        assert info["outcome"] == "success"


def test_it_may_find_the_puck_anywhere(env: Environment) -> None:
    """It has no phase that it could be wrong about, so it can label what a policy got itself into."""
    scene: Any = env.unwrapped
    for seed, visited in enumerate((False, False, True, True)):
        env.reset(seed=seed)
        expert = task.expert(env, np.random.default_rng(seed))
        scene.since = int(visited)
        scene.put(scene.puck, (*(MIDDLE + 0.8 * RING * np.random.default_rng(seed).uniform(-1, 1, 2)), 0.02))
        while True:
            _, _, terminated, truncated, info = env.step(expert())
            if terminated or truncated:
                break
        assert info["outcome"] == "success"


def test_a_puck_that_was_not_left_on_the_mark_is_not_returned(env: Environment) -> None:
    """To withdraw above the slot where it lies ends nothing, before the time limit."""
    env.reset(seed=0)
    scene: Any = env.unwrapped
    above = np.append(scene.position(scene.puck)[:2], 0.14)
    for step in range(1, task.spec.max_steps + 1):
        _, _, terminated, truncated, info = env.step(scene.towards(above - scene.hand, 1.0)[:3])
        assert not terminated
        assert truncated == (step == task.spec.max_steps)
    assert np.abs(scene.hand - above).max() < 0.01
    assert info["outcome"] == "failure"


def test_all_slots_occur_and_nothing_else_depends_on_them(env: Environment) -> None:
    starts = [env.reset(seed=seed)[0] for seed in range(60)]
    pucks = np.array([start["puck_pos"][:2] for start in starts])
    away = np.linalg.norm(pucks[:, None] - SLOTS, axis=2)
    assert away.min(axis=1).max() < 0.015
    slots = away.argmin(axis=1)
    assert min(Counter(slots.tolist()).values()) >= 5
    hands = np.array([start["hand_pos"] for start in starts])
    assert np.ptp(hands, axis=0).min() > 0.02
    for slot in range(len(SLOTS)):
        assert np.abs(hands[slots == slot].mean(axis=0) - hands.mean(axis=0)).max() < 0.02


def test_another_process_gives_the_same_episode(env: Environment) -> None:
    script = """
import numpy as np
from actors.tasks.push_and_return import task
env = task.make()
env.reset(seed=21)
expert = task.expert(env, np.random.default_rng(21))
for _ in range(60):
    seen = env.step(expert())[0]
print(*(float(value).hex() for array in seen.values() for value in array))
"""
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not out.stderr
    env.reset(seed=3)
    env.step(np.ones(3, np.float32))
    start, _ = env.reset(seed=21)
    expert = task.expert(env, np.random.default_rng(21))
    for _ in range(60):
        seen = env.step(expert())[0]
    assert np.abs(seen["puck_pos"] - start["puck_pos"]).max() > 0.05
    theirs = [float.fromhex(text) for text in out.stdout.split()]
    assert theirs == [float(value) for array in seen.values() for value in array]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_a_bad_action_is_refused_by_name_and_value(env: Environment, bad: float) -> None:
    env.reset(seed=0)
    with pytest.raises(ActionError, match=rf"push_and_return: action\[2\] must be in \[-1, 1\], not {bad}"):
        env.step(np.array((0, 0, bad), np.float32))


@pytest.mark.slow
def test_nothing_tells_the_slot_once_the_puck_lies_on_the_mark(env: Environment) -> None:
    """Neighbours in what is seen, and in the joints, came from any slot; at the start from the same one."""
    scene: Any = env.unwrapped
    origins, starts, middles = [], [], []
    for seed in range(200):
        rng = np.random.default_rng((seed, 2))
        observation, _ = env.reset(seed=seed)
        expert, frames = task.expert(env, rng), []
        while not scene.visited:
            frames.append(np.concatenate((*observation.values(), scene.data.qpos[:7], scene.data.qvel[:7])))
            action = np.clip(expert() + 0.02 * rng.standard_normal(3), -1, 1).astype(np.float32)
            observation, _, terminated, truncated, _ = env.step(action)
            assert not terminated
            assert not truncated
        origins.append(scene.origin)
        starts.append(frames[0])
        middles.append(frames[-30:])
    assert told(np.array(starts), np.array(origins)) > 0.6
    for frame in np.array(middles).swapaxes(0, 1)[::5]:
        assert told(frame, np.array(origins)) < 0.3


def told(frames: np.ndarray[Any, Any], origins: np.ndarray[Any, Any]) -> float:
    """Share of episodes whose slot is the most frequent one among their 15 nearest neighbours'."""
    frames = (frames - frames.mean(0)) / (frames.std(0) + 1e-4)
    distances = np.linalg.norm(frames[:, None] - frames[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    votes = origins[np.argsort(distances, axis=1)[:, :15]]
    guesses = [np.bincount(row, minlength=len(SLOTS)).argmax() for row in votes]
    return float(np.mean(guesses == origins))
