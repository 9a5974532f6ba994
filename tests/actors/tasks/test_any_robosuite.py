"""Environments of robosuite as tasks: their keys, robots and cameras, and robomimic's files of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.config import NO_CAMERAS, ActorsConfig, CamerasConfig, EnvironmentConfig
from longview.actors.task import Environment, Task, UnknownTask, columns_of, load_task
from longview.actors.worker import Order, Worker
from longview.cluster.run.services import redis_server
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.datasets.formats import open_source
from longview.replay.errors import DatasetError
from longview.replay.store import EpisodeStore

CAN, HANG, TRANSPORT = "robosuite:PickPlaceCan", "robosuite:ToolHang", "robosuite:TwoArmTransport"
SHORT = EnvironmentConfig(max_steps=4)
ARM = {"eef_pos": (3,), "eef_quat": (4,), "gripper_qpos": (2,)}
SHAPES = {
    CAN: {**{f"robot0_{key}": shape for key, shape in ARM.items()}, "object": (14,)},
    HANG: {**{f"robot0_{key}": shape for key, shape in ARM.items()}, "object": (44,)},
    TRANSPORT: {
        **{f"robot{robot}_{key}": shape for robot in (0, 1) for key, shape in ARM.items()},
        "object": (41,),
    },
}
"""Observations that robomimic's low-dimensional policies see, and their shapes."""


class Random:
    """A policy that acts at random."""

    execute = 4

    def __init__(self, task: Task) -> None:
        self._shape = (self.execute, *task.spec.action.shape)

    def act(self, slots: Sequence[int], *others: Any) -> NDArray[np.float32]:
        return np.stack([rng.uniform(-1, 1, self._shape) for rng in others[-1]]).astype(np.float32)


def seen(simulator: Environment, seed: int) -> NDArray[np.float32]:
    """Return what is observed in a short episode of an action, (steps, numbers)."""
    rows = [simulator.reset(seed=seed)[0]]
    for _ in range(2):
        rows.append(simulator.step(np.full(simulator.action_space.shape, 0.5, np.float32))[0])
    return np.stack([np.concatenate([array.ravel() for array in row.values()]) for row in rows])


@pytest.mark.parametrize(("name", "actions"), [(CAN, 7), (TRANSPORT, 14)])
def test_episodes_reach_the_store_under_robomimics_names(tmp_path: Path, name: str, actions: int) -> None:
    task, hub = load_task(name, environment=SHORT), Hub()
    spec = task.spec
    assert {key: array.shape for key, array in spec.observation.items()} == SHAPES[name]
    assert (spec.name, spec.action.shape, spec.action.low, spec.action.high) == (name, (actions,), -1, 1)
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(spec)
        worker = Worker(task, ActorsConfig(simulators=1), 7, "actor-0", store, hub.report)
        result = worker.work(Order("rollout", 0, 2, context_length=1, version=1), Random(task))
        assert result.outcomes == {"failure": 2}
        assert [store.read(id).length for id in store.ids("rollout")] == [4, 4]
        store.close()
    simulator = worker.envs[0]
    first, other, again = (seen(simulator, seed) for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    simulator.close()
    if name == TRANSPORT:  # its objects draw at random too
        fresh = task.make()
        np.testing.assert_array_equal(seen(fresh, 0), first)
        fresh.close()


def test_robot_controller_rate_and_keys_follow_the_settings() -> None:
    settings = EnvironmentConfig(
        arguments={"robots": "Sawyer", "controller_configs": "JOINT_POSITION"},
        keys=("object", "robot0_joint_pos"),
        control_hz=10,
    )
    task = load_task("robosuite:Lift", environment=settings)
    assert {key: array.shape for key, array in task.spec.observation.items()} == {
        "object": (10,),
        "robot0_joint_pos": (7,),
    }
    assert (task.spec.action.shape, task.spec.control_hz) == ((8,), 10)
    simulator: Any = task.make()
    assert simulator.simulator.control_freq == 10
    assert type(simulator.simulator.robots[0].robot_model).__name__ == "Sawyer"
    simulator.close()


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("PickPlaceCa", {}, r"robosuite has no environment 'PickPlaceCa'; did you mean PickPlaceCan\?"),
        ("Lift", {"success": 1.0}, r"^environment\.success: robosuite:Lift tells itself"),
        ("Lift", {"keys": ("cube",)}, r"^environment\.keys: robosuite:Lift has no cube, only robot0_joint_"),
        ("Lift", {"arguments": {"robots": "Pandaa"}}, r"\{'robots': 'Pandaa'\}: KeyError: 'Pandaa'"),
    ],
)
def test_what_does_not_exist_is_told(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownTask, match=words):
        load_task(f"robosuite:{name}", environment=EnvironmentConfig(**settings))


