"""Rules for every task that comes with Longview."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import longview.actors.tasks  # noqa: F401  (registers them with gymnasium)
from longview.actors.environment import checked_action
from longview.actors.task import ActionError, Environment, UnknownTask, load_task, task_names
from longview.replay.episode import ArraySpec, validate_step

IDS = {
    "count_scoops": "CountScoops",
    "counting": "Counting",
    "grasp_and_return": "GraspAndReturn",
    "lift": "Lift",
    "push_and_return": "PushAndReturn",
    "push_t": "PushT",
    "return_point": "ReturnPoint",
    "slide_puck": "SlidePuck",
    "square": "Square",
}


@pytest.fixture(params=sorted(IDS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def env(name: str, simulators: Callable[[str], Environment]) -> Environment:
    return simulators(name)


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """Ends of an episode of each task, played in another process by a new simulator."""
    script = f"""
import runpy
from longview.actors.task import load_task
play = runpy.run_path({str(Path(__file__).with_name("conftest.py"))!r})["play_episode"]
for name in {sorted(IDS)}:
    task = load_task(name)
    print(name, play(task, task.make(), seed=3, noise=0.1).end(), sep=":")
"""
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not out.stderr
    return dict(line.split(":") for line in out.stdout.splitlines())


def middle(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an action that the task accepts."""
    space = load_task(name).spec.action
    return np.full(space.shape, (space.low + space.high) / 2, np.float32)


def test_all_are_installed() -> None:
    assert set(task_names()) >= set(IDS)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownTask, match=r"'return_pont': installed are .*lift.*; did you mean return_point\?"
    ):
        load_task("return_pont")
    with pytest.raises(UnknownTask, match=r"; for recordings without a simulator: longview train DATASET$"):
        load_task("so101")


@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")
def test_it_is_a_gymnasium_environment(name: str) -> None:
    env = gymnasium.make(f"longview.actors.tasks:longview/{IDS[name]}-v0")
    check_env(env.unwrapped)
    env.close()


def test_the_same_seed_gives_the_same_episode_and_another_another(
    name: str, env: Environment, play: Callable[..., Any], elsewhere: dict[str, str]
) -> None:
    task = load_task(name)
    first = play(task, env, seed=3, noise=0.1)
    other = env.reset(seed=4)[0]
    for _ in range(10):  # something of it may be left behind
        if any(env.step(middle(name))[2:4]):
            break
    again = play(task, env, seed=3, noise=0.1)
    assert again.outcome == first.outcome
    np.testing.assert_array_equal(_flat(again.observations), _flat(first.observations))
    assert first.end() == elsewhere[name]
    assert not np.array_equal(_flat([other])[0], _flat(first.observations)[0])


def test_an_episode_without_a_seed_is_another_one(env: Environment) -> None:
    first, second = env.reset(seed=3)[0], env.reset()[0]
    assert not np.array_equal(_flat([first]), _flat([second]))


def test_steps_fit_the_spec(name: str, env: Environment, play: Callable[..., Any]) -> None:
    task = load_task(name)
    spec = task.spec
    assert spec.name == name
    for observation in play(task, env, seed=5).observations:
        assert env.observation_space.contains(observation)
        step = {f"observation.{key}": array for key, array in observation.items()}
        step |= {"action": np.zeros(spec.action.shape, np.float32), "reward": np.float32(0)}
        validate_step(step | {"controller": np.uint8(1)}, spec)


@pytest.mark.parametrize("name", sorted(IDS.keys() - {"counting"}))  # which has an end of its own
def test_doing_nothing_ends_at_the_time_limit_as_failure(name: str, env: Environment) -> None:
    env.reset(seed=0)
    max_steps, nothing = load_task(name).spec.max_steps, middle(name)
    for step in range(1, max_steps + 1):
        _, reward, terminated, truncated, info = env.step(nothing)
        assert 0 <= reward < 1
        assert (terminated, truncated) == (False, step == max_steps)
    assert info == {"outcome": "failure"}


def test_a_bad_action_is_refused_by_name_and_value(name: str, env: Environment) -> None:
    env.reset(seed=0)
    space = load_task(name).spec.action
    span, last = space.high - space.low, space.shape[0] - 1
    for bad in (np.nan, np.inf, -np.inf, space.high + span, space.low - span):
        action = middle(name)
        action[last] = bad
        message = f"task {name}: action[{last}] must be in [{space.low:g}, {space.high:g}], not {bad}"
        with pytest.raises(ActionError, match=re.escape(message)):
            env.step(action)
    with pytest.raises(ActionError, match=re.escape(f"must have shape ({last + 1},), not ({last + 2},)")):
        env.step(np.append(middle(name), np.float32(0)))
    env.step(middle(name))


def test_what_is_clipped_to_the_range_is_accepted() -> None:
    """The limits in float32 may lie a little outside of the range."""
    spec = replace(load_task("lift").spec, action=ArraySpec((2,), low=-0.1, high=0.7))
    clipped = np.array((-5, 5), np.float32).clip(spec.action.low, spec.action.high)
    assert clipped[0] < -0.1
    assert checked_action(spec, clipped) is clipped
    with pytest.raises(ActionError):
        checked_action(spec, np.nextafter(clipped, np.float32(9), dtype=np.float32))


def test_the_specs_need_no_simulator() -> None:
    script = """
import sys
from longview.actors.task import load_task, task_names
for name in task_names():
    assert load_task(name).spec.name == name
loaded = {"robosuite", "mujoco", "torch", "ray", "cv2"} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def _flat(observations: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.concatenate([array.ravel() for array in seen.values()]) for seen in observations])
