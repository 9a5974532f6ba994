"""Simulators in lockstep, one batched decision for all of them every T_a steps. No I/O: what happens is
handed to recorders and to the caller.

Time of one simulator, for T_a = 4 (d = decision, x = executed step, | = the episode ends, . = waits):

    d x x x x d x x x x d x x | . d x x x x
                                ^ a new episode, reset on its own; it joins at the next decision

Simulators of one process are stepped one after the other, so one that waits costs no time.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longview.actors.task import Action, ActionError, Environment, Expert, Observation, Task
from longview.replay.episode import ACTION, EXPERT_ACTION, OBSERVATION_PREFIX, REWARD, Array, EpisodeMeta


class Policy(Protocol):
    """Acting with history; the learner's PolicySession is one."""

    @property
    def execute(self) -> int:
        """T_a: actions decided at once, which are executed before the next decision."""

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, Array]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """Decide for B simulators.

        Args:
            slots: B indices of simulators.
            new_frames: per slot, observation key -> (n, ...): frames since its last decision, oldest first.
            executed: per slot (n - 1 or n, A): the actions really executed since then.
            reset: (B,), true where an episode starts: its history is forgotten first.
            T_o: context length to decide with.
            rng: source of the initial noise.

        Returns:
            (B, T_a, A), within the task's action range.
        """


class Receipt(Protocol):
    """Of an episode that is on its way to the store."""

    done: bool
    """Whether it has arrived, or failed to."""

    def result(self) -> bool:
        """Wait until it has; false if its id was there already."""


class Recorder(Protocol):
    """Takes one episode down; the store's writer is one."""

    def append(self, step: Mapping[str, Array]) -> None:
        """Add a step: every array of the task's spec, one row each."""

    def finish(self, outcome: str) -> Receipt:
        """Have the episode made visible, without waiting for that."""

    def abort(self) -> None:
        """Forget the episode."""


@dataclass(frozen=True)
class Assignment:
    """One episode to roll out."""

    meta: EpisodeMeta
    beta: float = 0.0
    """Chance that a decision, and so the next T_a steps, is the expert's."""
    noise: float = 0.0
    """Standard deviation added to the expert's executed actions, as a share of half the action range."""
    label: bool = False
    """Whether to record what the expert would have done at every step."""


@dataclass(frozen=True)
class EpisodeEnd:
    """What became of an assignment."""

    meta: EpisodeMeta
    outcome: str
    steps: int
    receipt: Receipt | None
    """None for an episode that was not recorded or has no steps."""
    refusal: str | None = None
    """Why the task refused the action that ended the episode, if that is how it ended."""


@dataclass
class Clock:
    """Seconds spent so far, by what they were spent on, and steps made."""

    simulator: float = 0.0
    policy: float = 0.0
    store: float = 0.0
    waiting: float = 0.0
    steps: int = 0


@dataclass
class _Lane:
    """One simulator and the episode it is in."""

    slot: int
    env: Environment
    assignment: Assignment | None = None
    recorder: Recorder | None = None
    expert: Expert | None = None
    observation: Observation = field(default_factory=dict)
    """What the next action answers to."""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    fresh: bool = True
    """No decision of the policy in this episode yet."""
    frames: list[Observation] = field(default_factory=list)
    """What the policy has not seen yet."""
    executed: list[Action] = field(default_factory=list)
    chunk: NDArray[np.float32] | None = None
    """Actions decided upon; None while the expert is in control."""
    steps: int = 0


def rollout(
    task: Task,
    envs: Sequence[Environment],
    assignments: Iterable[Assignment],
    *,
    policy: Policy | None,
    context_length: int,
    record: Callable[[EpisodeMeta], Recorder] | None,
    rng: np.random.Generator,
    clock: Clock,
) -> Iterator[EpisodeEnd]:
    """Roll out every assignment, as many at a time as there are simulators.

    An action that the task refuses ends its episode as `failure`, an observation or reward that is not finite
    as `invalid`; the steps before are recorded, and the other simulators go on.

    Args:
        task: the task that all simulators are of.
        envs: M simulators.
        assignments: the episodes; drawn from only when a simulator is free.
        policy: who decides where the expert does not; None if the expert always does.
        context_length: T_o given to the policy.
        record: opens the recorder of an episode; None records nothing.
        rng: the policy's source of noise.
        clock: is added to as time is spent.

    Yields:
        an end for every assignment, in the order in which they end. Episodes under way when the generator is
        closed, or fails, are aborted.
    """
    lanes = [_Lane(slot, env) for slot, env in enumerate(envs)]
    queue = iter(assignments)
    try:
        while True:
            for lane in lanes:
                while lane.assignment is None and (assignment := next(queue, None)) is not None:
                    if (end := _start(lane, assignment, task, record, clock)) is not None:
                        yield end
            running = [lane for lane in lanes if lane.assignment is not None]
            if not running:
                return
            _decide(running, task, policy, context_length, rng, clock)
            for offset in range(1 if policy is None else policy.execute):
                for lane in running:
                    if lane.assignment is not None and (end := _step(lane, offset, task, clock)) is not None:
                        yield end
    finally:
        for lane in lanes:
            if lane.recorder is not None:
                lane.recorder.abort()


