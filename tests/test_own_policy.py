"""The example of a kind of policy in a package of its own, used as a reader of its README would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_policy"

USE = """
import json, sys
from pathlib import Path
import numpy as np
from longview.actors.task import load_task
from longview.cluster.run.config import read_config
from longview.learner.normalize import Statistics
from longview.learner.policy import load_policy, policy_to_bytes
from longview.learner.session import PolicySession

config = read_config(None, ["learner.policy.kind=mean_pool", "learner.policy.hidden=16"])
policy = config.learner.policy.make(load_task("return_point").spec)
one = np.ones(2, np.float32)
policy.fit({name: Statistics(-one, one, 0 * one, one) for name in ("observation.position", "action")})
Path("policy.safetensors").write_bytes(policy_to_bytes(policy))
session = PolicySession(load_policy("policy.safetensors"), slots=1)
frames, none = {"position": np.zeros((3, 2), np.float32)}, np.zeros((0, 2), np.float32)
actions = session.act([0], [frames], [none], np.array([True]), 8, [np.random.default_rng(0)])
print(json.dumps([type(policy).__name__, *actions.shape]))
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install the package into a folder, and return the environment in which Python finds it."""
    target = tmp_path / "installed"
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--no-build-isolation", "--target", target, source], check=True, timeout=120)
    paths = str(target), os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_a_package_of_one_file_adds_a_kind_of_policy(installed: dict[str, str], tmp_path: Path) -> None:
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=installed, capture_output=True, text=True, check=True
    )
    assert json.loads(used.stdout) == ["MeanPoolPolicy", 1, 8, 2]


@pytest.mark.slow
def test_a_run_trains_that_kind_of_policy(installed: dict[str, str], tmp_path: Path) -> None:
    tiny = ["actors.demonstrations=3", "actors.count=1", "actors.simulators=2", "learner.steps=6"]
    tiny += ["learner.warmup=1", "learner.publish_every=3", "learner.checkpoint_every=3", "name=own"]
    tiny += ["learner.validation_episodes=1", "evaluation.episodes=2", "evaluation.final_episodes=2"]
    command = [sys.executable, "-c", "from longview.cluster.cli import main; main()", "demo"]
    command += ["--task", "return_point", "learner.policy.kind=mean_pool", *tiny]
    ran = subprocess.run(
        command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = json.loads((tmp_path / "runs" / "own" / "summary.json").read_text())
    assert summary["config"]["learner"]["policy"]["kind"] == "mean_pool"
    assert summary["success"]["return_point"].keys() == {"1", "8", "16", "24", "32", "48", "64"}
