"""The compiled control law against robosuite's own."""

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from longview.actors.tasks import lift
from longview.actors.tasks.arm import ArmEnv, import_robosuite, settings


@pytest.fixture(scope="module")
def stock() -> Iterator[Any]:
    simulator = import_robosuite().make("Lift", **settings(lift.spec))
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def ours() -> Iterator[Any]:
    simulator = import_robosuite().make("Lift", **settings(lift.spec))
    yield simulator
    simulator.close()


def reset(simulator: Any, seed: int) -> None:
    simulator.rng = simulator.placement_initializer.rng = np.random.default_rng(seed)
    simulator.reset()


def both(stock: Any, ours: Any, seed: int) -> Any:
    from longview.actors.tasks.osc import Arm

    reset(stock, seed)
    reset(ours, seed)
    return Arm(ours, ArmEnv.posture_kp)


def distance(stock: Any, ours: Any) -> float:
    one, other = stock.sim.data._data, ours.sim.data._data
    return max(np.abs(getattr(one, name) - getattr(other, name)).max() for name in ("qpos", "qvel"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_step_from_equal_states_is_the_same(stock: Any, ours: Any, seed: int) -> None:
    """Actions in the air, and pushing on the table and the cube; right after a soft reset and later."""
    arm, rng = both(stock, ours, seed), np.random.default_rng(seed)
    touched = 0
    for step in range(60):
        action = rng.uniform(-1, 1, 7)
        action[2] = np.clip(action[2] + (-0.9 if step < 45 else 0.3), -1, 1)
        mujoco.mj_copyData(ours.sim.data._data, ours.sim.model._model, stock.sim.data._data)
        seen = stock.step(action)[0]
        arm.step(action[:3], action[3:6], action[6])
        touched += stock.sim.data._data.ncon > 4
        assert distance(stock, ours) <= 1e-9, step
        np.testing.assert_allclose(arm.hand, seen["robot0_eef_pos"], atol=1e-9)
    assert touched > 5


def test_two_hundred_steps_in_the_air_are_the_same(stock: Any, ours: Any) -> None:
    arm, rng = both(stock, ours, 3), np.random.default_rng(3)
    home = np.add(arm.hand, (0, 0, 0.1))
    for _ in range(200):
        towards = np.clip(5 * (home - arm.hand), -0.5, 0.5)
        action = np.concatenate((towards, np.zeros(3), [0])) + rng.uniform(-0.5, 0.5, 7)
        stock.step(action)
        arm.step(action[:3], action[3:6], action[6])
    assert distance(stock, ours) <= 1e-6
    assert np.abs(arm.hand - home).max() < 0.1


def test_an_absolute_orientation_is_held(ours: Any) -> None:
    from longview.actors.tasks.arm import DOWN
    from longview.actors.tasks.osc import Arm

    reset(ours, 4)
    arm, rng = Arm(ours, ArmEnv.posture_kp), np.random.default_rng(4)
    for _ in range(60):
        arm.step_towards(rng.uniform(-1, 1, 3) * (1, 1, 0.2), DOWN, -1.0)
    for _ in range(20):
        arm.step_towards(np.zeros(3), DOWN, -1.0)
    assert np.abs(arm.axes - DOWN).max() < 0.02
