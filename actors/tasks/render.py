"""Pictures of MuJoCo scenes without a display: by a GPU where there is one, else by the CPU.

MuJoCo's own Renderer chooses its backend when mujoco is first imported, and by an environment variable with
which child processes may then fail to import mujoco. Freeing one Renderer also deletes what another one draws
with. Therefore this file uses only what lies below it: a GL context, a scene, a framebuffer.
"""

import atexit
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from longview.actors.task import SimulatorError

if TYPE_CHECKING:
    import mujoco

QUALITIES: dict[str, dict[str, int]] = {"fast": {"offsamples": 0, "shadowsize": 0}, "full": {}}
"""Changes to the model's own settings: samples per pixel, and the shadow map's pixels a side."""
COLLISION_GROUP = 0
"""Group of the geoms that robosuite's models use for collisions alone."""
BACKENDS = ("egl", "osmesa", "glfw")
"""Values of MUJOCO_GL; the last one needs a display."""
INSTALL = "install the system packages libegl1 and libgl1, or libosmesa6"


class RendererError(SimulatorError):
    """This machine cannot render, or not what was asked for; the message says what to do."""


class Renderer:
    """A renderer of one model at one size, for the thread that made it.

    Equal renderers of one model share its meshes and textures (some 200 MB), which are freed with the last of
    them, or at exit.
    """

    def __init__(self, model: "mujoco.MjModel", size: int, quality: str = "fast") -> None:
        """
        Args:
            model: the model to render.
            size: pixels a side.
            quality: `full` has shadows, reflections and smooth edges; `fast` has none of them and takes a
                quarter of the time on a CPU.

        Raises:
            RendererError: there is no such quality, or this machine cannot render.
        """
        if quality not in QUALITIES:
            raise RendererError(f"quality must be one of {', '.join(QUALITIES)}, not {quality!r}")
        self._model, self._size = model, size
        self._canvas: _Canvas | None = _canvas(model, size, quality)

    def render(self, data: "mujoco.MjData", camera: str) -> NDArray[np.uint8]:
        """Draw the model in this state, (size, size, 3), as the camera of that name sees it.

        Raises:
            RendererError: the model has no such camera.
        """
        import mujoco

        assert self._canvas is not None, "closed"
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if view.fixedcamid < 0:
            known = ", ".join(self._model.camera(index).name for index in range(self._model.ncam))
            raise RendererError(f"the model has no camera {camera!r}, only {known or 'none'}")
        return self._canvas.draw(data, view, self._size)

    def close(self) -> None:
        """Give up what is shared; harmless when repeated."""
        self._canvas = None


class _Canvas:
    """A GL context that holds a model's meshes and textures, a framebuffer, and what is drawn next."""

    def __init__(self, model: "mujoco.MjModel", size: int, quality: str) -> None:
        import mujoco

        self._open = False
        self._model, self._options = model, mujoco.MjvOption()
        self._options.geomgroup[COLLISION_GROUP] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = quality == "full"
        framebuffer = _settings(model.vis.global_, offheight=size, offwidth=size)
        backend = _backend()
        try:
            with _private_environment():
                self._context = import_module(f"mujoco.{backend}").GLContext(size, size)
            self._context.make_current()
            with framebuffer, _settings(model.vis.quality, **QUALITIES[quality]):
                self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # mujoco, OpenGL and ctypes each raise their own
            raise RendererError(f"cannot render by {backend} ({error}); {INSTALL}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        self._open = True

    def draw(self, data: "mujoco.MjData", view: "mujoco.MjvCamera", size: int) -> NDArray[np.uint8]:
        """Draw a picture of the model in this state, (size, size, 3)."""
        import mujoco

        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, view, everything, self._scene)
        pixels, image = mujoco.MjrRect(0, 0, size, size), np.empty((size, size, 3), np.uint8)
        self._context.make_current()
        mujoco.mjr_render(pixels, self._scene, self._target)
        mujoco.mjr_readPixels(image, None, pixels, self._target)
        return image[::-1].copy()  # OpenGL counts rows from below

    def close(self) -> None:
        """Free everything; harmless when repeated."""
        if self._open:
            self._open = False
            # OpenGL frees by name, in whichever context is current.
            self._context.make_current()
            self._target.free()
            self._context.free()

    def __del__(self) -> None:
        with suppress(Exception):  # another thread may collect it, while the context is current in its own
            self.close()


_canvases: WeakValueDictionary[tuple[int, int, str], _Canvas] = WeakValueDictionary()
"""Canvases in use, by the id of their model, size and quality."""


def _canvas(model: "mujoco.MjModel", size: int, quality: str) -> _Canvas:
    key = (id(model), size, quality)
    canvas = _canvases.get(key)
    if canvas is None:
        canvas = _canvases[key] = _Canvas(model, size, quality)
        # Registered anew each time, so that it runs before the exit handler by which mujoco ends EGL.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    return canvas


def _close_all() -> None:
    for canvas in list(_canvases.values()):
        canvas.close()


def egl_device(visible: str | None, gpus: int, process: int) -> str | None:
    """Choose the GPU to render on, as MUJOCO_EGL_DEVICE_ID. None leaves it to mujoco: the first that works.

    EGL ignores CUDA_VISIBLE_DEVICES, so unless told otherwise every process renders on the first GPU.

    Args:
        visible: CUDA_VISIBLE_DEVICES; None if it is not set.
        gpus: number of GPUs of this machine.
        process: any number that differs between processes; it spreads them over the GPUs.
    """
    ids = [str(index) for index in range(gpus)]
    if visible is not None:
        ids = [index for index in visible.split(",") if index in ids]  # a UUID says nothing to EGL
    return ids[process % len(ids)] if ids else None


@cache
def _backend() -> str:
    """Choose the backend, once: OpenGL cannot change its mind within a process."""
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked:
        if asked not in BACKENDS:
            raise RendererError(f"MUJOCO_GL must be one of {', '.join(BACKENDS)} to render, not {asked!r}")
        return asked
    if _has_egl_device():
        return "egl"
    with suppress(OSError):
        ctypes.CDLL("libOSMesa.so.8")
        return "osmesa"
    raise RendererError(f"cannot render without EGL or OSMesa: {INSTALL}")


def _has_egl_device() -> bool:
    with suppress(OSError, AttributeError):
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        if address := egl.eglGetProcAddress(b"eglQueryDevicesEXT"):
            count = ctypes.c_int()
            query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)
            return bool(query(0, None, ctypes.byref(count))) and count.value > 0
    return False


@contextmanager
def _settings(part: Any, **values: int) -> Iterator[None]:
    """Change a part of a model's settings for as long as the context lasts."""
    before = {name: getattr(part, name) for name in values}
    try:
        for name, value in values.items():
            setattr(part, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(part, name, value)


@contextmanager
def _private_environment() -> Iterator[None]:
    """Tell EGL the device, and hide from child processes what mujoco tells OpenGL: they may need another."""
    before = dict(os.environ)
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    device = egl_device(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus, os.getpid())
    if device is not None:
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", device)
    try:
        yield
    finally:
        for name in ("MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM"):
            if name not in before:
                os.environ.pop(name, None)
