"""Tests of `longview evaluate` beyond those of whole runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
from longview.cluster.commands.evaluate import cameras_of, evaluate_checkpoint
from longview.cluster.run.config import ConfigError
from longview.learner.config import policy_config
from longview.learner.policy import policy_to_bytes

SMALL = policy_config(widths=(8,), groups=4, token_size=8)


def test_a_policy_is_evaluated_through_the_cameras_that_it_saw() -> None:
    cameras = CamerasConfig(("agentview", "robot0_eye_in_hand"), 60, instead_of=("cube_pos",))
    plain, seen = (load_task("grasp_and_return", some).spec for some in (CamerasConfig(), cameras))
    assert cameras_of(plain, seen) == {"names": list(cameras.names), "size": 60, "instead_of": ["cube_pos"]}
    assert cameras_of(plain, plain) == {}


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.safetensors"
    file.write_bytes(policy_to_bytes(SMALL.make(load_task("return_point").spec)))
    with pytest.raises(ConfigError, match=r"--adapter: .*: not an adapter of format longview-adapter-1"):
        evaluate_checkpoint(file, file, None, None, 4, 0, [], as_json=False)


def test_a_delay_that_leaves_no_time_for_a_decision_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.safetensors"
    file.write_bytes(policy_to_bytes(SMALL.make(load_task("return_point").spec)))
    with pytest.raises(
        ConfigError, match="--delay 5 exceeds half of the 8 actions of this policy's decisions"
    ):
        evaluate_checkpoint(file, None, None, None, 4, 0, [], delay=5, as_json=False)


def test_a_policy_that_carries_a_state_is_shown_no_other_history(tmp_path: Path) -> None:
    file = tmp_path / "policy.safetensors"
    recurrent = policy_config(kind="recurrent", token_size=8, hidden=12)
    file.write_bytes(policy_to_bytes(recurrent.make(load_task("return_point").spec)))
    with pytest.raises(ConfigError, match="history reversed does not go with"):
        evaluate_checkpoint(file, None, None, None, 4, 0, ["evaluation.history=reversed"], as_json=False)


def test_a_policy_of_a_task_without_a_simulator_is_refused(tmp_path: Path) -> None:
    spec = replace(load_task("counting").spec, name="recorded")
    file = tmp_path / "policy.safetensors"
    file.write_bytes(policy_to_bytes(SMALL.make(spec)))
    with pytest.raises(ConfigError, match="task with a simulator is evaluated: unknown task 'recorded'"):
        evaluate_checkpoint(file, None, None, None, 4, 0, [], as_json=False)
