"""Tests of `longview evaluate` beyond those of whole runs."""

from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
from longview.cluster.commands.evaluate import cameras_of


def test_a_policy_is_evaluated_through_the_cameras_that_it_saw() -> None:
    cameras = CamerasConfig(("agentview", "robot0_eye_in_hand"), 60, instead_of=("cube_pos",))
    plain, seen = (load_task("grasp_and_return", some).spec for some in (CamerasConfig(), cameras))
    assert cameras_of(plain, seen) == {"names": list(cameras.names), "size": 60, "instead_of": ["cube_pos"]}
    assert cameras_of(plain, plain) == {}
