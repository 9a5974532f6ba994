"""Any environment of gymnasium as a task, `gym:ID`. Its spec is read from the environment's spaces.

    space of observations        what a policy observes
    Dict                         each part by its key, parts of parts as `outer/inner`
    Box of uint8, (H, W, 3)      a picture
    any other Box, MultiBinary   numbers
    Discrete, MultiDiscrete      one-hot numbers: 1 for the value, 0 for all others

    space of actions             what a policy gives
    Box                          its numbers, each clipped to its own limits
    Discrete, MultiDiscrete      a score for each choice, from -1 to 1: the highest one is executed
    MultiBinary                  a number for each bit, from -1 to 1: a positive one sets it

An observation that is not a Dict is called `state`, or `image`. Demonstrations may hold values of Discrete
and MultiDiscrete spaces as they are. docs/environments.md tells the rest.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from longview.actors.config import EnvironmentConfig
from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action, UnknownTask, cause
from longview.replay.datasets.formats import formats
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, ArraySpec, TaskSpec

PLUGINS = ("popgym", "gymnasium_robotics", "metaworld")
"""Packages that register environments when they are imported, and are tried for an unknown ID."""
INSTALL = (
    "name the package that registers it, as in gym:package:ID; pip install 'longview[environments]' brings "
    + ", ".join(PLUGINS)
)
SLASH = "~"
"""Stand-in for the slash of an ID in the name of a task, since that name also names folders."""
SUCCESS_KEYS = ("is_success", "success")
"""Keys of a step's `info` that tell a success; the first one that is found counts."""
TIME_LIMITS = ("_max_episode_steps", "max_episode_length")
"""Attributes with the time limit: of gymnasium's wrapper, and of popgym's environments."""
CONTROL_HZ = 10.0
"""Control rate of an environment that tells none."""
CONTEXT_LENGTHS, DEMONSTRATIONS = (1, 2, 4, 8, 16), 100
"""Context lengths and N of every environment."""

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One array of a task, and how it follows from a value of a space, or a value of the space from it."""

    spec: ArraySpec
    convert: Callable[[Any], Any]
    """Function that makes the array of an observed value, or the value of an action (A,)."""
    path: Sequence[str] = ()
    """Keys that lead to the value in the observation."""
    rows: Callable[[Numbers], Numbers] | None = None
    """Function that makes the array's rows of those of a data set; None: a data set has them as they are."""


@cache
def task_of(id: str, settings: EnvironmentConfig) -> SimulatedTask:
    """Make the task of an environment. The environment is made and stepped once to read its spec.

    Args:
        id: ID that the environment is registered with, or `package:ID` if a package registers it on import.
        settings: how it is made, and what it does not tell.

    Raises:
        UnknownTask: there is no such environment, it is none of gymnasium's, a space does not fit, or
            something that it does not tell has to be set.
    """
    id, name = id.replace(SLASH, "/"), f"gym:{id.replace('/', SLASH)}"
    with closing(_made(id, settings)) as simulator:
        parts = {key: (path, space) for key, path, space in _leaves(simulator.observation_space)}
        if unknown := sorted(set(settings.keys) - parts.keys()):
            raise UnknownTask(
                f"environment.keys: {name} has no {', '.join(unknown)}, only {', '.join(parts)}"
            )
        observed = {key: _observed(name, key, *parts[key]) for key in settings.keys or parts}
        acted = _acted(name, simulator.action_space)
        success = _rule(name, simulator, settings.success)
        max_steps = settings.max_steps or _time_limit(name, simulator)
        metadata = simulator.metadata
    spec = TaskSpec(
        name=name,
        observation={key: part.spec for key, part in observed.items()},
        action=acted.spec,
        control_hz=float(settings.control_hz or metadata.get("render_fps") or CONTROL_HZ),
        max_steps=max_steps,
        context_lengths=tuple(length for length in CONTEXT_LENGTHS if length <= max_steps),
        demonstrations=DEMONSTRATIONS,
    )
    arrays = {OBSERVATION_PREFIX + key: part for key, part in observed.items()} | {ACTION: acted}
    columns = {array: (array, part.rows) for array, part in arrays.items() if part.rows is not None}
    draws = "rgb_array" in metadata.get("render_modes", ())
    make = partial(_made, id, settings)
    simulator = partial(GymEnv, make=make, draws=draws, observed=observed, acted=acted, success=success)
    return SimulatedTask(spec, simulator, columns=dict.fromkeys(formats(), columns))


