from collections import Counter
from typing import Any

import numpy as np

from longview.actors.task import Environment
from longview.actors.tasks.push_and_return import FLOOR, HOVER, MIDDLE, PUCK, RING, SLOTS, START, task


def test_a_puck_returned_to_another_slot_is_wrong(env: Environment) -> None:
    """The expert is told another slot once the puck has been left alone on the mark."""
    for seed in range(4):
        assert led_astray(env, seed, by=seed + 1) == "wrong"


def led_astray(env: Environment, seed: int, by: int) -> str:
    env.reset(seed=seed)
    scene: Any = env.unwrapped
    origin = scene.origin
    expert = task.expert(env, np.random.default_rng(seed))
    while True:
        # The expert is told one slot, the simulator judges by the other.
        scene.origin = (origin + by * scene.visited) % len(SLOTS)
        action, scene.origin = expert(), origin
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return str(info["outcome"])


def test_it_may_find_the_puck_anywhere(env: Environment) -> None:
    """The expert has no phase that it could be wrong about, so it can label any state of a policy."""
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


def test_the_puck_slides_as_fast_as_the_hand_that_pushes_it(env: Environment) -> None:
    """With a friction of 1 it is pressed onto the table, and jams after 33 mm along x."""
    scene: Any = env.unwrapped
    for seed, angle in enumerate(np.arange(0, 2 * np.pi, np.pi / 4)):
        env.reset(seed=seed)
        ahead = np.array((np.cos(angle), np.sin(angle), 0.0))
        scene.put(scene.puck, (*(MIDDLE - 0.04 * ahead[:2]), PUCK[1]))
        start = np.append(MIDDLE - 0.12 * ahead[:2], FLOOR)
        for place in (np.append(start[:2], HOVER), start):
            for _ in range(25):
                env.step(scene.go(place - scene.hand))
        before = scene.position(scene.puck)
        for _ in range(12):
            env.step(scene.go(0.03 * ahead + (0, 0, FLOOR - scene.hand[2])))
        assert (scene.position(scene.puck) - before) @ ahead > 0.115


def test_a_puck_that_was_not_left_on_the_mark_is_not_returned(env: Environment) -> None:
    """Withdrawing above the slot where the puck lies ends nothing."""
    env.reset(seed=0)
    scene: Any = env.unwrapped
    above = np.append(scene.position(scene.puck)[:2], 0.14)
    for _ in range(60):
        _, reward, terminated, _, info = env.step(scene.go(above - scene.hand))
        assert (reward, terminated, info) == (0.0, False, {})
    np.testing.assert_allclose(scene.hand, above, atol=0.01)


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
        away = np.abs(hands[slots == slot].mean(axis=0) - hands.mean(axis=0))
        assert (away < np.ptp(START, axis=0) / 4).all()
