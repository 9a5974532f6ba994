"""Tests of files for Rerun, read back by Rerun."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rerun.dataframe import load_recording

from longview.monitoring.rrd import Decision, Scene, write_rrd

HZ = 10.0


@pytest.fixture
def scene() -> Scene:
    """Return an episode of six steps, in which a person takes over, and a policy that decides twice."""
    grey = np.broadcast_to(np.arange(0, 240, 40, np.uint8)[:, None, None, None], (6, 16, 24, 3))
    state, action = np.arange(12.0).reshape(6, 2), np.linspace(-1, 1, 6)[:, None]
    attention = (np.array([0, 0, 0, 1], np.float32), np.array([0.5, 0, 0.25, 0.25], np.float32))
    return Scene(
        name="import.drawer%20one.000000001",
        pictures={"front": grey},
        numbers={"state": state, "action": action, "reward": np.zeros(6)},
        controllers=["a policy"] * 4 + ["a person"] * 2,
        outcome="success",
        facts="# an episode",
        decisions=[
            Decision(3 * number, np.full((3, 1), number, np.float32), shares)
            for number, shares in enumerate(attention)
        ],
    )


def read(file: Path, scene: Scene, entity: str, component: str, timeline: str = "step") -> dict[Any, Any]:
    """Read an entity's values by time."""
    view = load_recording(file).view(index=timeline, contents="/**")
    table = view.select().read_all()
    name = "/" + scene.name.replace("%", r"\%")
    column = f"{name}/{entity}:{component}"
    times, values = table[timeline].cast("int64").to_pylist(), table[column].to_pylist()
    return {at: value for at, value in zip(times, values, strict=True) if value is not None}


def test_an_episode_reads_back_as_it_was(tmp_path: Path, scene: Scene) -> None:
    file = tmp_path / "episodes.rrd"
    other = Scene(
        "import.drawer%20one.000000002", {}, {"state": np.zeros((2, 1))}, ["a person"] * 2, "wrong", ""
    )
    assert write_rrd(file, "drawer", [scene, other], HZ) == 2
    assert read(file, scene, "numbers/state", "Scalar") == dict(enumerate(scene.numbers["state"].tolist()))
    seconds = read(file, scene, "numbers/action", "Scalar", timeline="time")
    assert list(seconds) == [round(1e9 * step / HZ) for step in range(6)]
    pictures = read(file, scene, "cameras/front", "Blob")
    for step, frame in enumerate(scene.pictures["front"]):
        with Image.open(BytesIO(bytes(pictures[step][0]))) as picture:
            np.testing.assert_allclose(np.asarray(picture), frame, atol=4)
    assert read(file, scene, "controller", "Text") == {0: ["a policy"], 4: ["a person"]}
    assert read(file, scene, "outcome", "Text") == {5: ["success"]}
    assert read(file, other, "outcome", "Text") == {1: ["wrong"]}


def test_decisions_lie_at_the_steps_that_they_are_for(tmp_path: Path, scene: Scene) -> None:
    file = tmp_path / "episodes.rrd"
    write_rrd(file, "drawer", [scene], HZ)
    assert read(file, scene, "policy/action", "Scalar") == {step: [step // 3] for step in range(6)}
    attention = read(file, scene, "policy/attention", "TensorData")
    assert list(attention) == [0, 3]
    assert attention[3][0]["buffer"] == [0.5, 0, 0.25, 0.25]
    assert read(file, scene, "policy/seconds_back", "Scalar") == {0: [0], 3: [pytest.approx(0.175)]}
