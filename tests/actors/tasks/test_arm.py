"""Simulators of the tasks with a robot arm: divergence, and what can be missing on a machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longview.actors.task import Environment


def test_a_simulator_that_diverges_says_so(simulators: Callable[[str], Environment]) -> None:
    env = simulators("grasp_and_return")
    env.reset(seed=0)
    scene: Any = env.unwrapped
    scene.data.qvel[:] = 1e12
    observation, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert (terminated, reward, info["outcome"]) == (True, 0.0, "invalid")
    assert all(np.isfinite(value).all() for value in observation.values())
    env.reset(seed=0)
    assert not env.step(np.zeros(4, np.float32))[2]


def test_no_renderer_is_asked_for_in_child_processes(simulators: Callable[[str], Environment]) -> None:
    simulators("lift")
    assert "MUJOCO_GL" not in os.environ


def refusal(before: str = "", path: Path | None = None) -> str:
    """Return the last line that a process prints when it cannot make a simulator.

    Args:
        before: code that it runs first.
        path: a folder whose modules it finds before installed ones.
    """
    script = "from longview.actors.task import load_task, make_simulator; make_simulator(load_task('lift'))"
    out = subprocess.run(
        [sys.executable, "-c", f"{before}\n{script}"],
        env=os.environ | ({"PYTHONPATH": str(path)} if path else {}),
        check=False,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1
    return out.stderr.splitlines()[-1]


def test_a_missing_libgl_names_the_package(tmp_path: Path) -> None:
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({message!r})\n")
    assert "install the system package libgl1" in refusal(path=tmp_path)


def test_a_mujoco_that_robosuite_does_not_work_with_is_named() -> None:
    said = refusal("import mujoco; mujoco.__version__ = '3.10.0'")
    assert "SimulatorError: task lift: robosuite does not work with mujoco 3.10.0; pip install" in said


def without(package: str, missing: Path, folder: Path) -> Path:
    """Link all files of an installed package but one into a folder; return the path of that one."""
    installed = find_spec(package)
    assert installed is not None
    assert installed.origin is not None
    theirs, ours = Path(installed.origin).parent, folder / package
    for part in missing.parts:
        ours.mkdir()
        for path in theirs.iterdir():
            if path.name != part:
                (ours / path.name).symlink_to(path)
        theirs, ours = theirs / part, ours / part
    return ours


@pytest.mark.parametrize(
    ("asset", "rest", "named"),
    [
        ("robots/panda/robot.xml", None, "robot.xml"),
        ("robots/panda/robot.xml", "<mujoco>", "no element found"),
        ("robots/panda/meshes/link0.stl", None, "link0.stl"),
    ],
)
def test_a_model_file_that_is_missing_or_damaged_is_one_line(
    tmp_path: Path, asset: str, rest: str | None, named: str
) -> None:
    file = without("robosuite", Path("models/assets", asset), tmp_path)
    if rest is not None:
        file.write_text(rest)
    said = refusal(path=tmp_path)
    assert "SimulatorError: task lift: robosuite cannot build its scene (" in said
    assert named in said
    assert said.endswith("; reinstall robosuite, its files may be damaged")
