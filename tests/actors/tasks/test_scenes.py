"""Simulators that share a compiled scene do bit for bit what simulators with a scene of their own do."""

import hashlib
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice, zip_longest
from typing import Any

import mujoco
import numpy as np
import pytest

from longview.actors.config import NO_CAMERAS, CamerasConfig
from longview.actors.task import Task, load_task
from longview.actors.tasks.arm import import_robosuite

ARM_TASKS = ("count_scoops", "grasp_and_return", "lift", "push_and_return", "square")
CAMERAS = CamerasConfig(("agentview", "robot0_eye_in_hand"))


@contextmanager
def made(task: Task, render_mode: str | None = None) -> Iterator[Any]:
    with closing(task.make(render_mode)) as env:
        yield env


@contextmanager
def made_alone(task: Task) -> Iterator[Any]:
    """Make a simulator whose scene robosuite has compiled for it alone, visuals included."""
    with made(task) as env:
        env.simulator = env.build(import_robosuite())
        yield env


def episode(task: Task, env: Any, seed: int) -> Iterator[str]:
    """Play the noisy expert; yield a digest of the physical state and of what is seen, then the outcome."""
    rng, space = np.random.default_rng(seed), task.spec.action
    seen, ended, info = env.reset(seed=seed)[0], False, {}
    assert task.expert is not None
    act = task.expert(env, rng)
    while not ended:
        data = env.data
        arrays = (data.qpos, data.qvel, data.qacc, data.ctrl, data.efc_force, *seen.values())
        yield hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:8]
        right = act()
        noisy = right + 0.05 * rng.standard_normal(right.shape, np.float32)
        action = np.clip(noisy, space.low, space.high).astype(np.float32)
        seen, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    yield info["outcome"]


def content(model: mujoco.MjModel) -> bytes:
    """Return all that the model holds."""
    held = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, held)
    return held.tobytes()


@pytest.mark.parametrize(
    ("name", "cameras", "steps"),
    [
        *((name, NO_CAMERAS, (30, None)) for name in ARM_TASKS),
        # A picture takes as long as five steps.
        ("lift", CAMERAS, (6, 12)),
    ],
)
def test_two_that_are_stepped_in_turn_do_what_each_does_alone(
    name: str, cameras: CamerasConfig, steps: tuple[int, int | None]
) -> None:
    """The second episode follows a reset; where nothing is said, it is whole."""
    task = load_task(name, cameras)
    with made(task) as one, made(task) as other, made_alone(task) as alone:
        assert one.model is other.model
        before = content(one.model)
        for seed, length in enumerate(steps):

            def played(env: Any, seed: int, length: int | None = length) -> Iterator[str]:
                return islice(episode(task, env, seed), length)

            turns = list(zip_longest(played(one, seed), played(other, seed + 10)))
            for turn, follows in zip(zip(*turns, strict=True), (seed, seed + 10), strict=True):
                assert [step for step in turn if step] == list(played(alone, follows))
        assert content(one.model) == before


def test_a_scene_that_nobody_looks_at_is_a_twentieth_of_the_other_and_has_the_same_parts() -> None:
    task = load_task("lift")
    with made(task) as unseen, made(task, "rgb_array") as drawn, made_alone(task) as alone:
        for env in (unseen, drawn, alone):
            env.reset(seed=0)
        assert content(drawn.model) == content(alone.model)
        assert 20 * mujoco.mj_sizeModel(unseen.model) < mujoco.mj_sizeModel(drawn.model)
        names = {
            env: [env.model.geom(index).name for index in range(env.model.ngeom)] for env in (unseen, drawn)
        }
        assert names[unseen] == names[drawn]


def test_a_mesh_that_decides_on_a_mass_stays() -> None:
    from longview.actors.tasks.scenes import without_visuals

    seen = '<geom type="mesh" mesh="m" material="red" contype="0" conaffinity="0"/>'
    xml = f"""
<mujoco>
  <asset>
    <material name="red"/>
    <mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/>
  </asset>
  <worldbody>
    <body><freejoint/>{seen}</body>
    <body><freejoint/><inertial pos="0 0 0" mass="2" diaginertia="1 1 1"/>{seen}</body>
  </worldbody>
</mujoco>"""
    whole, small = (mujoco.MjModel.from_xml_string(scene) for scene in (xml, without_visuals(xml)))
    assert (small.geom_dataid >= 0).tolist() == [True, False]
    assert (small.nmat, whole.nmat) == (0, 1)
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_array_equal(getattr(small, name), getattr(whole, name))


def test_a_write_to_a_shared_model_is_refused() -> None:
    with made(load_task("lift")) as env:
        with pytest.raises(ValueError, match="read-only"):
            env.model.body_pos[1] = 0.0
        with pytest.raises(ValueError, match="read-only"):
            env.simulator.sim.model.geom_rgba[0] = 0.0


def test_other_simulators_of_robosuite_have_models_of_their_own() -> None:
    task = load_task("lift")
    with made(task) as env, made_alone(task) as one, made_alone(task) as other:
        assert len({id(each.model) for each in (env, one, other)}) == 3
        one.model.body_pos[1] = 0.0
        assert one.simulator.robots[0].robot_model.mujoco_model is not None


def test_a_model_is_freed_with_its_last_simulator() -> None:
    with made(load_task("lift", CamerasConfig(("frontview",)))) as env:
        model = weakref.ref(env.model)
        with made(load_task("lift", CamerasConfig(("birdview",)))) as other:
            assert other.model is model()
        assert model() is env.model
    del env, other
    assert model() is None
