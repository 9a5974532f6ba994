"""Tests of robomimic files: from robomimic's scripts, exported, and damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from longview.actors.tasks import lift
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.robomimic import RobomimicReader, simulator_arguments, write
from longview.replay.episode import validate_episode
from longview.replay.errors import DatasetError

OLD = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
"""Controller of the files that were published with robomimic."""
ARM = {"type": "OSC_POSE", "input_type": "delta", "input_ref_frame": "base", "gripper": {"type": "GRIP"}}
NEW = {"type": "BASIC", "body_parts": {"arms": {"right": ARM}, "torso": {"type": "JOINT_POSITION"}}}
LENGTHS = {"demo_0": 5, "demo_2": 3, "demo_10": 8}
"""Lengths of the demonstrations. demo_1 is missing, and as text demo_10 sorts before demo_2."""


def env_args(config: Any) -> str:
    kwargs = {
        "robots": ["Panda"],
        "control_freq": 20,
        "controller_configs": config,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "reward_shaping": False,
    }
    return json.dumps({"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a file like robomimic's scripts: float64, states and models, no reward before the cube is up."""
    rng = np.random.default_rng(0)
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"], data.attrs["env_args"] = sum(LENGTHS.values()), env_args(OLD)
        for name, steps in LENGTHS.items():
            demo = data.create_group(name)
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["rewards"] = (np.arange(steps) == steps - 1) * float(name != "demo_2")
            demo["dones"], demo["states"] = np.zeros(steps, np.int64), rng.normal(size=(steps, 32))
            for key, spec in lift.spec.observation.items():
                demo[f"obs/{key}"] = rng.uniform(-1, 1, (steps, *spec.shape))
                demo[f"next_obs/{key}"] = demo[f"obs/{key}"][()]
        file["mask/train"] = np.array(["demo_0", "demo_10"], "S")
        file["mask/valid"] = np.array(["demo_2"], "S")
    return path


def test_demonstrations_of_robomimic_are_those_of_our_task(file: Path) -> None:
    source = open_source(file, "lift", lift.spec)
    found = [source.read(index) for index in source.indices]
    with h5py.File(file) as raw:
        for episode, name in zip(found, LENGTHS, strict=True):
            validate_episode(episode, lift.spec)
            demo = raw["data"][name]
            np.testing.assert_array_equal(episode.arrays["action"], demo["actions"][()].astype(np.float32))
            np.testing.assert_array_equal(episode.arrays["reward"], demo["rewards"][()])
            for key in lift.spec.observation:
                expected = demo[f"obs/{key}"][()].astype(np.float32)
                np.testing.assert_array_equal(episode.arrays[f"observation.{key}"], expected)
    # Other demonstrations have rewards, so the one without any has failed.
    assert [episode.outcome for episode in found] == ["success", "failure", "success"]
    assert [episode.extras["masks"] for episode in found] == [["train"], ["valid"], ["train"]]
    assert found[0].extras["env_args"] == env_args(OLD)


def test_the_spec_of_a_file_follows_from_it(file: Path) -> None:
    spec = open_source(file, "cube").spec
    assert (spec.name, spec.control_hz, spec.max_steps, spec.demonstrations) == ("cube", 20.0, 8, 3)
    assert {key: array.shape for key, array in spec.observation.items()} == {
        key: array.shape for key, array in lift.spec.observation.items()
    }
    # What was measured is no limit: another file of this task may go beyond.
    assert (spec.action.low, spec.action.high) == (float("-inf"), float("inf"))


def test_arrays_in_groups_below_obs_are_observations(file: Path) -> None:
    with h5py.File(file, "a") as raw:
        for name, steps in LENGTHS.items():
            raw[f"data/{name}/obs/arm/joint_pos"] = np.full((steps, 7), steps)
            raw[f"data/{name}/actions_abs"] = np.full((steps, 7), -steps)
            raw[f"data/{name}/obs/text"] = np.array(["lift"] * steps, "S")
        raw["extra"] = np.zeros(3)
        raw.create_group("data/take_1")
    source = open_source(file, "cube")
    np.testing.assert_array_equal(source.read(1).arrays["observation.arm/joint_pos"], np.full((3, 7), 3))
    assert source.account.left_out == {
        "extra": "not `data` or `mask`",
        "data/take_1": "not named demo_<number>",
        "data/demo_*/next_obs": "repeats the observations of the next step",
        "data/demo_*/states": "an episode has no field for the simulator's state",
        "data/demo_*/dones": "an episode ends with its last step",
        "actions_abs": "not an observation, action or reward by robomimic's rules",
        "obs/text": "text",
    }
    absolute = open_source(file, "cube", choice=Choice(map={"actions_abs": "action"}))
    np.testing.assert_array_equal(absolute.read(1).arrays["action"], np.full((3, 7), -3))
    assert absolute.account.left_out["actions"] == "--map gives the name action to actions_abs"


