"""What a task is, and where tasks are found.

A task is a module, or any other object, with `spec`, `make` and `expert`; see `Task`. A package adds one by

    [project.entry-points."longview.tasks"]
    my_task = "my_package.my_task:task"

and everybody else names it `my_package.my_task:task`, which needs no entry point. Specs are read where no
simulator is installed, so a task imports its simulator only when `make` is called.

`gym:ID` and `robosuite:NAME` are environments of these packages. Their specs are read from the environments
themselves, so that these names need the package wherever a config is read.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from longview.actors.config import NO_CAMERAS, NO_ENVIRONMENT, CamerasConfig, EnvironmentConfig
from longview.replay.datasets.source import Columns
from longview.replay.episode import TaskSpec

Observation = dict[str, NDArray[Any]]
Action = NDArray[np.float32]
Environment = gymnasium.Env[Observation, Action]

Expert = Callable[[], Action]
"""Function that returns the action (A,), without noise, that solves the task from the simulator's present
state. It may use all of that state, whoever brought the simulator there. It is called before each step that
the expert makes. In between it may be asked for a plan, after which the simulator returns to an earlier
state, so it must keep nothing from call to call."""

ENTRY_POINTS = "longview.tasks"
FAMILIES = {
    "gym": "longview.actors.tasks.any_gym",
    "robosuite": "longview.actors.tasks.any_robosuite",
}
"""Modules that make a task of any environment of a package, by the part of its name before the colon. Their
`task_of` takes the rest of the name and an `EnvironmentConfig`."""


class UnknownTask(ValueError):
    """No task can be loaded by this name; the message says why."""


class SimulatorError(RuntimeError):
    """A simulator cannot be made on this machine; the message says what to do about it."""


class ActionError(ValueError):
    """An action that the task does not accept. It ends its episode, not the actor."""


class Task(Protocol):
    """What every task has.

    Its simulators are gymnasium environments that observe a dict of the spec's keys and keep the spec's time
    limit. When an episode ends, `info["outcome"]` is one of `longview.replay.episode.OUTCOMES`.
    `longview.actors.environment.TaskEnv` does most of that; `longview check-task` finds what is missing.
    """

    spec: TaskSpec

    def make(self, render_mode: str | None = None) -> Environment:
        """Make a new simulator; with `rgb_array` its `render` returns a picture, (H, W, 3) uint8.

        Raises:
            SimulatorError: this machine lacks something that the simulator needs.
        """

    @property
    def expert(self) -> Callable[[Environment, np.random.Generator], Expert] | None:
        """Function that makes the expert of the episode to which a simulator has just been reset.

        Its generator is the source of the expert's own variety (its style, not its noise). None if the task
        has no expert.
        """


@runtime_checkable
class ImportedTask(Task, Protocol):
    """A task whose arrays have other names in data sets."""

    columns: Mapping[str, Columns]
    """How observations follow from a data set's arrays, by format (see `longview.replay.datasets.formats`).
    Needed only for observations that the data set does not hold under their own names."""


@runtime_checkable
class FilmedTask(Task, Protocol):
    """A task that cameras can look at."""

    def with_cameras(self, cameras: CamerasConfig) -> Task:
        """Return the task with `<camera>_image`, (size, size, 3) uint8, among its observations.

        Raises:
            ValueError: the task has no such camera.
        """


@runtime_checkable
class AnsweredTask(Task, Protocol):
    """A task that can tell a policy what it would have to remember."""

    def with_answer(self) -> Task:
        """Return the task with the answer among its observations.

        Raises:
            ValueError: there is nothing to remember.
        """


@dataclass
class RecordedTask:
    """A task that is known only from recorded data: it has no simulator and no expert."""

    spec: TaskSpec
    """Description of the data."""
    expert = None
    """Recorded data come without an expert."""

    def make(self, render_mode: str | None = None) -> Environment:
        """Refuse to make a simulator.

        Raises:
            SimulatorError: always.
        """
        raise SimulatorError("it is known only from recorded data, and has no simulator")


def columns_of(task: Task) -> Mapping[str, Columns]:
    """Return the task's `columns`; empty if data sets use the task's own names."""
    return task.columns if isinstance(task, ImportedTask) else {}


def task_names() -> list[str]:
    """Return the names of all installed tasks, sorted."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


