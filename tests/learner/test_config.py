import subprocess
import sys
from typing import Any

import pytest

from actors.task import load_task
from learner.config import CurriculumConfig, Horizon, LearnerConfig, PolicyConfig

SPEC = load_task("return_point").spec


def test_importing_the_config_loads_no_torch() -> None:
    code = "import sys, learner.config, learner.curriculum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_horizon_follows_the_task_unless_told_otherwise() -> None:
    assert PolicyConfig().horizon(SPEC) == Horizon(context=64, past=2, future=10, execute=8)
    assert PolicyConfig(context_length=8, past_actions="all", future_actions=9).horizon(SPEC).past == 7
    assert PolicyConfig(context_length=1).horizon(SPEC).past == 0


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (PolicyConfig(widths=(8, 8), future_actions=15), ["17", "divisible by 2", "16"]),
        (PolicyConfig(past_actions="all", widths=(8, 8), future_actions=16), ["79", "63", "17"]),
        (PolicyConfig(widths=(8, 8, 8), future_actions=16), ["18", "divisible by 4", "18"]),
    ],
)
def test_positions_that_do_not_fit_the_unet_are_named(config: PolicyConfig, values: list[str]) -> None:
    with pytest.raises(ValueError, match="T_p") as caught:
        config.horizon(SPEC)
    assert all(value in str(caught.value) for value in values)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (PolicyConfig, {"execute": 20, "future_actions": 14}, "execute 20 exceeds future_actions 14"),
        (PolicyConfig, {"widths": (30, 64)}, r"\[30, 64\] must be multiples of groups 8"),
        (PolicyConfig, {"kernel": 4}, "kernel must be odd, not 4"),
        (PolicyConfig, {"sampling_steps": 7}, "100 is not a multiple of sampling_steps 7"),
        (PolicyConfig, {"past_actions": "some"}, "past_actions .* not 'some'"),
        (PolicyConfig, {"context_length": 0}, "context_length .* not 0"),
        (PolicyConfig, {"dropout": 1.0}, r"dropout .* not 1\.0"),
        (CurriculumConfig, {"kind": "random"}, "not 'random'"),
        (CurriculumConfig, {"ramp": 0.0}, r"ramp .* not 0\.0"),
        (LearnerConfig, {"warmup": 10, "steps": 10}, "warmup 10 .*steps 10"),
        (LearnerConfig, {"mix": {"demos": 1.0}}, r"\['demos'\]"),
        (LearnerConfig, {"mix": {"demo": 0.0}}, "positive sum"),
        (LearnerConfig, {"batch_size": 0}, "batch_size must be positive, not 0"),
    ],
)
def test_wrong_values_are_named(kind: type, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**values)
