"""Settings of actors, collection and evaluation. Importing them needs no simulator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

CollectKind = Literal["off", "rollout", "takeover", "labels", "human"]
Gate = Literal["random", "distance", "progress"]
History = Literal["own", "reversed", "other"]


@dataclass(frozen=True)
class CamerasConfig:
    """Cameras whose pictures a policy sees. Without any, nothing is rendered and no renderer is needed."""

    names: tuple[str, ...] = ()
    """Names of the simulator's cameras, such as `agentview` and `robot0_eye_in_hand`."""
    size: int = 84
    """Width and height of the pictures in pixels."""
    quality: Literal["fast", "full"] = "fast"
    """Quality of rendering: `fast` leaves out shadows, reflections and multisampling."""

    instead_of: tuple[str, ...] = ()
    """Names of observations that the policy does not get, because it is to see them: `cube_pos`."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.quality not in ("fast", "full"):
            raise ValueError(f"quality must be fast or full, not {self.quality!r}")


NO_CAMERAS = CamerasConfig()
"""Settings of a run that renders nothing."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """Settings of a task `gym:ID` or `robosuite:NAME`, which docs/environments.md explains. No other task has
    any."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments with which the environment is made: `{env_name: reach-v3}`, `{robots: Sawyer}`."""
    keys: tuple[str, ...] = ()
    """Observations to take. Empty: all of `gym:ID`, or the low-dimensional ones of robomimic."""
    max_steps: int | None = None
    """Time limit in steps. None: the environment's own, or robomimic's."""
    control_hz: float | None = None
    """Control steps per second. None: as many as the environment says."""
    success: str | float | None = None
    """Rule by which an episode of `gym:ID` is a success: a key of the step's `info` that is true, or the
    return that the episode must reach. None: the environment's own rule."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "control_hz"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def __hash__(self) -> int:
        return hash((repr(self.arguments), self.keys, self.max_steps, self.control_hz, self.success))


NO_ENVIRONMENT = EnvironmentConfig()
"""Settings of an environment as it is."""


@dataclass(frozen=True)
class ActorsConfig:
    """Number of actors and simulators, and the demonstrations to start with."""

    count: int = 2
    """Number of actor processes."""
    simulators: int = 16
    """M: simulators that one actor steps in lockstep."""
    demonstrations: int | None = None
    """Expert episodes to train on from the start; by default the task's own N."""
    noise: float = 0.1
    """Standard deviation of noise on an expert's executed actions, as a share of half the action range.
    Demonstrations then show how to recover. The label stays the expert's own action."""
    cameras: CamerasConfig = NO_CAMERAS
    """Cameras whose pictures the policy sees."""
    oracle: bool = False
    """Whether the policy also observes what it would have to remember. It shows what a perfect memory is
    worth."""
    recycle: int = 500
    """Episodes after which a new process replaces an actor that renders, since OpenGL has aborted old
    processes. An actor that renders nothing lives as long as the run."""

    def __post_init__(self) -> None:
        for name in ("count", "simulators", "recycle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.demonstrations is not None and self.demonstrations < 1:
            raise ValueError(f"demonstrations must be at least 1, not {self.demonstrations}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must lie in [0, 1], not {self.noise}")


@dataclass(frozen=True)
class CollectConfig:
    """What the actors collect with the policy while it is trained, and how much. docs/collect.md compares the
    kinds."""

    kind: CollectKind = "off"
    """Kind of episodes. `off`: none, actors only evaluate. `rollout`: the policy's own, of which a learner
    can imitate the successes. `takeover`: the expert takes over where `gate` opens. `labels`: the policy acts
    and the expert says at every decision what it would do. `human`: episodes come from persons, through the
    store; actors only evaluate."""
    share: float = 0.5
    """Share of the actors' episodes, in (0, 1], that are collected while there are episodes to evaluate. 1: a
    version is evaluated only while there is nothing to collect."""
    context_lengths: Mapping[int, float] = field(default_factory=dict)
    """Weight of each context length T_o that episodes are collected with, in any unit. Empty: every evaluated
    length in turn."""
    steps_per_training_step: float = 4.0
    """Environment steps that actors may collect per training step; they wait once they are further ahead, so
    that a learner on the same machine is not starved. They do not wait while the learner waits for them."""
    max_staleness: int | None = None
    """Training steps since the newest version was published after which actors wait for the next version; at
    least `learner.publish_every`. None: no limit."""
    expert_steps: int | None = None
    """Steps of the expert, those of its plans included, after which collection ends. None: no limit."""
    gate: Gate = "random"
    """Rule by which the expert takes over. `random`: at a random step of a demonstration's first part.
    `distance`: where the policy's and the expert's plans differ by more than `distance`. `progress`: where
    nothing has moved for `patience` steps."""
    first_part: float = 1.0
    """Length of that first part, as a share of the mean length of a demonstration, in (0, 1]. Where a
    policy's way tells what it should remember, less than 1 may help (docs/collect.md)."""
    distance: float = 0.2
    """Mean distance of two plans at which `distance` opens, as a share of the action range; above 0."""
    patience: int = 20
    """Steps without a change of the observation by 1 % of its range, after which `progress` opens."""
    hand_back: bool = False
    """Whether the policy goes on once its plan is closer to the expert's than half of `distance`. Otherwise
    the expert goes on to the end of the episode."""

    def __post_init__(self) -> None:
        for name, kinds in (("kind", CollectKind), ("gate", Gate)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        for name in ("share", "first_part"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], not {getattr(self, name)}")
        weights = self.context_lengths.values()
        if any(length < 1 for length in self.context_lengths) or not all(0 <= w < math.inf for w in weights):
            raise ValueError(
                "context_lengths must be lengths of 1 or more with weights of 0 or more, "
                f"not {dict(self.context_lengths)}"
            )
        if self.context_lengths and sum(weights) == 0:
            raise ValueError(f"context_lengths have no weight above 0: {dict(self.context_lengths)}")
        for name in ("steps_per_training_step", "distance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("patience", "max_staleness", "expert_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def source(self) -> str | None:
        """Source of the episodes that actors collect; None if they collect none."""
        return {"rollout": "rollout", "takeover": "correction", "labels": "correction"}.get(self.kind)


NO_COLLECTION = CollectConfig()
"""Settings of a run that collects nothing with its policy."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Extent of evaluation. Its seeds are those of no training episode."""

    context_lengths: tuple[int, ...] | None = None
    """Context lengths T_o to evaluate, ascending; by default all that the task names."""
    episodes: int = 20
    """Episodes per context length for a version published during training; 0 evaluates only the last one."""
    final_episodes: int = 200
    """Episodes per context length for the last version."""
    delay: int = 0
    """Steps that a robot makes while it waits for a decision, up to half of `learner.policy.execute`. With
    `learner.policy.max_delay` a policy continues the actions of these steps. 0: the robot waits."""
    history: History = "own"
    """Control of what memory is worth: the past frames that the policy is shown. `own`: those of the episode;
    `reversed`: the same in reverse order; `other`: those of the next episode, at the same step, which is
    rolled out first and so doubles the time."""

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"delay must not be negative, not {self.delay}")
        if self.history not in get_args(History):
            raise ValueError(f"history must be one of {', '.join(get_args(History))}, not {self.history!r}")
        if self.episodes < 0 or self.final_episodes < 1:
            raise ValueError(
                "episodes must not be negative and final_episodes at least 1, "
                f"not {self.episodes} and {self.final_episodes}"
            )
        lengths = self.context_lengths
        if lengths is not None and (not lengths or lengths[0] < 1 or list(lengths) != sorted(set(lengths))):
            raise ValueError(f"context_lengths must ascend from 1 or more, not {list(lengths)}")
