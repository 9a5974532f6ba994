"""Control of an episode: who acts at each step, when the expert takes over, and what the expert would do.

    kind        steps, for T_a = 4 (p = the policy acts, e = the expert acts, | = the episode ends)

    policy      p p p p p p p p p p p p |
    expert      e e e e e e e e e e e e |
    takeover    p p p p p p e e e e e e |               to the end
    takeover    p p p p p p e e e e e e p p p p |       handed back at a decision
                            ^ a gate opens: `distance` at a decision, the other gates at any step
    labels      p p p p p p p p p p p p |
                0 1 2 3 0 1 2 3 0 1 2 3                 steps of the expert's plans, one plan per decision

A plan is made on the simulator itself: its state is saved, the expert acts for T_a steps, and the state is
restored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from longview.actors.config import CollectConfig
from longview.actors.task import Action, ActionError, Environment, Expert, Observation, Task, cause
from longview.replay.episode import NO_PLAN, TaskSpec

Control = Literal["policy", "expert", "takeover", "labels"]
"""Kind of control. `policy`, `expert`: one of them acts alone. `takeover`: the policy acts until a gate
opens, then the expert. `labels`: the policy acts, and the expert makes a plan at each of its decisions."""

STILL = 0.01
"""Share of an observation's range. What has moved by no more counts as still."""
PLAYED = 10
"""Steps that `saving_fault` plays twice."""


@runtime_checkable
class Restorable(Protocol):
    """Environment that can return to an earlier state of its episode."""

    def save(self) -> Any:
        """Return the present state."""

    def restore(self, state: Any) -> None:
        """Return to a state that `save` gave since the last reset. The state can be restored again."""


@dataclass
class Takeover:
    """Take-over of one episode: who acts, and what the gate has seen so far."""

    settings: CollectConfig
    """Gate and its thresholds, and whether the expert hands back."""
    spec: TaskSpec
    """Spec of the task."""
    random_step: int
    """Step at which the gate `random` opens."""
    since: int | None = None
    """Step at which the expert took over; None while the policy acts."""
    _seen: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Observation after the last movement."""
    _still: int = 0
    """Steps since that movement."""

    def asks(self, step: int, execute: int) -> bool:
        """Tell whether the policy decides at a step. The expert acts for T_a steps or more before it asks."""
        return self.since is None or (self.settings.hand_back and step - self.since >= execute)

    @property
    def over(self) -> bool:
        """Tell whether the policy has decided for the last time in this episode."""
        return self.since is not None and not self.settings.hand_back

    @property
    def compares(self) -> bool:
        """Tell whether the expert's plan decides on who acts from here on."""
        return self.since is not None or self.settings.gate == "distance"

    def compare(self, step: int, ours: NDArray[np.float32], experts: NDArray[np.float32]) -> None:
        """Take over or hand back at a decision, by the policy's plan (T_a, A) and the expert's (L, A)."""
        away = distance(ours, experts, self.spec)
        if self.since is None:
            self.since = step if away > self.settings.distance else None
        elif away < self.settings.distance / 2:
            self.since, self._seen = None, {}

    def expert_acts(self, step: int, observation: Observation) -> bool:
        """Tell whether the expert makes a step, which it takes over at if the gate opens now."""
        if self.since is None and self._opens(step, observation):
            self.since = step
        return self.since is not None

    def _opens(self, step: int, observation: Observation) -> bool:
        match self.settings.gate:
            case "random":
                return step == self.random_step
            case "progress":
                self._still = 0 if self._moved(observation) else self._still + 1
                return self._still >= self.settings.patience
        return False

    def _moved(self, observation: Observation) -> bool:
        """Tell whether something has moved away from where it last arrived, and remember where it is now."""
        moved = not self._seen or any(
            np.abs(observation[key] - self._seen[key]).max() > limit
            for key, limit in still_limits(self.spec).items()
        )
        if moved:
            self._seen = observation
        return moved


def needs_saving(control: str, collect: CollectConfig) -> bool:
    """Tell whether the expert makes plans, for which the simulator must be a `Restorable`.

    Args:
        control: a `Control`, or another kind of collection.
        collect: gate of a take-over, and whether the expert hands back.
    """
    return control == "labels" or (control == "takeover" and _compares(collect))