class GymEnv(TaskEnv):
    """A simulator: the environment, as a task's. Rewards are its own."""

    def __init__(
        self,
        spec: TaskSpec,
        render_mode: str | None = None,
        *,
        make: Callable[..., Any],
        draws: bool,
        observed: Mapping[str, Part],
        acted: Part,
        success: str | float,
    ) -> None:
        super().__init__(spec, render_mode)
        if not draws:
            self.metadata["render_modes"] = []
        self._observed, self._acted, self._success = observed, acted, success
        self.simulator = make(render_mode if draws else None)

    def start(self, rng: np.random.Generator) -> None:
        seed = int(rng.integers(2**31))
        # Some wrappers draw before they pass the seed on.
        self.simulator.unwrapped.np_random = np.random.default_rng(seed)
        self._seen, self._info = self.simulator.reset(seed=seed)
        self._return, self._reward, self._over = 0.0, 0.0, False

    def advance(self, action: Action) -> None:
        step = self.simulator.step(self._acted.convert(action))
        self._seen, self._reward, terminated, truncated, self._info = step
        self._return += float(self._reward)
        self._over = bool(terminated or truncated)

    def observe(self) -> Mapping[str, ArrayLike]:
        return {key: part.convert(_at(self._seen, part.path)) for key, part in self._observed.items()}

    def outcome(self) -> str | None:
        if isinstance(self._success, str):
            succeeded = bool(np.any(self._info.get(self._success, False)))
        else:
            succeeded = self._return >= self._success and (
                self._over or self.steps + 1 == self.task_spec.max_steps
            )
        if succeeded:
            return "success"
        return "failure" if self._over else None

    def reward(self, outcome: str | None) -> float:
        """Return the environment's own reward."""
        return float(self._reward)

    def render(self) -> Any:
        """Draw a picture of the scene, (H, W, 3) uint8, as the environment does."""
        return self.simulator.render()

    def close(self) -> None:
        self.simulator.close()


def _made(id: str, settings: EnvironmentConfig, render_mode: str | None = None) -> Any:
    """Make an environment.

    Raises:
        UnknownTask: no package that is known here registers it.
    """
    given = {**settings.arguments, **({} if render_mode is None else {"render_mode": render_mode})}
    for plugin in (*PLUGINS, ""):
        try:
            return gymnasium.make(id, settings.max_steps, disable_env_checker=True, **given)
        except gymnasium.error.UnregisteredEnv as error:
            if not plugin:
                raise UnknownTask(f"gym:{id}: {error} {INSTALL}") from None
        with suppress(ImportError):
            import_module(plugin)
    raise AssertionError("the last turn returns or raises")


