"""Tests of the policy that a run begins from."""

from dataclasses import replace
from pathlib import Path

import pytest

from longview.actors.task import load_task
from longview.cluster.run.config import ConfigError, RunConfig, read_config
from longview.cluster.run.folder import Run
from longview.cluster.run.start import found_start, start_lines
from longview.learner.config import LearnerConfig, policy_config
from longview.learner.policy import policy_to_bytes

SMALL = policy_config(architecture="mlp", token_size=8, width=16, depth=1, heads=2)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return the config of a run that begins from a policy of another task, given by a relative path."""
    monkeypatch.chdir(tmp_path)
    Path("base.safetensors").write_bytes(policy_to_bytes(SMALL.make(load_task("lift").spec)))
    return RunConfig(learner=LearnerConfig(policy=SMALL, start_from="base.safetensors"))


def test_a_config_keeps_the_absolute_path(config: RunConfig, tmp_path: Path) -> None:
    found = found_start(config, None)
    assert found.learner.start_from == str(tmp_path / "base.safetensors")
    first, taken, *_ = start_lines(found, Run(tmp_path))
    assert first == f"training begins from {tmp_path}/base.safetensors"
    assert taken.startswith("taken: ")


def test_a_run_with_checkpoints_does_not_begin_again(config: RunConfig, tmp_path: Path) -> None:
    Path("base.safetensors").unlink()
    run = Run(tmp_path)
    with pytest.raises(ConfigError, match=r"learner\.start_from: base\.safetensors holds no policy"):
        found_start(config, run)
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    assert found_start(config, run) == config
    assert start_lines(config, run) == ()


def test_a_policy_of_which_nothing_fits_is_refused(config: RunConfig) -> None:
    recurrent = policy_config(kind="recurrent", token_size=16)
    other = replace(config, learner=replace(config.learner, policy=recurrent))
    with pytest.raises(
        ConfigError, match=r"nothing of .*base\.safetensors fits; .*kind diffusion there and rec"
    ):
        found_start(other, None)
    Path("base.safetensors").write_text("nothing")
    with pytest.raises(ConfigError, match=r"learner\.start_from .*not a policy of format"):
        found_start(other, None)


def test_adapters_need_a_policy_to_start_from() -> None:
    with pytest.raises(
        ConfigError, match=r"learner\.adapters\.rank 4 needs a trained policy: set learner\.start"
    ):
        read_config(None, ["learner.adapters.rank=4"])
    config = read_config(None, ["learner.adapters.rank=4", "learner.start_from=007"])
    assert config.learner.start_from == "007"
    with pytest.raises(ConfigError, match=r"learner\.adapters\.rank must not be negative: -1"):
        read_config(None, ["learner.adapters.rank=-1"])
