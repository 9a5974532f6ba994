"""Tests of the code and numbers that the pages of docs/ show."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
from longview.learner.config import architectures, policy_config
from longview.learner.policies.diffusion.config import SHARED
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import policy_to_bytes

DOCS = Path(__file__).parents[2] / "docs"


def test_the_loop_on_the_robots_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, gap = re.findall(r"```python\n(.*?)```", (DOCS / "robot.md").read_text(), re.DOTALL)
    (name,) = re.findall(r'load_policy\("(.*?)"\)', loop)
    path = tmp_path / name / "checkpoints" / "step-000008000" / "policy.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(policy_to_bytes(policy_config().make(load_task("lift").spec)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(loop, names)
    assert len(re.findall(r"^decided in \d+ ms$", capsys.readouterr().out, re.MULTILINE)) == 5
    assert names["actions"].shape == (8, 7)
    assert names["robot"].unwrapped.data.time == pytest.approx(40 / 20)
    exec(gap, names)
    assert names["lost"] == 7


def test_the_policies_page_counts_the_weights() -> None:
    """The table has the weights in millions for push_and_return, one column for each size."""
    page = (DOCS / "policies.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {name.strip("`"): counts for name, *counts in rows} == {
        **{
            name: [millions(made(size, name).denoiser) for size in SHARED]
            for name in architectures("diffusion")
        },
        "state": [millions(made(size).encoder) for size in SHARED],
        "each camera": [millions(made(size, cameras=1).encoder, made(size).encoder) for size in SHARED],
    }


def made(size: str, architecture: str = "unet_cross", cameras: int = 0) -> DiffusionPolicy:
    """Make a policy without memory for its weights."""
    names = ("agentview",)[:cameras]
    with torch.device("meta"):
        config = policy_config(architecture=architecture, size=size)
        made = config.make(load_task("push_and_return", CamerasConfig(names, 84)).spec)
    assert isinstance(made, DiffusionPolicy)
    return made


def millions(module: nn.Module, without: nn.Module | None = None) -> str:
    counts = [sum(weights.numel() for weights in each.parameters()) for each in (module, without) if each]
    return f"{(counts[0] - sum(counts[1:])) / 1e6:.2f}"