def test_null_attributes_are_none(file: Path) -> None:
    with h5py.File(file, "a") as raw:
        raw["data"].attrs["env_args"] = h5py.Empty("S1")
        del raw["data/demo_0"].attrs["num_samples"]
        raw["data/demo_2"].attrs["num_samples"] = h5py.Empty("i8")
    source = open_source(file, "cube", hz=30)
    assert (source.spec.control_hz, source.spec.max_steps) == (30.0, 8)
    assert [source.read(index).length for index in source.indices] == list(LENGTHS.values())


@pytest.mark.parametrize("text", ["null", '{"env_name": null, "env_kwargs": null}'])
def test_null_in_env_args_is_none(file: Path, text: str) -> None:
    with h5py.File(file, "a") as raw:
        raw["data"].attrs["env_args"] = text
    assert open_source(file, "cube", hz=30).spec.control_hz == 30.0


def test_a_damaged_attribute_is_told_or_skipped(file: Path) -> None:
    with h5py.File(file, "a") as raw:
        raw["data"].attrs["env_args"] = "{"
    with pytest.raises(DatasetError, match=r"low_dim\.hdf5: data, attribute env_args is damaged"):
        open_source(file, "cube", hz=30)
    source = open_source(file, "cube", hz=30, choice=Choice(skip_bad=True))
    assert len(source.account.bad) == 1
    assert len([source.read(index) for index in source.indices]) == 3


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        ("splits/train", np.array(["demo_0", "demo_10"], "S")),
        ("train", np.array(["demo_0", "demo_10"], h5py.string_dtype())),
        ("train", np.array([0, 10])),
        ("train", np.array([True, False, True])),
    ],
    ids=["in a group", "variable text", "numbers", "truth values"],
)
def test_masks_of_all_kinds_choose(file: Path, mask: str, values: Any) -> None:
    with h5py.File(file, "a") as raw:
        del raw["mask"]
        raw[f"mask/{mask}"] = values
    source = open_source(file, "cube", mask=mask)
    assert list(source.indices) == [0, 2]
    assert source.read(2).extras["masks"] == [mask]


def test_a_mask_that_names_a_missing_demonstration_matters_only_if_it_is_asked_for(file: Path) -> None:
    with h5py.File(file, "a") as raw:
        raw["mask/20_percent"] = np.array(["demo_10", "demo_17"], "S")
    source = open_source(file, "cube")
    assert source.read(2).extras["masks"] == ["20_percent", "train"]
    expected = "mask/20_percent names demo_17, which is not in the file"
    with pytest.raises(DatasetError, match=expected):
        open_source(file, "cube", mask="20_percent")
    some = open_source(file, "cube", mask="20_percent", choice=Choice(skip_bad=True))
    assert list(some.indices) == [2]
    assert some.account.bad == [f"{file}: {expected}"]


def test_an_array_of_few_demonstrations_does_not_condemn_the_others(file: Path) -> None:
    with h5py.File(file, "a") as raw:
        raw["data/demo_0/obs/debug"] = np.zeros((5, 2))
    with pytest.raises(
        DatasetError, match="obs/debug is in 1 of 3 demonstrations only: leave it out by --drop"
    ):
        open_source(file, "cube")
    source = open_source(file, "cube", choice=Choice(drop=["debug"]))
    assert len([source.read(index) for index in source.indices]) == 3


def test_filters_choose_and_keep_ids(file: Path) -> None:
    everything, train = (
        open_source(file, "lift", lift.spec),
        open_source(file, "lift", lift.spec, mask="train"),
    )
    assert list(train.indices) == [0, 2]
    assert train.id(2) == everything.id(2)
    with pytest.raises(DatasetError, match=r"low_dim.hdf5 has no filter 'test'; it has train, valid"):
        open_source(file, "lift", lift.spec, mask="test")


def test_an_export_is_a_file_of_robomimics(file: Path, tmp_path: Path) -> None:
    source = open_source(file, "lift", lift.spec)
    path = tmp_path / "again.hdf5"
    write(path, lift.spec, [source.read(index) for index in source.indices], lossless=True)
    with h5py.File(path) as again:
        data = again["data"]
        assert (data.attrs["total"], data.attrs["env_args"]) == (16, env_args(OLD))
        assert sorted(data) == ["demo_0", "demo_1", "demo_2"]
        assert {mask: again["mask"][mask][()].tolist() for mask in again["mask"]} == {
            "train": [b"demo_0", b"demo_2"],
            "valid": [b"demo_1"],
        }
        for name, steps in zip(sorted(data), LENGTHS.values(), strict=True):
            demo = data[name]
            assert demo.attrs["num_samples"] == steps
            assert demo["dones"][()].tolist() == [0] * (steps - 1) + [1]
            assert demo["actions"].shape == (steps, 7)
            assert demo["rewards"].shape == demo["dones"].shape == (steps,)
            assert demo["states"].shape[0] == steps
            assert demo["obs"].keys() == demo["next_obs"].keys() == lift.spec.observation.keys()
            for key, array in demo["obs"].items():
                np.testing.assert_array_equal(demo["next_obs"][key][:-1], array[1:])