def is_task(name: str) -> bool:
    """Tell whether a name is that of an installed task, or of an environment of `FAMILIES`."""
    return name in task_names() or name.partition(":")[0] in FAMILIES


def load_task(
    name: str,
    cameras: CamerasConfig = NO_CAMERAS,
    environment: EnvironmentConfig = NO_ENVIRONMENT,
    *,
    oracle: bool = False,
) -> Task:
    """Load a task by its name, or by module:attribute.

    Args:
        name: name of an installed task; `gym:ID` or `robosuite:NAME`; or `module:attribute`, with a module on
            the Python path or in the working folder. In `module:` the module itself is the task.
        cameras: the cameras that its policies see through.
        environment: settings of an environment of `FAMILIES`.
        oracle: whether its policies observe what they would have to remember.

    Raises:
        UnknownTask: there is no such task, or it cannot be imported.
        ValueError: the task has no such cameras, no such settings, or nothing to remember.
    """
    family, _, rest = name.partition(":")
    try:
        if family in FAMILIES:
            task: Task = import_module(FAMILIES[family]).task_of(rest, environment)
        else:
            task = _imported(name)
    except UnknownTask:
        raise
    except Exception as error:
        given = f" with environment.arguments {dict(environment.arguments)}" if environment.arguments else ""
        raise UnknownTask(f"task {name} cannot be loaded{given}: {cause(error)}") from error
    if environment != NO_ENVIRONMENT and family not in FAMILIES:
        known = " and ".join(f"{family}:NAME" for family in FAMILIES)
        raise ValueError(f"environment: task {name} takes no such settings, only {known} do")
    missing = [part for part in ("spec", "make", "expert") if not hasattr(task, part)]
    if missing:
        raise UnknownTask(f"{name} is no task: it has no {' and no '.join(missing)}")
    if oracle:
        if not isinstance(task, AnsweredTask):
            raise ValueError(f"task {name} tells no answer: leave actors.oracle false")
        task = task.with_answer()
    if not cameras.names:
        return task
    if not isinstance(task, FilmedTask):
        raise ValueError(f"task {name} has no cameras: leave actors.cameras.names empty")
    return task.with_cameras(cameras)


def task_file(name: str) -> Path | None:
    """Return the file of the module that a task is in; None if there is none. The module is not run."""
    try:
        found = find_spec(_location(name)[0])
    except Exception:  # `load_task` says what is wrong
        return None
    return Path(found.origin) if found is not None and found.origin is not None else None


def make_simulator(task: Task, render_mode: str | None = None) -> Environment:
    """Make a simulator of a task.

    Raises:
        SimulatorError: it cannot be made, for whatever reason; the message names the task and the cause.
    """
    try:
        return task.make(render_mode=render_mode)
    except SimulatorError as error:
        raise SimulatorError(f"task {task.spec.name}: {error}") from error
    except Exception as error:
        raise SimulatorError(
            f"task {task.spec.name}: its simulator cannot be made: {cause(error)}"
        ) from error


def cause(error: Exception) -> str:
    """Tell in one line what an exception says and where it was raised."""
    message = (str(error).splitlines() or [""])[0]
    where = extract_tb(error.__traceback__)[-1]
    ours = where.filename == __file__ or where.filename.startswith("<")
    place = "" if ours else f" ({Path(where.filename).name}:{where.lineno})"
    return f"{type(error).__name__}: {message}{place}"


def _imported(name: str) -> Task:
    """Import a task that is an object or a module."""
    module, attribute = _location(name)
    loaded = import_module(module)
    return cast(Task, attrgetter(attribute)(loaded) if attribute else loaded)


def _location(name: str) -> tuple[str, str]:
    """Find the module of a task and the attribute in it; an empty attribute is the module itself."""
    if (family := name.partition(":")[0]) in FAMILIES:
        return FAMILIES[family], ""
    if ":" in name:
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)  # at the end: files of the user's must not hide installed packages
        module, _, attribute = name.partition(":")
        return module, attribute
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return entry.module, entry.attr or ""
    near = get_close_matches(name, task_names(), n=1)
    others = "others are named module:attribute; for recordings without a simulator: longview train DATASET"
    hint = f"did you mean {near[0]}?" if near else others
    raise UnknownTask(f"unknown task {name!r}: installed are {', '.join(task_names())}; {hint}")
