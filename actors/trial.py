"""Episodes played to try a task out: by its expert, by random actions, and by one action all the time."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
from time import perf_counter
from typing import Any, Literal

import numpy as np

from longview.actors.task import Action, ActionError, Environment, Expert, Observation, Task
from longview.replay.episode import TaskSpec

EPISODES = 20
"""Episodes that the expert plays; random actions where a task has none."""
STRAYS = 4
"""Episodes of random actions."""

Agent = Callable[[np.random.Generator], Iterator[Action]]
"""Function that is called after a reset and yields the actions (A,) of the episode, one at a time."""


@dataclass
class Played:
    """An episode as it was played."""

    seed: int
    observations: list[Observation]
    """Observations, one more than actions: the first one follows from the reset."""
    reset_seconds: float
    actions: list[Action] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    end: Literal["", "terminated", "truncated", "refused"] = ""
    """End of the episode: `refused` by an ActionError; empty if it went on after the time limit."""
    outcome: Any = None
    refusal: str = ""
    """Message of the ActionError."""
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A task, one of its simulators, and episodes that were played in it."""

    task: Task
    simulator: Environment
    led: Sequence[Played]
    """Episodes of the expert, or of random actions where there is none."""
    strays: Sequence[Played]
    """Episodes of random actions."""
    idle: Played
    """An episode of one action in the middle of the range."""

    @property
    def episodes(self) -> list[Played]:
        """Every episode that was played."""
        return [*self.led, *self.strays, self.idle]


def try_out(task: Task, simulator: Environment) -> Trial:
    """Play the episodes that the checks look at."""
    space, stray = task.spec.action, partial(random_actions, task.spec)
    lead = stray if task.expert is None else partial(expert_actions, task.expert, simulator)
    middle = np.full(space.shape, (space.low + space.high) / 2, np.float32)
    return Trial(
        task,
        simulator,
        led=[play(task, simulator, seed, lead) for seed in range(EPISODES)],
        strays=[play(task, simulator, seed, stray) for seed in range(STRAYS)],
        idle=play(task, simulator, 0, lambda rng: repeat(middle)),
    )


def play(task: Task, simulator: Environment, seed: int, agent: Agent) -> Played:
    """Play an episode to its end, to the time limit, or until the agent has no more actions."""
    started = perf_counter()
    observation, _ = simulator.reset(seed=seed)
    played = Played(seed, [deepcopy(observation)], perf_counter() - started)
    for action in islice(agent(np.random.default_rng((seed, 2))), task.spec.max_steps):
        played.actions.append(action)
        started = perf_counter()
        try:
            observation, reward, terminated, truncated, info = simulator.step(action)
        except ActionError as error:
            played.end, played.refusal = "refused", str(error)
            break
        played.step_seconds += perf_counter() - started
        played.observations.append(deepcopy(observation))
        played.rewards.append(reward)
        if terminated or truncated:
            played.end = "terminated" if terminated else "truncated"
            played.outcome = info.get("outcome")
            break
    return played


def expert_actions(
    start: Callable[[Environment, np.random.Generator], Expert],
    simulator: Environment,
    rng: np.random.Generator,
) -> Iterator[Action]:
    """Yield what the task's expert does."""
    act = start(simulator, rng)
    while True:
        yield act()


def random_actions(spec: TaskSpec, rng: np.random.Generator) -> Iterator[Action]:
    """Yield actions from anywhere within the spec's range."""
    while True:
        yield rng.uniform(spec.action.low, spec.action.high, spec.action.shape).astype(np.float32)


def same(one: Played, other: Played) -> bool:
    """Tell whether two episodes are equal to the last bit."""
    if (one.end, one.outcome, one.rewards) != (other.end, other.outcome, other.rewards):
        return False
    pairs = zip(one.observations, other.observations, strict=True)
    return all(np.array_equal(seen[key], again[key], equal_nan=True) for seen, again in pairs for key in seen)
