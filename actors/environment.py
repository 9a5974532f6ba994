"""TaskEnv: a gymnasium environment that leaves to a task only what is its own.

A task writes four methods, and `render` if it draws pictures:

    start(rng)       arrange a new episode
    advance(action)  make one control step
    observe()        what is seen now, by the spec's keys
    outcome()        how the episode has ended; None while it goes on

`TaskEnv` keeps the time limit, refuses bad actions, builds observations that fit the spec, and derives spaces
and metadata from it. It also saves an episode's state and returns to it, by copying attributes. A task with
attributes that cannot be copied names the others in `changing`, and extends `save` and `restore`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from longview.actors.task import Action, ActionError, Environment, Expert, Observation
from longview.replay.datasets.source import Columns
from longview.replay.episode import OUTCOMES, ArraySpec, TaskSpec

FIXED = frozenset(
    ("task_spec", "render_mode", "observation_space", "action_space", "metadata", "_arrays"),
)
"""Attributes of every `TaskEnv` that never change."""

ANSWER = "answer"
"""Key under which an oracle is told what has to be remembered."""


class Diverged(Exception):
    """The simulator is in a state from which nothing sensible follows. Its episode ends as `invalid`."""


class TaskEnv(gymnasium.Env[Observation, Action], ABC):
    """A simulator of one task; see the top of this file for what a task adds to it."""

    def __init__(self, spec: TaskSpec, render_mode: str | None = None) -> None:
        self.task_spec, self.render_mode = spec, render_mode
        self.observation_space, self.action_space = observation_space(spec), action_space(spec)
        draws = type(self).render is not gymnasium.Env.render
        self.metadata = {"render_modes": ["rgb_array"] if draws else [], "render_fps": spec.control_hz}
        self.steps = 0
        """Steps made since the episode started."""
        self._memory_rng: np.random.Generator | None = None
        # Pictures must be uint8 already: to convert numbers in [0, 1] would lose them silently.
        self._arrays = [
            (key, array.shape, np.float32 if array.dtype == "float32" else None)
            for key, array in spec.observation.items()
        ]

    @abstractmethod
    def start(self, rng: np.random.Generator) -> None:
        """Arrange a new episode, as it follows from the generator.

        Draw what a policy has to remember from `memory_rng` instead.
        """

    @abstractmethod
    def advance(self, action: Action) -> None:
        """Make one control step with an action (A,) that lies within the spec's range.

        Raises:
            Diverged: the simulator can go on no longer.
        """

    @abstractmethod
    def observe(self) -> Mapping[str, ArrayLike]:
        """Return what is seen now, by the spec's keys: numbers in the spec's shapes, or uint8 pictures."""

    @abstractmethod
    def outcome(self) -> str | None:
        """Return how the episode has ended, one of `longview.replay.episode.OUTCOMES`; None while it goes on.

        It is called once after every step. At the time limit None becomes `failure`.
        """

    def reward(self, outcome: str | None) -> float:
        """Return the reward of the last step: 1 for a success that it brought, else 0."""
        return float(outcome == "success")

    def answer(self) -> float:
        """Return what a policy has to remember at this moment, as a number. Only an oracle observes it."""
        raise NotImplementedError

    def changing(self) -> Iterable[str]:
        """Return the names of the attributes that an episode changes; by default all but `FIXED`."""
        return vars(self).keys() - FIXED

    def save(self) -> Any:
        """Return the present state of the episode. See `longview.actors.control.Restorable`."""
        return deepcopy({name: vars(self)[name] for name in self.changing()})

    def restore(self, state: Any) -> None:
        """Return to a state that `save` gave since the last reset."""
        vars(self).update(deepcopy(state))

    @property
    def memory_rng(self) -> np.random.Generator:
        """Generator for what a policy has to remember, and for nothing else.

        It follows from the seed too, but as a stream of its own, so that nothing drawn from the other one can
        give away what has to be remembered.
        """
        if self._memory_rng is None:
            self._memory_rng = np.random.default_rng((self.np_random_seed, 1))
        return self._memory_rng

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the episode that follows from the seed; without a seed, another one."""
        super().reset(seed=seed)
        if seed is not None:
            self._memory_rng = None
        self.steps = 0
        self.start(self.np_random)
        return self._observation(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one control step.

        Raises:
            ActionError: the action is not finite, is out of range, or has another shape than the spec's.
            ValueError: what the task observes does not fit its spec, or its outcome is unknown.
        """
        try:
            self.advance(checked_action(self.task_spec, action))
            outcome = self.outcome()
        except Diverged:
            outcome = "invalid"
        self.steps += 1
        observation, reward = self._observation(), self.reward(outcome)
        if outcome is None:
            if self.steps < self.task_spec.max_steps:
                return observation, reward, False, False, {}
            return observation, reward, False, True, {"outcome": "failure"}
        if outcome not in OUTCOMES:
            raise ValueError(
                f"task {self.task_spec.name}: outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}"
            )
        return observation, reward, True, False, {"outcome": outcome}

    def _observation(self) -> Observation:
        """Copy what is observed, in the spec's dtypes: a task may go on using its own arrays."""
        seen, copied = self.observe(), {}
        if ANSWER in self.task_spec.observation:
            seen = {**seen, ANSWER: (self.answer(),)}
        for key, shape, dtype in self._arrays:
            try:
                copied[key] = array = np.array(seen[key], dtype)
            except KeyError:
                raise ValueError(f"task {self.task_spec.name}: {key} is not among what is observed") from None
            if array.shape != shape or (dtype is None and array.dtype != np.uint8):
                expected = self.task_spec.observation[key].dtype
                raise ValueError(
                    f"task {self.task_spec.name}: observation {key} must be {expected} {shape}, "
                    f"not {array.dtype} {array.shape}"
                )
        return copied


@dataclass(frozen=True)
class SimulatedTask:
    """A task whose simulators come from one class; see `longview.actors.task.Task`."""

    spec: TaskSpec
    simulator: Callable[..., Environment]
    """Called with the spec and the render mode: as a rule a class below `TaskEnv`."""
    expert: Callable[[Environment, np.random.Generator], Expert] | None = None
    columns: Mapping[str, Columns] = field(default_factory=dict)
    """See `longview.actors.task.ImportedTask`."""

    def make(self, render_mode: str | None = None) -> Environment:
        """Make a new simulator; with `rgb_array` its `render` returns a picture, (H, W, 3) uint8."""
        return self.simulator(self.spec, render_mode)

    def with_answer(self) -> Self:
        """Return the task with what has to be remembered, `ANSWER`, among its observations."""
        if getattr(self.simulator, "answer", TaskEnv.answer) is TaskEnv.answer:
            raise ValueError(f"task {self.spec.name} has nothing to remember: leave actors.oracle false")
        seen = {**self.spec.observation, ANSWER: ArraySpec((1,))}
        return replace(self, spec=replace(self.spec, observation=seen))


def observation_space(spec: TaskSpec) -> gymnasium.Space[Observation]:
    """Return the gymnasium space of a spec's observations."""
    return cast(
        gymnasium.Space[Observation],
        gymnasium.spaces.Dict({key: _box(array) for key, array in spec.observation.items()}),
    )


def action_space(spec: TaskSpec) -> gymnasium.Space[Action]:
    """Return the gymnasium space of a spec's actions."""
    return cast(gymnasium.Space[Action], _box(spec.action))


def checked_action(spec: TaskSpec, action: Action) -> Action:
    """Return the action (A,), if the task accepts it.

    Raises:
        ActionError: a component is not finite, or out of range; the shape is not the spec's.
    """
    expected = spec.action
    if action.shape != expected.shape:
        raise ActionError(f"task {spec.name}: action must have shape {expected.shape}, not {action.shape}")
    low, high = expected.low, expected.high
    for value in action.tolist():  # for short vectors ten times as fast as numpy
        if not low <= value <= high:
            break
    else:
        return action
    refused = np.flatnonzero(~((action >= low) & (action <= high)))  # by the limits in float32
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