def _leaves(space: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield the name, the keys that lead to it, and the space of each part of a space of observations."""
    if isinstance(space, spaces.Dict):
        for key, below in space.spaces.items():
            yield from _leaves(below, (*path, str(key)))
    else:
        yield "/".join(path) or ("image" if _is_picture(space) else "state"), path, space


def _is_picture(space: Any) -> bool:
    """Tell whether a space is one of pictures, (H, W, 3) uint8."""
    return space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _observed(name: str, key: str, path: Sequence[str], space: Any) -> Part:
    """Return a part of the observations.

    Raises:
        UnknownTask: the space does not fit.
    """
    match space:
        case spaces.Box() if _is_picture(space):
            return Part(ArraySpec(space.shape, "uint8", 0.0, 255.0), np.asarray, path)
        case spaces.Box():
            limits = float(space.low.min()), float(space.high.max())
            return Part(ArraySpec(space.shape, "float32", *limits), np.asarray, path)
        case spaces.MultiBinary():
            return Part(ArraySpec(space.shape, "float32", 0.0, 1.0), np.asarray, path)
        case spaces.Discrete() | spaces.MultiDiscrete():
            sizes, starts = _choices(space)
            rows = partial(one_hot, sizes=sizes, starts=starts, low=0.0)
            spec = ArraySpec((int(sizes.sum()),), "float32", 0.0, 1.0)
            return Part(spec, lambda value: rows([value])[0], path, rows)
    raise UnknownTask(f"{name}: observation {key} {_unfit(space)}, or leave it out by environment.keys")


def _acted(name: str, space: Any) -> Part:
    """Return the part of the action.

    Raises:
        UnknownTask: the space does not fit.
    """
    match space:
        case spaces.Box():
            limits = float(space.low.min()), float(space.high.max())
            return Part(ArraySpec((space.low.size,), "float32", *limits), partial(_within, space))
        case spaces.MultiBinary():
            shape = space.shape
            spec = ArraySpec((math.prod(shape),), "float32", -1.0, 1.0)
            return Part(spec, lambda scores: (scores > 0).reshape(shape).astype(space.dtype))
        case spaces.Discrete() | spaces.MultiDiscrete():
            sizes, starts = _choices(space)
            rows = partial(one_hot, sizes=sizes, starts=starts, low=-1.0)
            ends = np.cumsum(sizes)[:-1]

            def best(scores: Numbers) -> Any:
                chosen = starts + [int(part.argmax()) for part in np.split(scores, ends)]
                return chosen.reshape(space.shape or ()).astype(space.dtype)[()]

            return Part(ArraySpec((int(sizes.sum()),), "float32", -1.0, 1.0), best, rows=rows)
    raise UnknownTask(f"{name}: the action space {_unfit(space)}")


def one_hot(values: ArrayLike, sizes: Numbers, starts: Numbers, low: float) -> Numbers:
    """Return rows (steps, sum of sizes) that are 1 where a choice was taken, and `low` elsewhere.

    Args:
        values: a value (steps,) or several (steps, choices) for each step; or such rows, which are kept.
        sizes: number of values of each choice.
        starts: smallest value of each choice.
        low: number at the other values.

    Raises:
        ValueError: there are others than `sizes` such values, or they are no whole numbers.
        IndexError: a value is outside of its choice.
    """
    values = np.asarray(values)
    if values.ndim > 1 and values.shape[-1] == sizes.sum() != len(sizes):
        return values
    places = values.reshape(len(values), len(sizes)) - starts
    if (places < 0).any() or (places != np.floor(places)).any():
        raise ValueError(f"expected whole numbers from {starts.tolist()}, not {values.min()}")
    hot = [np.eye(size)[places[:, index].astype(int)] for index, size in enumerate(sizes)]
    rows: Numbers = low + (1 - low) * np.concatenate(hot, axis=1)
    return rows


def _choices(space: Any) -> tuple[Numbers, Numbers]:
    """Return how many values each choice of a space has, and the smallest ones."""
    sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec
    return np.array(sizes, int).ravel(), np.array(space.start, int).ravel()


def _within(space: Any, action: Action) -> Numbers:
    """Return an action (A,) as a value of a Box, each number within its own limits."""
    value = np.clip(action.reshape(space.shape), space.low, space.high)
    whole = np.issubdtype(space.dtype, np.integer)
    converted: Numbers = (np.rint(value) if whole else value).astype(space.dtype)
    return converted


def _unfit(space: Any) -> str:
    return (
        f"is a {type(space).__name__}, which is no array of one size: write a task of your own whose "
        "simulator wraps this environment (docs/own_task.md)"
    )


def _at(seen: Any, path: Sequence[str]) -> Any:
    """Return a part of an observation."""
    for key in path:
        seen = seen[key]
    return seen


def _rule(name: str, simulator: Any, success: str | float | None) -> str | float:
    """Return the key of `info` or the return that tells a success. The environment is stepped once.

    Raises:
        UnknownTask: it has the interface of the old package gym, or does not tell what a success is.
    """
    simulator.action_space.seed(0)
    try:
        _, _ = simulator.reset(seed=0)
        _, _, _, _, info = simulator.step(simulator.action_space.sample())
    except (TypeError, ValueError) as error:
        raise UnknownTask(
            f"{name} does not reset and step as gymnasium's environments do ({cause(error)}): one of the old "
            "package gym has to be ported, or wrapped by the package shimmy"
        ) from error
    keys = [key for key in SUCCESS_KEYS if key in info]
    rules: tuple[str | float | None, ...] = (success, *keys, simulator.spec.reward_threshold)
    for rule in rules:
        if rule is not None:
            return rule
    raise UnknownTask(
        f"{name} does not tell what a success is: set environment.success to a key of its steps' info "
        f"({', '.join(info) or 'which is empty'}), or to the return that an episode must reach"
    )


def _time_limit(name: str, simulator: Any) -> int:
    """Return the largest number of steps of an episode.

    Raises:
        UnknownTask: the environment does not tell.
    """
    for place in TIME_LIMITS:
        with suppress(AttributeError):
            return int(simulator.get_wrapper_attr(place))
    raise UnknownTask(f"{name} does not tell how many steps an episode may last: set environment.max_steps")
