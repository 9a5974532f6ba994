"""Rendering: robosuite's Lift, a small scene, and a machine without the libraries."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.task import load_task
from longview.actors.tasks.render import Renderer, RendererError, egl_device

CAMERAS = ("agentview", "robot0_eye_in_hand")

SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
    <geom group="1" type="sphere" size="0.5" pos="0 0 0.7" rgba="1 0 0 1"/>
    <geom group="1" type="box" size="0.4 0.4 0.4" pos="-0.7 0 -0.7" rgba="0 0 1 1"/>
    <geom group="0" type="sphere" size="0.5" pos="0.7 0 -0.7" rgba="0 1 0 1"/>
  </worldbody>
</mujoco>
"""

SCRIPT = f"""
import mujoco
from longview.actors.tasks.render import Renderer
model = mujoco.MjModel.from_xml_string('''{SCENE}''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
"""


@pytest.fixture(scope="module")
def lift() -> Iterator[Any]:
    env = load_task("lift").make("rgb_array")
    env.reset(seed=0)
    yield env.unwrapped
    env.close()


@pytest.fixture
def scene() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def picture(model: Any, data: Any, camera: str, size: int, quality: str = "fast") -> NDArray[np.uint8]:
    renderer = Renderer(model, size, quality)
    image = renderer.render(data, camera)
    renderer.close()
    return image


def red(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    wide = image.astype(int)
    return wide[..., 0] > 2 * wide[..., 1:].max(axis=-1) + 20


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    command = [sys.executable, "-c", SCRIPT + script]
    return subprocess.run(
        command, env=variables | environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("size", [84, 200])
@pytest.mark.parametrize("camera", CAMERAS)
def test_the_cube_is_seen(lift: Any, camera: str, size: int) -> None:
    image = picture(lift.model, lift.data, camera, size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert image.std() > 10
    assert 0.001 < red(image).mean() < 0.1


def test_full_is_what_robosuite_shows(lift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")  # as robosuite does, and leaves it
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    context = MjRenderContextOffscreen(lift.simulator.sim, device_id=-1)
    context.vopt.geomgroup[0] = 0
    theirs = [lift.simulator.sim.render(width=84, height=84, camera_name=camera)[::-1] for camera in CAMERAS]
    ours = [picture(lift.model, lift.data, camera, 84, "full") for camera in CAMERAS]
    np.testing.assert_array_equal(ours, theirs)


def test_fast_shows_the_same_without_shadows_and_smooth_edges(lift: Any) -> None:
    fast, full = (picture(lift.model, lift.data, "agentview", 84, quality) for quality in ("fast", "full"))
    difference = np.abs(fast.astype(int) - full)
    assert difference.max() > 50
    assert difference.mean() < 5


def test_pictures_are_upright_and_show_no_collision_geoms(scene: Any) -> None:
    image = picture(*scene, "front", 60).astype(int)
    assert image[15, 30, 0] > 100  # the red ball: above, in the middle
    assert image[45, 15, 2] > 100  # the blue box: below, on the left
    assert image[..., 1].max() < 60  # the green one only collides


def test_the_state_is_that_of_the_data(scene: Any) -> None:
    model, data = scene
    renderer = Renderer(model, 60)
    before = renderer.render(data, "front")
    np.testing.assert_array_equal(renderer.render(data, "front"), before)
    data.geom_xpos[0, 0] = 1.0
    after = renderer.render(data, "front")
    renderer.close()
    assert np.argwhere(red(after))[:, 1].mean() > np.argwhere(red(before))[:, 1].mean() + 10


def test_renderers_of_equal_models_do_not_disturb_each_other(scene: Any) -> None:
    model, data = scene
    first, second, large = (
        Renderer(model, 60),
        Renderer(mujoco.MjModel.from_xml_string(SCENE), 60),
        Renderer(model, 90),
    )
    expected = first.render(data, "front")
    first.close()
    first.close()
    assert large.render(data, "front").shape == (90, 90, 3)
    large.close()
    np.testing.assert_array_equal(second.render(data, "front"), expected)
    second.close()


def test_a_camera_that_is_not_there_names_those_that_are(scene: Any) -> None:
    with pytest.raises(RendererError, match="no camera 'back', only front"):
        picture(*scene, "back", 60)


def test_a_simulator_without_visuals_says_how_to_get_them() -> None:
    env = load_task("lift").make()
    env.reset(seed=0)
    with pytest.raises(RendererError, match="no visuals: make it with render_mode='rgb_array'"):
        env.render()
    env.close()


def test_an_unknown_quality_names_those_that_are_known(scene: Any) -> None:
    with pytest.raises(RendererError, match="fast, full, not 'good'"):
        picture(*scene, "front", 60, "good")


@pytest.mark.parametrize(
    "ending",
    [
        "renderer = Renderer(model, 60); renderer.render(data, 'front')",
        "renderer = Renderer(model, 60); renderer.render(data, 'front'); del renderer",
        "circle = [Renderer(model, 60)]; circle.append(circle); del circle; import gc; gc.collect()",
        "import threading; held = [Renderer(model, 60)]; held[0].render(data, 'front')\n"
        "thread = threading.Thread(target=held.clear); thread.start(); thread.join()",
    ],
    ids=["never", "by reference count", "in a circle", "by another thread"],
)
def test_a_renderer_that_was_not_closed_harms_nothing(ending: str) -> None:
    done = run(ending)
    assert (done.returncode, done.stderr) == (0, "")


def test_child_processes_are_told_nothing() -> None:
    script = "import os; before = dict(os.environ); Renderer(model, 60); assert dict(os.environ) == before"
    done = run(script, CUDA_VISIBLE_DEVICES="0")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_library_names_the_packages(tmp_path: Path) -> None:
    for name in ("libEGL.so.1", "libOSMesa.so.8"):
        (tmp_path / name).write_text("not a library")
    done = run("Renderer(model, 60)", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "cannot render without EGL or OSMesa: install the system packages libegl1 and libgl1, or libosmesa6"
    )


def test_the_backend_that_the_user_names_is_the_one(tmp_path: Path) -> None:
    done = run("import os; os.environ['MUJOCO_GL'] = 'glfw'; Renderer(model, 60)", DISPLAY=":nowhere")
    assert "RendererError: cannot render by glfw" in done.stderr.splitlines()[-1]
    done = run("import os; os.environ['MUJOCO_GL'] = 'off'; Renderer(model, 60)")
    assert "MUJOCO_GL must be one of egl, osmesa, glfw" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("visible", "gpus", "process", "device"),
    [
        (None, 0, 7, None),
        (None, 4, 7, "3"),
        ("2", 4, 7, "2"),
        ("0,2", 4, 6, "0"),
        ("0,2", 4, 7, "2"),
        ("", 4, 7, None),
        ("GPU-8932f937-d72c-4106", 4, 7, None),
        ("6", 1, 7, None),
    ],
    ids=["no GPU", "all", "one", "two", "the other", "hidden", "a UUID", "not in this container"],
)
def test_processes_are_spread_over_the_gpus_they_may_use(
    visible: str | None, gpus: int, process: int, device: str | None
) -> None:
    assert egl_device(visible, gpus, process) == device
