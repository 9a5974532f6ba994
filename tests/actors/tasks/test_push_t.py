import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from longview.actors.task import Environment
from longview.actors.tasks import push_t

PUBLISHED = os.environ.get("LONGVIEW_PUSHT_ZARR")


@pytest.fixture
def env() -> push_t.PushT:
    return push_t.PushT(push_t.spec)


def targets(seed: int, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 512, (count, 2)).astype(np.float32)


def rolled_out(env: Environment, seed: int, count: int = 60) -> NDArray[np.float32]:
    """Return the observations of an episode of random targets, (count, 20)."""
    env.reset(seed=seed)
    seen = [env.step(target)[0] for target in targets(seed, count)]
    return np.array([np.concatenate([array.ravel() for array in step.values()]) for step in seen])


def put_block(env: push_t.PushT, x: float, y: float, angle: float) -> None:
    """Place the block, out of reach of the disc."""
    simulator = env.simulator
    simulator.agent.position = (30.0, 30.0)
    simulator.block.angle = angle
    simulator.block.position = (x, y)


def test_the_same_seed_gives_the_same_trajectory_whatever_came_before(env: push_t.PushT) -> None:
    first = rolled_out(env, seed=3)
    assert not np.array_equal(rolled_out(env, seed=4), first)
    np.testing.assert_array_equal(rolled_out(env, seed=3), first)
    np.testing.assert_array_equal(rolled_out(push_t.PushT(push_t.spec), seed=3), first)
    assert np.ptp(first[:, :18], axis=0).min() > 1, "the block was never touched"


def test_it_stays_within_its_observation_space(env: push_t.PushT) -> None:
    """The disc may push the block through the walls."""
    corners = np.array([(0, 0), (512, 0), (512, 512), (0, 512)], np.float32)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        for step in range(100):
            assert env.observation_space.contains(observation)
            observation = env.step(corners[(step // 8 + seed) % 4])[0]


def test_all_points_lie_on_the_block(env: push_t.PushT) -> None:
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        env.simulator.space.reindex_shapes_for_body(env.simulator.block)
        for point in observation["keypoints"]:
            away = min(shape.point_query(tuple(point)).distance for shape in env.simulator.block.shapes)
            assert away < 3  # they were chosen on a picture of it


def test_points_turn_with_the_block() -> None:
    poses = np.array(((100.0, 200.0, 0.0), (100.0, 200.0, np.pi / 2)))
    ahead, turned = push_t.keypoints(poses) - poses[:, None, :2]
    np.testing.assert_allclose(ahead, push_t.KEYPOINTS)
    np.testing.assert_allclose(turned, push_t.KEYPOINTS[:, ::-1] * (-1, 1), atol=1e-9)


def test_the_disc_goes_to_its_target(env: push_t.PushT) -> None:
    env.reset(seed=0)
    put_block(env, 400, 400, 0)
    for _ in range(20):
        observation = env.step(np.array((100, 60), np.float32))[0]
    np.testing.assert_allclose(observation["agent_position"], (100, 60), atol=0.1)


@pytest.mark.parametrize(("aside", "outcome"), [(1.0, "success"), (12.0, None)])
def test_a_block_that_covers_its_outline_is_success(
    env: push_t.PushT, aside: float, outcome: str | None
) -> None:
    env.reset(seed=0)
    put_block(env, 256 + aside, 256, np.pi / 4)
    _, reward, terminated, truncated, info = env.step(np.array((30, 30), np.float32))
    assert (reward > 0.95, terminated, truncated) == (outcome is not None, outcome is not None, False)
    assert info.get("outcome") == outcome


def test_pictures_show_the_state_alone() -> None:
    env = push_t.make("rgb_array")
    env.reset(seed=1)
    first = env.render()
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.dtype) == ((512, 512, 3), np.uint8)
    rolled_out(env, seed=2, count=10)
    assert not np.array_equal(env.render(), first)
    env.reset(seed=1)
    np.testing.assert_array_equal(env.render(), first)


def test_nothing_is_printed() -> None:
    script = "from longview.actors.tasks import push_t; push_t.make().reset(seed=0)"
    out = subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True)
    assert (out.stdout, out.stderr) == (b"", b"")


@pytest.mark.slow
@pytest.mark.skipif(PUBLISHED is None, reason="LONGVIEW_PUSHT_ZARR names no replay buffer")
def test_the_published_demonstrations_happen_here_as_they_were_recorded(env: push_t.PushT) -> None:
    assert PUBLISHED is not None
    buffer = zarr.open_group(Path(PUBLISHED), mode="r")
    state, action, points = (buffer[f"data/{name}"][:] for name in ("state", "action", "keypoint"))

    away = np.abs(push_t.keypoints(state[:, 2:].astype(np.float64)) - points).max(axis=(1, 2))
    assert np.quantile(away, 0.75) < 1e-3  # the rest: see push_t.columns
    assert np.quantile(away, 0.99) < 0.1

    ends = buffer["meta/episode_ends"][:]
    errors = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        env.reset(seed=0)
        put_block(env, *state[start, 2:].tolist())
        env.simulator.agent.position = tuple(state[start, :2].tolist())
        for target in action[start : end - 1]:
            observation, *_ = env.step(target)
        expected = push_t.keypoints(state[end - 1, 2:].astype(np.float64))
        errors.append(np.abs(observation["keypoints"] - expected).max())
    assert np.median(errors) < 1e-3