def _start(
    lane: _Lane,
    assignment: Assignment,
    task: Task,
    record: Callable[[EpisodeMeta], Recorder] | None,
    clock: Clock,
) -> EpisodeEnd | None:
    """Begin an episode; returns its end if the simulator has diverged already."""
    observation, _ = lane.env.reset(seed=assignment.meta.seed)
    lane.assignment, lane.steps = assignment, 0
    if not _is_finite(observation):
        return _end(lane, "invalid", clock)
    # Its own stream, so that the episode does not depend on which others are rolled out beside it.
    lane.rng = np.random.default_rng((assignment.meta.seed, 2))
    lane.expert = None
    if assignment.label or assignment.beta > 0:
        if task.expert is None:
            raise ValueError(f"task {task.spec.name} has no expert, which episode {assignment.meta.id} needs")
        lane.expert = task.expert(lane.env, lane.rng)
    lane.recorder = record(assignment.meta) if record is not None else None
    lane.observation, lane.fresh, lane.frames, lane.executed = observation, True, [observation], []
    return None


def _decide(
    lanes: Sequence[_Lane],
    task: Task,
    policy: Policy | None,
    context_length: int,
    rng: np.random.Generator,
    clock: Clock,
) -> None:
    asking = []
    for lane in lanes:
        assert lane.assignment is not None
        lane.chunk = None
        if lane.assignment.beta == 0 or lane.rng.random() >= lane.assignment.beta:
            asking.append(lane)
    if not asking:
        return
    if policy is None:
        raise ValueError("an episode that is not the expert's alone needs a policy")
    started = time.perf_counter()
    actions_BTA = policy.act(
        [lane.slot for lane in asking],
        [{key: np.stack([frame[key] for frame in lane.frames]) for key in lane.frames[0]} for lane in asking],
        [np.reshape(lane.executed, (len(lane.executed), *task.spec.action.shape)) for lane in asking],
        np.array([lane.fresh for lane in asking]),
        context_length,
        rng,
    )
    clock.policy += time.perf_counter() - started
    for lane, chunk in zip(asking, actions_BTA, strict=True):
        lane.chunk, lane.fresh, lane.frames, lane.executed = chunk, False, [], []


def _step(lane: _Lane, offset: int, task: Task, clock: Clock) -> EpisodeEnd | None:
    """Make one step; returns the episode's end if that was its last."""
    assert lane.assignment is not None
    label = lane.expert() if lane.expert is not None else None
    action = _choose(lane, offset, label, task)
    started = time.perf_counter()
    try:
        observation, reward, terminated, truncated, info = lane.env.step(action)
    except ActionError as error:
        return _end(lane, "failure", clock, refusal=str(error))
    stepped = time.perf_counter()
    clock.simulator += stepped - started
    clock.steps += 1
    if not (math.isfinite(reward) and _is_finite(observation)):
        return _end(lane, "invalid", clock)
    if lane.recorder is not None:
        step: dict[str, Array] = {OBSERVATION_PREFIX + key: row for key, row in lane.observation.items()}
        step |= {ACTION: action, REWARD: np.asarray(reward, np.float32)}
        if lane.assignment.label and label is not None:
            step[EXPERT_ACTION] = label
        lane.recorder.append(step)
    clock.store += time.perf_counter() - stepped
    lane.steps += 1
    lane.observation = observation
    lane.frames.append(observation)
    lane.executed.append(action)
    return _end(lane, info["outcome"], clock) if terminated or truncated else None


def _choose(lane: _Lane, offset: int, label: Action | None, task: Task) -> Action:
    if lane.chunk is not None:
        action: Action = lane.chunk[offset]
        return action
    assert lane.assignment is not None
    assert label is not None
    if lane.assignment.noise == 0:
        return label
    low, high = task.spec.action.low, task.spec.action.high
    spread = lane.assignment.noise * (high - low) / 2
    noise = lane.rng.standard_normal(label.shape, np.float32)
    return np.clip(label + np.float32(spread) * noise, low, high).astype(np.float32)


def _is_finite(observation: Observation) -> bool:
    for row in observation.values():
        # Twice as fast as `all()`, and this is asked at every step.
        if row.dtype.kind == "f" and np.count_nonzero(np.isfinite(row)) < row.size:
            return False
    return True


def _end(lane: _Lane, outcome: str, clock: Clock, refusal: str | None = None) -> EpisodeEnd:
    assert lane.assignment is not None
    started = time.perf_counter()
    receipt = None
    if lane.recorder is not None and lane.steps:
        receipt = lane.recorder.finish(outcome)
    elif lane.recorder is not None:
        lane.recorder.abort()
    clock.store += time.perf_counter() - started
    end = EpisodeEnd(lane.assignment.meta, outcome, lane.steps, receipt, refusal)
    lane.assignment = lane.recorder = lane.expert = None
    return end
