"""Rolls out episodes in several simulators in lockstep, with one batched decision for all every T_a steps.

It does no I/O: recorders and the caller get what happens. Time of one simulator, for T_a = 4 (d = decision,
x = executed step, | = the episode ends, . = waits):

    d x x x x d x x x x d x x | . d x x x x
                                ^ a new episode, reset on its own; it joins at the next decision

Simulators of one process are stepped one after the other, so one that waits costs no time. T_a is the
policy's. Where the expert acts alone, every step is a decision. actors/control.py says who acts.

A policy that decides in another process (`RemotePolicy`) decides for one half of the simulators while the
other half steps (? = waits for a decision):

    first half    ? x x x x ? ? ? x x x x ?
    second half   ? ? ? ? x x x x ? ? ? x x

A robot moves on while it waits. With a delay of one step, each decision is made one step before the actions
run out, and comes into force one step later. The simulators wait all the same:

    step                0 1 2 3 4 5 6 7 8 9
    decided at step 0   x x x x
    decided at step 3         o x x x               o = decided at step 0, whatever is chosen now
    decided at step 6               o x x x
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from longview.actors.config import NO_COLLECTION, CollectConfig
from longview.actors.control import Control, Restorable, Takeover, needs_saving, plan
from longview.actors.donors import Donor
from longview.actors.task import Action, ActionError, Environment, Expert, Observation, Task
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    BY_POLICY,
    CONTROLLER,
    EXPERT_ACTION,
    NO_PLAN,
    OBSERVATION_PREFIX,
    PLAN_STEP,
    REWARD,
    Array,
    EpisodeMeta,
)


class Policy(Protocol):
    """Something that acts with history, such as the learner's PolicySession."""

    @property
    def execute(self) -> int:
        """T_a: actions of one decision, all executed before the next decision."""

    @property
    def max_delay(self) -> int:
        """Most actions that may be decided already when `act` is called."""

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, Array]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
        *,
        decided: Sequence[NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Decide for B simulators.

        Args:
            slots: B indices of simulators.
            new_frames: for each slot, observation key -> (n, ...): frames since its last decision, oldest
                first.
            executed: for each slot, (n - 1 or n, A): actions executed since its last decision.
            reset: (B,), true where an episode starts; the slot's history is forgotten first.
            T_o: context length to decide with.
            rngs: for each slot, the source of the policy's noise.
            decided: for each slot, (n, A): actions from now on that are decided already, at most `max_delay`.
                None: none are.

        Returns:
            (B, T_a, A), within the task's action range, from now on.
        """


@runtime_checkable
class RemotePolicy(Policy, Protocol):
    """Policy that decides in another process, while the asking one goes on."""

    def ask(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, Array]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
        *,
        decided: Sequence[NDArray[np.float32]] | None = None,
    ) -> Callable[[], NDArray[np.float32]]:
        """Ask for a decision, and return a function that waits for what `act` would return."""


class Receipt(Protocol):
    """Receipt of an episode that is on its way to the store."""

    done: bool
    """Whether the episode has arrived, or failed to."""

    def result(self) -> bool:
        """Wait until the episode is stored; false if its id was stored already."""


class Recorder(Protocol):
    """Something that records one episode, such as the store's writer."""

    def append(self, step: Mapping[str, Array]) -> None:
        """Add a step: a row of every array in the task's spec."""

    def finish(self, outcome: str) -> Receipt:
        """End the episode, and begin to make it visible in the store; does not wait for that."""

    def abort(self) -> None:
        """Forget the episode."""


@dataclass(frozen=True)
class Assignment:
    """One episode to roll out."""

    meta: EpisodeMeta
    """Id, seed and source of the episode."""
    control: Control = "policy"
    """Who acts. Steps of the expert are recorded with the action before noise, its label."""
    noise: float = 0.0
    """Standard deviation of noise on the expert's executed actions, as a share of half the action range."""
    collect: CollectConfig = NO_COLLECTION
    """Gate of a take-over, and its thresholds."""
    typical_steps: float = 0.0
    """Steps before which the gate `random` opens."""
    donor: Donor | None = None
    """Another episode, whose past the policy is shown at the same step. None: the episode's own past."""


@dataclass(frozen=True)
class EpisodeEnd:
    """End of an assigned episode."""

    meta: EpisodeMeta
    """Id, seed and source of the episode."""
    outcome: str
    """Outcome: `success`, `wrong`, `failure` or `invalid`."""
    steps: int
    """Control steps of the episode."""
    best_reward: float
    """Largest reward of a step; 0 without steps."""
    receipt: Receipt | None
    """Receipt of the recorder; None for an episode that was not recorded or has no steps."""
    refusal: str | None = None
    """Reason for which the task refused an action; None unless that ended the episode."""


@dataclass
class Clock:
    """Seconds that an actor has spent on each part of its work, and its steps."""

    simulator: float = 0.0
    """Seconds in simulators."""
    policy: float = 0.0
    """Seconds in the policy."""
    expert: float = 0.0
    """Seconds in experts."""
    store: float = 0.0
    """Seconds of recording and of waiting for the store."""
    weights: float = 0.0
    """Seconds of loading policies."""
    limited: float = 0.0
    """Seconds without an order because of a limit: steps ahead of the training, or staleness."""
    ended: float = 0.0
    """Seconds without an order because the expert has made all its steps."""
    waiting: float = 0.0
    """Other seconds without an order."""
    steps: int = 0
    """Control steps simulated."""
    expert_steps: int = 0
    """Steps of experts: those among `steps`, and those of plans."""


@dataclass
class _Lane:
    """One simulator and its present episode."""

    slot: int
    env: Environment
    assignment: Assignment | None = None
    recorder: Recorder | None = None
    expert: Expert | None = None
    takeover: Takeover | None = None
    observation: Observation = field(default_factory=dict)
    """The present observation, which the next action responds to."""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    decisions: int = 0
    """Number of decisions that the policy has made in this episode."""
    frames: list[Observation] = field(default_factory=list)
    """Observations since the policy's last decision."""
    executed: list[Action] = field(default_factory=list)
    """Actions executed since the policy's last decision."""
    chunk: NDArray[np.float32] | None = None
    """Actions of the policy's last decision (T_a, A); None before the first one, and while the expert is in
    control."""
    plan: Sequence[Action] | NDArray[np.float32] = ()
    """Actions of the expert's last plan, if its steps are labels."""
    rewards: list[float] = field(default_factory=list)
    """Rewards of the present episode."""

    @property
    def steps(self) -> int:
        """Control steps of the present episode."""
        return len(self.rewards)


def rollout(
    task: Task,
    envs: Sequence[Environment],
    assignments: Iterable[Assignment],
    *,
    policy: Policy | None,
    context_length: int,
    record: Callable[[EpisodeMeta], Recorder] | None,
    clock: Clock,
    delay: int = 0,
) -> Iterator[EpisodeEnd]:
    """Roll out every assignment, as many at a time as there are simulators.

    An action that the task refuses ends its episode as `failure`. An observation or reward that is not finite
    ends it as `invalid`. The steps before are recorded, and the other simulators go on.

    What happens in an episode follows from its assignment, the policy, T_o and the delay, and not from the
    episodes that are rolled out beside it. Only rounding in a policy's batches differs.

    Args:
        task: the task that all simulators simulate.
        envs: M simulators.
        assignments: the episodes; the next one is taken when a simulator is free.
        policy: decides where the expert does not; None if the expert always decides.
        context_length: T_o given to the policy.
        record: opens the recorder of an episode; None records nothing.
        clock: gets the time spent added.
        delay: steps from the frame that a decision is made from until its actions are executed, at most half
            of T_a. A policy whose `max_delay` is smaller does not get to know the actions that are executed
            in between (plain switching).

    Yields:
        The end of every assignment, in the order in which they end. Episodes that are under way when the
        generator is closed or fails are aborted.

    Raises:
        ValueError: the delay is negative or exceeds half of T_a.
    """
    if delay and not (policy is not None and 0 <= 2 * delay <= policy.execute):
        raise ValueError(f"delay must be 0 to half of T_a, not {delay} of {policy and policy.execute}")
    lanes = [_Lane(slot, env) for slot, env in enumerate(envs)]
    groups = [lanes[::2], lanes[1::2]] if isinstance(policy, RemotePolicy) else [lanes]
    queue = iter(assignments)
    turns = deque(_play(group, queue, task, policy, context_length, record, clock, delay) for group in groups)
    try:
        while turns:
            for end in turns[0]:
                if end is None:
                    turns.rotate(-1)
                    break
                yield end
            else:
                turns.popleft()
    finally:
        for lane in lanes:
            if lane.recorder is not None:
                lane.recorder.abort()


def _play(
    lanes: Sequence[_Lane],
    queue: Iterator[Assignment],
    task: Task,
    policy: Policy | None,
    context_length: int,
    record: Callable[[EpisodeMeta], Recorder] | None,
    clock: Clock,
    delay: int,
) -> Iterator[EpisodeEnd | None]:
    """Roll out assignments of the queue in lockstep, until it is empty.

    Yields:
        The end of every assignment, and None after each request for a decision: the other lanes' turn.
    """
    while True:
        for lane in lanes:
            while lane.assignment is None and (assignment := next(queue, None)) is not None:
                if (end := _start(lane, assignment, task, record, clock)) is not None:
                    yield end
        running = [lane for lane in lanes if lane.assignment is not None]
        if not running:
            return
        take = _ask(running, task, policy, context_length, clock, delay)
        yield None
        take()
        for offset in range(1 if policy is None else policy.execute - delay):
            for lane in running:
                if lane.assignment is not None and (end := _step(lane, offset, task, clock)) is not None:
                    yield end


def _start(
    lane: _Lane,
    assignment: Assignment,
    task: Task,
    record: Callable[[EpisodeMeta], Recorder] | None,
    clock: Clock,
) -> EpisodeEnd | None:
    """Begin an episode; returns its end if the simulator diverges at once."""
    started = time.perf_counter()
    observation, _ = lane.env.reset(seed=assignment.meta.seed)
    clock.simulator += time.perf_counter() - started
    lane.assignment, lane.rewards, lane.chunk = assignment, [], None
    if not _is_finite(observation):
        return _end(lane, "invalid", clock)
    # A stream of its own, so that the episode does not depend on the episodes rolled out beside it.
    lane.rng = np.random.default_rng((assignment.meta.seed, 2))
    lane.expert, lane.takeover, lane.plan = None, None, ()
    if assignment.control != "policy":
        if task.expert is None:
            raise ValueError(f"task {task.spec.name} has no expert, which episode {assignment.meta.id} needs")
        lane.expert = task.expert(lane.env, lane.rng)
    if needs_saving(assignment.control, assignment.collect) and not isinstance(lane.env, Restorable):
        raise ValueError(f"task {task.spec.name} cannot save its state, which the expert's plans need")
    if assignment.control == "takeover":
        latest = assignment.collect.first_part * assignment.typical_steps
        random_step = int(lane.rng.uniform(0, latest))
        lane.takeover = Takeover(assignment.collect, task.spec, random_step)
    lane.recorder = record(assignment.meta) if record is not None else None
    lane.observation, lane.decisions, lane.frames, lane.executed = observation, 0, [observation], []
    return None


def _ask(
    lanes: Sequence[_Lane],
    task: Task,
    policy: Policy | None,
    context_length: int,
    clock: Clock,
    delay: int,
) -> Callable[[], None]:
    """Ask the policy to decide for its lanes; returns a function that waits for the decisions."""
    asking, decided = list[_Lane](), list[NDArray[np.float32]]()
    nothing = np.empty((0, *task.spec.action.shape), np.float32)
    for lane in lanes:
        assert lane.assignment is not None
        before, lane.chunk = lane.chunk, None
        if lane.assignment.control == "expert":
            continue
        if policy is None:
            raise ValueError("an episode that is not the expert's alone needs a policy")
        if lane.takeover is None or lane.takeover.asks(lane.steps, policy.execute):
            asking.append(lane)
            decided.append(nothing if before is None else before[policy.execute - delay :])
    if policy is None or not asking:
        return lambda: None
    started = time.perf_counter()
    frames, executed, reset = zip(*(_view(lane, task, context_length) for lane in asking), strict=True)
    arguments = (
        [lane.slot for lane in asking],
        list(frames),
        list(executed),
        np.array(reset),
        context_length,
        [_noise(lane, context_length) for lane in asking],
    )
    told: dict[str, Any] = {"decided": decided} if 0 < delay <= policy.max_delay else {}
    if isinstance(policy, RemotePolicy):
        decision = policy.ask(*arguments, **told)
    else:
        decision = partial(policy.act, *arguments, **told)
    clock.policy += time.perf_counter() - started
    return partial(_take, asking, decided, decision, clock)


def _view(lane: _Lane, task: Task, context_length: int) -> tuple[dict[str, Array], Array, bool]:
    """Return the frames and actions that the policy is told for its next decision, and whether it forgets
    the ones before: the news of the episode, or all that it is shown of another episode's past."""
    assert lane.assignment is not None
    shown, executed, fresh = lane.frames, lane.executed, lane.decisions == 0
    if lane.assignment.donor is not None:
        past = lane.assignment.donor.past(lane.steps, context_length)
        shown = [*(seen for seen, _ in past), lane.observation]
        executed, fresh = [action for _, action in past], True
    frames = {key: np.stack([frame[key] for frame in shown]) for key in lane.observation}
    return frames, np.reshape(executed, (len(executed), *task.spec.action.shape)), fresh


def _take(
    lanes: Sequence[_Lane],
    decided: Sequence[NDArray[np.float32]],
    decision: Callable[[], NDArray[np.float32]],
    clock: Clock,
) -> None:
    """Wait for a decision, and give each lane its actions. Those that are decided already stay."""
    started = time.perf_counter()
    actions_BTA = decision()
    clock.policy += time.perf_counter() - started
    for lane, ahead, chosen in zip(lanes, decided, actions_BTA, strict=True):
        chunk = np.concatenate((ahead, chosen[len(ahead) :]))
        lane.chunk, lane.frames, lane.executed = chunk, [], []
        lane.decisions += 1
        _plan(lane, chunk, clock)


def _plan(lane: _Lane, chunk: NDArray[np.float32], clock: Clock) -> None:
    """Ask the expert for its plan at a decision of the policy's, if it labels or is compared."""
    if lane.expert is None or (lane.takeover is not None and not lane.takeover.compares):
        return
    started = time.perf_counter()
    experts = plan(lane.env, lane.expert, len(chunk))
    clock.expert += time.perf_counter() - started
    clock.expert_steps += len(experts)
    if lane.takeover is not None:
        lane.takeover.compare(lane.steps, chunk, experts)
    else:
        lane.plan = experts


def _noise(lane: _Lane, context_length: int) -> np.random.Generator:
    """Make the source of a decision's noise. It follows from the episode, the policy's version, T_o and the
    number of decisions before, so that a repeated evaluation gives the same result."""
    assert lane.assignment is not None
    meta = lane.assignment.meta
    return np.random.default_rng((meta.seed, 3, *meta.policy_versions, context_length, lane.decisions))


def _step(lane: _Lane, offset: int, task: Task, clock: Clock) -> EpisodeEnd | None:
    """Make one step; returns the episode's end if that was its last."""
    assert lane.assignment is not None
    if lane.takeover is not None and lane.takeover.expert_acts(lane.steps, lane.observation):
        lane.chunk = None
    asked = time.perf_counter()
    wanted = lane.expert() if lane.chunk is None and lane.expert is not None else None
    action = _choose(lane, offset, wanted, task)
    started = time.perf_counter()
    clock.expert += started - asked
    try:
        observation, reward, terminated, truncated, info = lane.env.step(action)
    except ActionError as error:
        return _end(lane, "failure", clock, refusal=str(error))
    stepped = time.perf_counter()
    clock.simulator += stepped - started
    clock.steps += 1
    clock.expert_steps += wanted is not None
    if not (math.isfinite(reward) and _is_finite(observation)):
        return _end(lane, "invalid", clock)
    if lane.recorder is not None:
        step: dict[str, Array] = {OBSERVATION_PREFIX + key: row for key, row in lane.observation.items()}
        controller = BY_EXPERT if lane.chunk is None else BY_POLICY
        step |= {ACTION: action, REWARD: np.asarray(reward, np.float32), CONTROLLER: controller}
        lane.recorder.append(step | _label(lane, offset, action, wanted))
    clock.store += time.perf_counter() - stepped
    lane.rewards.append(float(reward))
    lane.observation = observation
    if lane.assignment.control == "expert" or (lane.takeover is not None and lane.takeover.over):
        lane.frames, lane.executed = [], []  # no policy will ask for them, and pictures are large
    else:
        lane.frames.append(observation)
        lane.executed.append(action)
    return _end(lane, info["outcome"], clock) if terminated or truncated else None


def _label(lane: _Lane, offset: int, action: Action, wanted: Action | None) -> dict[str, Array]:
    """Return the arrays that say what the expert wanted in the last step, as `EXPERT_ACTION` explains."""
    assert lane.assignment is not None
    if lane.assignment.control == "policy":
        return {}
    if wanted is not None:
        place = 0
    elif offset < len(lane.plan):
        wanted, place = lane.plan[offset], offset
    else:
        wanted, place = action, NO_PLAN
    # Demonstrations need no places: an expert controls every step.
    alone = lane.assignment.control == "expert"
    return {EXPERT_ACTION: wanted} | ({} if alone else {PLAN_STEP: np.array(place, np.uint8)})


def _choose(lane: _Lane, offset: int, wanted: Action | None, task: Task) -> Action:
    if lane.chunk is not None:
        action: Action = lane.chunk[offset]
        return action
    assert lane.assignment is not None
    assert wanted is not None
    if lane.assignment.noise == 0:
        return wanted
    low, high = task.spec.action.low, task.spec.action.high
    if not np.isfinite(high - low):
        raise ValueError(f"task {task.spec.name}: noise is a share of the action range, which has no limits")
    spread = lane.assignment.noise * (high - low) / 2
    noise = lane.rng.standard_normal(wanted.shape, np.float32)
    return np.clip(wanted + np.float32(spread) * noise, low, high).astype(np.float32)


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
    best = max(lane.rewards, default=0.0)
    end = EpisodeEnd(lane.assignment.meta, outcome, lane.steps, best, receipt, refusal)
    lane.assignment = lane.recorder = lane.expert = None
    return end