def plan(env: Environment, expert: Expert, steps: int) -> NDArray[np.float32]:
    """Return the expert's next actions (L, A). The simulator returns to its present state.

    L is at most `steps`. It is less if the episode would end before, or if the task refuses an action.
    """
    assert isinstance(env, Restorable)
    state, actions = env.save(), list[Action]()
    try:
        ended = False
        while not ended and len(actions) < min(steps, NO_PLAN):
            action = expert()
            _, _, terminated, truncated, _ = env.step(action)
            actions.append(action)
            ended = terminated or truncated
    except ActionError:
        pass
    finally:
        env.restore(state)
    return np.array(actions, np.float32)


def distance(one: NDArray[np.float32], other: NDArray[np.float32], spec: TaskSpec) -> float:
    """Return the mean absolute distance of two plans (steps, A), as a share of the action range.

    The longer plan is cut off at the end of the shorter one. The distance to a plan without steps is 0.
    """
    steps = min(len(one), len(other))
    if not steps:
        return 0.0
    return float(np.abs(one[:steps] - other[:steps]).mean() / (spec.action.high - spec.action.low))


def still_limits(spec: TaskSpec) -> dict[str, float]:
    """Return the distance up to which each observation counts as still, for those with numbers in a range."""
    return {
        key: STILL * (array.high - array.low)
        for key, array in spec.observation.items()
        if array.dtype == "float32" and np.isfinite(array.high - array.low)
    }


def fault(task: Task, collect: CollectConfig) -> str:
    """Say why a task does not allow what is to be collected; the text is empty if it does."""
    spec = task.spec
    if collect.kind not in ("takeover", "labels"):
        return ""
    if task.expert is None:
        return (
            f"collect.kind={collect.kind} needs an expert, which task {spec.name} does not have: "
            "collect.kind=rollout needs none"
        )
    if collect.kind == "labels":
        return ""
    if _compares(collect) and not np.isfinite(spec.action.high - spec.action.low):
        return f"collect.distance: task {spec.name} has no action range to measure plans by"
    if collect.gate == "progress" and not still_limits(spec):
        return f"collect.gate=progress: task {spec.name} observes nothing with a range to measure movement by"
    return ""


def saving_fault(task: Task, env: Environment) -> str:
    """Say why plans cannot be made in a task's simulator; the text is empty if they can.

    The simulator is reset. Then its state is saved, some steps are played, the state is restored, and the
    same steps must give the same observations, to the last bit.
    """
    if not isinstance(env, Restorable):
        return f"its simulator {type(env).__name__} has no `save` and `restore`, as TaskEnv has"
    rng = np.random.default_rng(0)
    low, high = max(task.spec.action.low, -1.0), min(task.spec.action.high, 1.0)
    actions = rng.uniform(low, high, (2 * PLAYED, *task.spec.action.shape)).astype(np.float32)
    try:
        env.reset(seed=0)
        _, ended = _observed(env, actions[:PLAYED])
        if ended:
            env.reset(seed=0)
        state = env.save()
        first, _ = _observed(env, actions[PLAYED:])
        env.restore(state)
        again, _ = _observed(env, actions[PLAYED:])
    except Exception as error:  # a task of others may raise anything
        return cause(error)
    if len(first) != len(again) or any(
        not np.array_equal(one[key], other[key], equal_nan=True)
        for one, other in zip(first, again, strict=True)
        for key in one
    ):
        return f"the same {PLAYED} actions give other observations once its state is restored"
    return ""


def _compares(collect: CollectConfig) -> bool:
    """Tell whether take-overs compare plans."""
    return collect.gate == "distance" or collect.hand_back


def _observed(env: Environment, actions: NDArray[np.float32]) -> tuple[list[Observation], bool]:
    """Return copies of what is observed after each of these actions, and whether the episode has ended."""
    seen = list[Observation]()
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append({key: np.array(row) for key, row in observation.items()})
        if terminated or truncated:
            return seen, True
    return seen, False