def test_cameras_are_those_of_the_environment() -> None:
    with pytest.raises(ValueError, match=r"has no cameras sideview: it has frontview, .*robot0_eye_in_hand"):
        load_task(CAN, CamerasConfig(("sideview",)))
    task = load_task(CAN, CamerasConfig(("agentview",), 32, instead_of=("object",)))
    assert task.spec.observation["agentview_image"].shape == (32, 32, 3)
    assert "object" not in task.spec.observation


@pytest.mark.slow
def test_cameras_draw() -> None:
    task = load_task(TRANSPORT, CamerasConfig(("shouldercamera0", "robot1_eye_in_hand"), 32))
    simulator = task.make("rgb_array")
    pictures = [simulator.reset(seed=seed)[0] for seed in (0, 1)]
    for camera in ("shouldercamera0", "robot1_eye_in_hand"):
        one, other = (picture[f"{camera}_image"] for picture in pictures)
        assert one.std() > 5
        assert not np.array_equal(one, other)
    assert np.asarray(simulator.render()).shape == (256, 256, 3)
    simulator.close()


def recorded(path: Path, name: str) -> Path:
    """Write a file as robomimic's dataset_states_to_obs.py makes it, recorded in robosuite itself."""
    task = load_task(name, NO_CAMERAS, SHORT)
    simulator: Any = task.make()
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        made = {"env_name": name.partition(":")[2], "type": 1}
        data.attrs["env_args"] = json.dumps(made | {"env_kwargs": {"robots": ["Panda"], "control_freq": 20}})
        data.attrs["total"] = 6 * 5
        for number in range(6):
            simulator.reset(seed=number)
            rows: dict[str, list[Any]] = {}
            actions = rng.uniform(-1, 1, (5, 7))
            for action in actions:
                for key in (*SHAPES[name], "robot0_joint_pos"):
                    rows.setdefault(key, []).append(simulator.seen[key])
                simulator.act(action)
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = 5
            demo["actions"], demo["rewards"], demo["dones"] = actions, np.eye(5)[4], np.eye(5)[4]
            for key, values in rows.items():
                demo[f"obs/{key}"] = np.array(values)
    simulator.close()
    return path


@pytest.fixture(scope="module")
def can_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("can") / "can.hdf5", CAN)


@pytest.mark.parametrize(("name", "max_steps"), [(CAN, 400), (HANG, 700)])
def test_robomimics_demonstrations_fit_without_renaming(tmp_path: Path, name: str, max_steps: int) -> None:
    task = load_task(name)
    assert task.spec.max_steps == max_steps
    source = open_source(recorded(tmp_path / "recorded.hdf5", name), name, task.spec, columns_of(task))
    episode = source.read(1)
    assert {key: array.shape[1:] for key, array in episode.arrays.items() if "obs" in key} == {
        f"observation.{key}": shape for key, shape in SHAPES[name].items()
    }
    assert source.account.left_out["obs/robot0_joint_pos"] == f"{name} has no such array"
    simulator = task.make()
    first = {key: array[0] for key, array in episode.arrays.items()}
    for key, row in simulator.reset(seed=1)[0].items():
        np.testing.assert_array_equal(first[f"observation.{key}"], row)
    simulator.close()


def test_keys_that_a_file_lacks_are_all_named_with_what_to_do(can_file: Path) -> None:
    keys = ("robot0_joint_vel", "robot0_gripper_qvel", "object")
    spec = load_task(CAN, environment=EnvironmentConfig(keys=keys)).spec
    words = (
        r"there is no observation\.robot0_joint_vel and no observation\.robot0_gripper_qvel, from which "
        r".*; there are action, observation\.object, .*environment\.keys chooses"
    )
    with pytest.raises(DatasetError, match=words):
        open_source(can_file, CAN, spec)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_learns_from_robomimics_demonstrations(longview: Any, can_file: Path) -> None:
    code, output = longview(
        *("demo", "--task", CAN, f"demonstrations={can_file}", "name=can", "environment.max_steps=6"),
        *("actors.count=1", "actors.simulators=1", "learner.steps=4", "learner.warmup=2"),
        *("learner.batch_size=8", "learner.policy.widths=[8]", "learner.policy.groups=4"),
        *("learner.policy.token_size=8", "evaluation.episodes=0", "evaluation.final_episodes=1"),
        *("learner.validation_episodes=1", "evaluation.context_lengths=[1, 4]"),
    )
    assert code == 0, output
    summary = json.loads((longview.folder / "runs" / "can" / "summary.json").read_text())
    assert summary["success"][CAN]["4"]["episodes"] == 1
    (imported,) = summary["episodes"]
    assert (imported["source"], imported["episodes"]) == ("import", 6)
