"""What every task that comes with Longview must do."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import actors.tasks  # noqa: F401  (registers them with gymnasium)
from actors.task import Environment, UnknownTask, load_task, task_names
from replay.episode import validate_step

IDS = {
    "count_scoops": "CountScoops",
    "counting": "Counting",
    "grasp_and_return": "GraspAndReturn",
    "lift": "Lift",
    "push_and_return": "PushAndReturn",
    "return_point": "ReturnPoint",
    "square": "Square",
}


@pytest.fixture(params=sorted(IDS), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def env(name: str) -> Iterator[Environment]:
    env = load_task(name).make()
    yield env
    env.close()


def test_all_are_installed() -> None:
    assert set(task_names()) >= set(IDS)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownTask, match=r"'return_pont': installed are .*lift.*; did you mean return_point\?"
    ):
        load_task("return_pont")
    with pytest.raises(UnknownTask, match=r"square$"):
        load_task("zzz")


@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")
def test_it_is_a_gymnasium_environment(name: str) -> None:
    env = gymnasium.make(f"actors.tasks:longview/{IDS[name]}-v0")
    check_env(env.unwrapped)
    env.close()


def test_the_same_seed_gives_the_same_episode_and_another_another(
    name: str, env: Environment, play: Callable[..., Any]
) -> None:
    task = load_task(name)
    first = play(task, env, seed=3, noise=0.1)
    other = play(task, env, seed=4, noise=0.1)
    again = play(task, env, seed=3, noise=0.1)
    fresh_env = task.make()
    fresh = play(task, fresh_env, seed=3, noise=0.1)
    fresh_env.close()
    for played in (again, fresh):
        assert played.outcome == first.outcome
        np.testing.assert_array_equal(_flat(played.observations), _flat(first.observations))
    assert not np.array_equal(_flat(other.observations)[0], _flat(first.observations)[0])


def test_an_episode_without_a_seed_is_another_one(env: Environment) -> None:
    first, second = env.reset(seed=3)[0], env.reset()[0]
    assert not np.array_equal(_flat([first]), _flat([second]))


def test_steps_fit_the_spec(name: str, env: Environment, play: Callable[..., Any]) -> None:
    spec = load_task(name).spec
    assert spec.name == name
    for observation in play(load_task(name), env, seed=5).observations:
        assert env.observation_space.contains(observation)
        step = {f"observation.{key}": array for key, array in observation.items()}
        validate_step(
            step | {"action": np.zeros(spec.action.shape, np.float32), "reward": np.float32(0)}, spec
        )


def test_the_specs_need_no_simulator() -> None:
    script = """
import sys
from actors.task import load_task, task_names
for name in task_names():
    assert load_task(name).spec.name == name
loaded = {"robosuite", "mujoco", "torch", "ray", "cv2"} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def _flat(observations: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.concatenate(list(observation.values())) for observation in observations])