def simulator(config: Any) -> Any:
    import robosuite

    name, arguments = simulator_arguments(env_args(config))
    return robosuite.make(name, **arguments)


@pytest.mark.slow
def test_an_old_controller_works_in_the_simulator_of_today() -> None:
    """The file's Lift can be made; its hand moves as with the old controller, by deltas in the world."""
    env = simulator(OLD)
    env.reset()
    hand = env.robots[0].part_controllers["right"]
    assert (hand.name, hand.input_type, hand.input_ref_frame) == ("OSC_POSE", "delta", "world")
    np.testing.assert_allclose(hand.kd, 2 * np.sqrt(150))
    start = env._get_observations()["robot0_eef_pos"]
    for _ in range(5):
        observation = env.step(np.array((1.0, 0, 0, 0, 0, 0, -1)))[0]
    moved = observation["robot0_eef_pos"] - start
    assert moved[0] > 0.03
    assert np.abs(moved[1:]).max() < 0.01
    env.close()


def test_controllers_of_robosuite_1_5_stay_what_they_are() -> None:
    """An arm below `arms`, as in robosuite's own files, moves to where robosuite's simulator expects it."""
    flat = {"type": "BASIC", "body_parts": {"right": ARM, "torso": {"type": "JOINT_POSITION"}}}
    for config in (NEW, flat):
        assert simulator_arguments(env_args(config))[1]["controller_configs"] == flat
    assert simulator_arguments(env_args([NEW, flat]))[1]["controller_configs"] == [flat, flat]
    joints = simulator_arguments(env_args({"type": "JOINT_POSITION", "kp": 50}))[1]["controller_configs"]
    assert joints["body_parts"]["right"] == {"type": "JOINT_POSITION", "kp": 50, "gripper": {"type": "GRIP"}}
    with pytest.raises(DatasetError, match="env_args do not describe an environment"):
        simulator_arguments("{}")


def remove(name: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


def put(name: str, change: Callable[[Any], Any]) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        rows = change(file[name][()])
        del file[name]
        file[name] = rows

    return damage


def attribute(place: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file[place].attrs[name] = value

    return damage


def with_value(value: float) -> Callable[[Any], Any]:
    def change(rows: Any) -> Any:
        rows[2, 0] = value
        return rows

    return change


BAD: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "missing": (remove("data/demo_2/obs/object"), "demo_2: obs/object is missing"),
    "no actions": (remove("data/demo_2/actions"), "demo_2: actions is missing"),
    "not a number": (
        put("data/demo_2/obs/object", with_value(np.nan)),
        "demo_2: obs/object holds values that are not finite, first in step 2",
    ),
    "wrong shape": (
        put("data/demo_2/obs/object", lambda rows: rows[:, :9]),
        r"demo_2: obs/object is \[3, 9\], expected \[3, 10\]",
    ),
    "too short": (
        put("data/demo_2/rewards", lambda rows: rows[:2]),
        r"demo_2: rewards is \[2\], expected \[3\] \(by num_samples\)",
    ),
    "other count": (
        attribute("data/demo_2", "num_samples", 4),
        r"demo_2: [\w/]+ is \[3, \d+\], expected \[4, \d+\] \(by num_samples\)",
    ),
    "out of range": (
        put("data/demo_2/actions", with_value(1.5)),
        r"demo_2: actions must lie in \[-1, 1\], not .* to 1.5",
    ),
    "ours damaged": (attribute("data/demo_2", "longview", "{"), "demo_2: attribute longview is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_demonstration_is_named_and_the_others_can_be_read(file: Path, case: str) -> None:
    damage, message = BAD[case]
    with h5py.File(file, "a") as raw:
        damage(raw)
    source = open_source(file, "lift", lift.spec)
    for index in (0, 2):
        validate_episode(source.read(index), lift.spec)
    with pytest.raises(DatasetError, match=message) as raised:
        source.read(1)
    assert str(file) in str(raised.value)


UNREADABLE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no data": (remove("data"), "is not a robomimic file"),
    "no observations": (
        lambda file: [remove(f"data/{name}/obs")(file) for name in LENGTHS] and None,
        "no demonstration has obs; robomimic's dataset_states_to_obs.py adds them",
    ),
    "ours": (attribute("data", "longview", "{}"), "data, attribute longview is damaged"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named(file: Path, case: str) -> None:
    damage, message = UNREADABLE[case]
    with h5py.File(file, "a") as raw:
        damage(raw)
    with pytest.raises(DatasetError, match=message) as raised:
        RobomimicReader(file)
    assert str(file) in str(raised.value)


def test_a_file_that_was_cut_short_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DatasetError, match=r"low_dim.hdf5 is not a robomimic file: .*truncated"):
        RobomimicReader(file)
