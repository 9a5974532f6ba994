"""Scenes of our own: a table with a Panda arm, objects on it, and marks that are only seen.

Imports robosuite: import it from within `ArmEnv.build` only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.models.arenas import TableArena
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import new_geom

from longview.actors.tasks.arm import SURFACE

SIZE = (0.8, 0.8, 0.05)
"""Size of the table's top, in metres."""
PAINT = 0.001
"""Height of a mark that is painted on the table, in metres."""


@dataclass(frozen=True)
class Mark:
    """Something on the table that is only seen."""

    name: str
    shape: str
    """`box` or `cylinder`."""
    size: tuple[float, ...]
    """Half sizes of a box in x and y, or the radius of a cylinder, in metres."""
    place: tuple[float, float]
    rgba: tuple[float, float, float, float]
    height: float = PAINT
    """Height of the mark, in metres."""

    def geom(self) -> Any:
        """Return the mark as MJCF, relative to the world."""
        return new_geom(
            self.name,
            self.shape,
            size=(*self.size, self.height / 2),
            pos=(*self.place, SURFACE[2] + self.height / 2),
            rgba=self.rgba,
            group=1,
            contype=0,
            conaffinity=0,
        )


class Table(ManipulationEnv):  # type: ignore[misc]
    """A robosuite environment with these objects and marks; every object has a free joint."""

    def __init__(self, objects: Sequence[Any], marks: Sequence[Mark], settings: Mapping[str, Any]) -> None:
        self.objects, self.marks = list(objects), marks
        super().__init__(initialization_noise="default", **settings)

    def _load_model(self) -> None:
        super()._load_model()
        robot = self.robots[0].robot_model
        robot.set_base_xpos(robot.base_xpos_offset["table"](SIZE[0]))
        arena = TableArena(table_full_size=SIZE, table_offset=SURFACE)
        arena.set_origin([0, 0, 0])
        for mark in self.marks:
            arena.worldbody.append(mark.geom())
        self.model = ManipulationTask(mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=self.objects)

    def reward(self, action: object = None) -> float:
        """Return 0: `TaskEnv` gives the reward."""
        return 0.0
