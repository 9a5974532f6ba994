"""Tasks: what a simulator has to offer to be rolled out, and the registry of those that are installed.

A task is a module (or any object) with the three names of `Task`. It is found by entry point, so a package
of your own adds one with

    [project.entry-points."longview.tasks"]
    my_task = "my_package.my_task"

and it may import its simulator inside `make` only: specs are read where no simulator is installed.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from longview.actors.config import NO_CAMERAS, CamerasConfig
from longview.replay.datasets.source import Columns
from longview.replay.episode import ArraySpec, TaskSpec

Observation = dict[str, NDArray[Any]]
Action = NDArray[np.float32]
Environment = gymnasium.Env[Observation, Action]

Expert = Callable[[], Action]
"""Called before every step: the action (A,), without noise, that solves the task from where the simulator
stands now. It may look at the simulator's whole state, so it also labels states it did not reach itself."""

ENTRY_POINTS = "longview.tasks"


class UnknownTask(ValueError):
    """No installed task has this name; the message lists those that exist."""


class SimulatorError(RuntimeError):
    """A simulator cannot be made on this machine; the message says what to do about it."""


class ActionError(ValueError):
    """An action that the task does not accept. It ends its episode, not the actor."""


class Task(Protocol):
    """One task. Its environment's observations are a dict of the spec's keys. When an episode ends,
    `info["outcome"]` is one of `longview.replay.episode.OUTCOMES`. The environment keeps the time limit."""

    spec: TaskSpec

    def make(self, render_mode: str | None = None) -> Environment:
        """A new simulator instance; with `rgb_array` its `render` returns a picture, (H, W, 3) of uint8.

        Raises:
            SimulatorError: this machine lacks something that it needs.
        """

    @property
    def expert(self) -> Callable[[Environment, np.random.Generator], Expert] | None:
        """Makes the expert for the episode that an environment has just been reset to; None if the task has
        none. The generator is the source of the expert's own variety (its style, not its noise)."""


@runtime_checkable
class ImportedTask(Task, Protocol):
    """A task that data sets know by other names."""

    columns: Mapping[str, Columns]
    """By format (see `longview.replay.datasets.formats`): which of a data set's arrays each observation
    follows from, and how, where it is not there by its own name."""


def columns_of(task: Task) -> Mapping[str, Columns]:
    """The task's `columns`; none if its names are those of the data sets."""
    return task.columns if isinstance(task, ImportedTask) else {}


def task_names() -> list[str]:
    """Names of all installed tasks, sorted."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


@runtime_checkable
class FilmedTask(Task, Protocol):
    """A task that can also be seen."""

    def with_cameras(self, cameras: CamerasConfig) -> Task:
        """The task whose observations have `<camera>_image`, (size, size, 3) of uint8, besides the state.

        Raises:
            ValueError: it has no such camera.
        """


def load_task(name: str, cameras: CamerasConfig = NO_CAMERAS) -> Task:
    """The installed task of that name, seen through these cameras.

    Raises:
        UnknownTask: there is none.
        ValueError: it has no such cameras.
    """
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        task = cast(Task, entry.load())
        if not cameras.names:
            return task
        if not isinstance(task, FilmedTask):
            raise ValueError(f"task {name} has no cameras: leave actors.cameras.names empty")
        return task.with_cameras(cameras)
    near = get_close_matches(name, task_names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UnknownTask(f"unknown task {name!r}: installed are {', '.join(task_names())}{hint}")


def observation_space(spec: TaskSpec) -> gymnasium.Space[Observation]:
    """The gymnasium space of a spec's observations."""
    return cast(
        gymnasium.Space[Observation],
        gymnasium.spaces.Dict({key: _box(array) for key, array in spec.observation.items()}),
    )


def action_space(spec: TaskSpec) -> gymnasium.Space[Action]:
    """The gymnasium space of a spec's actions."""
    return cast(gymnasium.Space[Action], _box(spec.action))


def checked_action(spec: TaskSpec, action: Action) -> Action:
    """The action, if the task accepts it.

    Raises:
        ActionError: a component is not finite, or out of range; the shape is not the spec's.
    """
    if action.shape != spec.action.shape:
        raise ActionError(f"task {spec.name}: action must have shape {spec.action.shape}, not {action.shape}")
    low, high = spec.action.low, spec.action.high
    if all(low <= value <= high for value in action.tolist()):  # for so few ten times as fast as numpy
        return action
    refused = np.flatnonzero(~((action >= low) & (action <= high)))  # by limits as float32 has them
    if refused.size:
        index = int(refused[0])
        raise ActionError(
            f"task {spec.name}: action[{index}] must be in [{low:g}, {high:g}], not {float(action[index])!r}"
        )
    return action


def _box(array: ArraySpec) -> gymnasium.Space[Any]:
    if array.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, array.shape, np.uint8)
    return gymnasium.spaces.Box(array.low, array.high, array.shape, np.float32)
