"""Compiled scenes: one MuJoCo model for all simulators of a process that have the same scene.

robosuite compiles its scene for every simulator anew. Such a model takes 58 to 65 MB: 3 MB of physics, and
meshes and textures that are only seen. A shared model must never change, so its arrays are read-only. What an
episode changes belongs into MuJoCo's data, of which each simulator has its own.

Imports robosuite: import it after `import_robosuite` only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary
from xml.etree import ElementTree

import mujoco
import numpy as np
from robosuite.models.robots.robot_model import RobotModel
from robosuite.utils.binding_utils import MjSim

_models: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Models in use, by scene (MJCF)."""
_building = Lock()
"""Lock of the thread that builds, because robosuite is changed meanwhile."""


@contextmanager
def shared_models(visuals: bool, shared: bool = True) -> Iterator[None]:
    """Let robosuite environments that are made in this context share the models of equal scenes.

    Args:
        visuals: whether the models can be rendered.
        shared: whether models are shared; else each environment has its own, which it may change.
    """

    def simulation(xml: str) -> Any:
        scene = xml if visuals else without_visuals(xml)
        model = _models.get(scene) if shared else mujoco.MjModel.from_xml_string(scene)
        if model is None:
            model = _models[scene] = mujoco.MjModel.from_xml_string(scene)
        return MjSim(model)

    # robosuite also compiles the robot alone, 43 MB that nothing reads.
    robot_alone = patch.object(RobotModel, "set_mujoco_model", lambda self: None)
    with _building, robot_alone, patch.object(MjSim, "from_xml_string", simulation):
        yield


def without_visuals(xml: str) -> str:
    """Return a scene (MJCF) without materials, textures, and meshes of geoms that collide with nothing.

    Bodies, geoms and sites keep their names, order and physics.
    """
    scene = ElementTree.fromstring(xml)
    for element in scene.iter():
        element.attrib.pop("material", None)
        # Elsewhere the mesh may decide on the mass.
        if element.tag == "worldbody" or element.find("inertial") is not None:
            for geom in element.iterfind("geom[@mesh][@contype='0'][@conaffinity='0']"):
                # A stand-in, because robosuite looks for every geom by its name.
                del geom.attrib["mesh"]
                geom.attrib |= {"type": "sphere", "size": "0.01"}
    meshes = {geom.get("mesh") for geom in scene.iter("geom")}
    for assets in scene.iter("asset"):
        for asset in list(assets):
            unused_mesh = asset.tag == "mesh" and asset.get("name") not in meshes
            if unused_mesh or asset.tag in ("material", "texture"):
                assets.remove(asset)
    return ElementTree.tostring(scene, encoding="unicode")


def freeze(model: Any) -> None:
    """Make a model's arrays read-only."""
    for name in dir(model):
        array = getattr(model, name)
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
