import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.task import Environment
from actors.tasks import lift


@pytest.fixture(scope="module")
def env() -> Iterator[Environment]:
    env = lift.make()
    yield env
    env.close()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_expert_lifts_the_cube_quickly(env: Environment, play: Callable[..., Any], noise: float) -> None:
    for seed in range(5):
        played = play(lift, env, seed, noise)
        assert (played.outcome, played.terminated) == ("success", True)
        assert played.rewards == [0.0] * (len(played.rewards) - 1) + [1.0]
        assert len(played.rewards) < 60


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_expert_succeeds_in_98_of_100(env: Environment, play: Callable[..., Any], noise: float) -> None:
    outcomes = [play(lift, env, seed, noise).outcome for seed in range(200)]
    assert outcomes.count("success") >= 0.98 * len(outcomes)


@pytest.mark.parametrize("gripper", [-1.0, 1.0])
def test_the_expert_recovers_from_where_it_would_not_have_gone(env: Environment, gripper: float) -> None:
    """It has no phase that it could be wrong about, so it can label what a policy got itself into."""
    env.reset(seed=11)
    expert = lift.expert(env, np.random.default_rng(0))
    astray = np.array((0.5, 0.4, -1.0, 0.1, -0.2, 0.3, gripper), np.float32)
    for step in range(lift.spec.max_steps):
        action = astray if step < 20 else expert()
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    assert info["outcome"] == "success"


def test_doing_nothing_ends_at_the_time_limit_as_failure(env: Environment) -> None:
    env.reset(seed=0)
    for step in range(1, lift.spec.max_steps + 1):
        _, _, terminated, truncated, info = env.step(np.zeros(7, np.float32))
        assert not terminated
        assert truncated == (step == lift.spec.max_steps)
    assert info["outcome"] == "failure"


def test_start_and_cube_differ_between_episodes(env: Environment) -> None:
    starts = [env.reset(seed=seed)[0] for seed in range(20)]
    assert np.ptp([start["object"][:2] for start in starts], axis=0).min() > 0.03
    assert np.ptp([start["robot0_eef_pos"] for start in starts], axis=0).min() > 0.01


def test_another_process_gives_the_same_episode(env: Environment) -> None:
    script = """
import sys
import numpy as np
from actors.tasks import lift
env = lift.make()
env.reset(seed=int(sys.argv[1]))
for action in np.random.default_rng(0).uniform(-1, 1, (30, 7)).astype(np.float32):
    seen = env.step(action)[0]
print(*(float(value).hex() for array in seen.values() for value in array))
"""
    out = subprocess.run([sys.executable, "-c", script, "21"], check=True, capture_output=True, text=True)
    assert not out.stderr
    env.reset(seed=3)
    env.step(np.ones(7, np.float32))
    env.reset(seed=21)
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 7)).astype(np.float32):
        seen = env.step(action)[0]
    theirs = [float.fromhex(text) for text in out.stdout.split()]
    assert theirs == [float(value) for array in seen.values() for value in array]


def test_an_action_that_is_not_finite_is_refused(env: Environment) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"lift: action\[0\] must be in \[-1, 1\], not nan"):
        env.step(np.full(7, np.nan, np.float32))


def test_no_renderer_is_asked_for_in_child_processes(env: Environment) -> None:
    assert "MUJOCO_GL" not in os.environ


def test_a_missing_libgl_names_the_package(tmp_path: Path) -> None:
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({message!r})\n")
    out = subprocess.run(
        [sys.executable, "-c", "from actors.tasks import lift; lift.make()"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1
    assert "install the system package libgl1" in out.stderr.splitlines()[-1]


def test_a_mujoco_that_robosuite_does_not_work_with_is_named() -> None:
    script = "import mujoco; mujoco.__version__ = '3.10.0'; from actors.tasks import lift; lift.make()"
    out = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert out.returncode == 1
    assert "robosuite does not work with mujoco 3.10.0; pip install" in out.stderr.splitlines()[-1]
