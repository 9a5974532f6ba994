"""Task specifications, episodes and segments: the contract between actors and learner.

Shapes: T = steps of an episode, A = action dimensions. Row t of every array belongs to step t: the
observation that was seen, the action that was executed upon it, and the reward that this brought.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.replay.errors import EpisodeError

SOURCES: Final = ("demo", "rollout", "dagger", "import")
"""Where an episode came from."""

OUTCOMES: Final = ("success", "wrong", "failure", "invalid")
"""How an episode ended. `success`: the manipulation was completed, at the right place. `wrong`: completed,
but at a place that memory would have ruled out, so that forgetting can be told from clumsiness. `invalid`:
the simulator diverged, which says nothing of the policy; such an episode is kept, but never trained on."""

DRAWABLE: Final = tuple(outcome for outcome in OUTCOMES if outcome != "invalid")
"""Outcomes of episodes that may be drawn from."""

DRAW_BY: Final = ("steps", "episodes", "recency", "priority")
"""What a draw goes by; see `Selection`."""

DTYPES: Final = ("float32", "uint8")
OBSERVATION_PREFIX: Final = "observation."
ACTION: Final = "action"
REWARD: Final = "reward"
EXPERT_ACTION: Final = "expert_action"

_ID = re.compile(r"[a-z0-9_.\-]{1,128}")

Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """One step of one named array: shape without the time axis, dtype and the range of its values."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = float("-inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise EpisodeError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if not self.low <= self.high:
            raise EpisodeError(f"range is empty: low {self.low} > high {self.high}")

    @property
    def is_image(self) -> bool:
        """Whether it is what a camera sees, (H, W, 3) uint8."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] == 3


@dataclass(frozen=True)
class TaskSpec:
    """What a task looks like from outside; all that learner and store know of it."""

    name: str
    observation: Mapping[str, ArraySpec]
    """Observation keys, without the prefix they carry in an episode."""
    action: ArraySpec
    """Shape (A,), with finite range: policies act within it."""
    control_hz: float
    max_steps: int
    """An episode that has not ended by then is cut off and counts as `failure`."""
    context_lengths: tuple[int, ...]
    """Context lengths worth comparing, ascending; the last is the longest a policy is trained for."""
    demonstrations: int
    """N: the number of demonstrations that data scale 1 stands for."""
    chance: float | None = None
    """Success rate that is the best without memory, where that is known."""

    def __post_init__(self) -> None:
        if len(self.action.shape) != 1 or not np.isfinite([self.action.low, self.action.high]).all():
            raise EpisodeError(
                f"task {self.name}: action must be a vector of finite range, not {self.action}"
            )
        if not self.context_lengths or list(self.context_lengths) != sorted(set(self.context_lengths)):
            raise EpisodeError(f"task {self.name}: context_lengths must ascend, not {self.context_lengths}")
        if self.context_lengths[0] < 1:
            raise EpisodeError(f"task {self.name}: context lengths start at 1, not {self.context_lengths[0]}")

    def arrays(self) -> dict[str, ArraySpec]:
        """Specs of all arrays that every episode of this task holds, by their name in the episode."""
        observations = {OBSERVATION_PREFIX + key: spec for key, spec in self.observation.items()}
        return observations | {ACTION: self.action, REWARD: ArraySpec(())}

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for msgpack and JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "TaskSpec":
        """Inverse of `to_dict`."""

        def array(spec: Mapping[str, Any]) -> ArraySpec:
            return ArraySpec(tuple(spec["shape"]), spec["dtype"], spec["low"], spec["high"])

        return TaskSpec(
            **{
                **plain,
                "observation": {key: array(spec) for key, spec in plain["observation"].items()},
                "action": array(plain["action"]),
                "context_lengths": tuple(plain["context_lengths"]),
            }
        )


@dataclass(frozen=True)
class EpisodeMeta:
    """What is known of an episode when it starts. The id decides identity: a second commit is a no-op."""

    id: str
    task: str
    seed: int
    source: str
    policy_versions: tuple[int, ...] = ()
    """Versions of the weights that acted; empty for a pure expert."""
    context_length: int = 0
    """T_o that the policy acted with; 0 for a pure expert."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise EpisodeError(f"episode id must match {_ID.pattern}, not {self.id!r}")
        if self.source not in SOURCES:
            raise EpisodeError(f"source must be one of {', '.join(SOURCES)}, not {self.source!r}")


def episode_id(source: str, task: str, index: int) -> str:
    """Id of the index-th episode of a source: sorts by index, and a retried job meets the same id again."""
    return f"{source}.{task}.{index:09d}"


@dataclass(frozen=True)
class Episode:
    """A committed, immutable episode."""

    meta: EpisodeMeta
    outcome: str
    arrays: Mapping[str, Array]
    """`observation.<key>` (T, ...), `action` (T, A), `reward` (T,), optional `expert_action` (T, A)."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What the data set that it comes from says of it beyond that, plain values by name: nothing here reads
    them, and an export gives them back."""

    @property
    def length(self) -> int:
        """T, in steps."""
        return len(self.arrays[ACTION])


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one episode, and why they were drawn."""

    meta: EpisodeMeta
    episode_length: int
    start: int
    """Step of the episode that row 0 of the arrays holds."""
    now: int
    """The step that was drawn, counted from the episode's start; the rows around it come with it."""
    probability: float
    """Chance that one draw picks this step."""
    arrays: Mapping[str, Array] = field(repr=False)
    stratum: str = ""
    """The stratum of the `Selection` that it was drawn for."""
    by: str = ""
    """What it was drawn by, of `DRAW_BY`; nothing if it was not drawn."""


@dataclass(frozen=True)
class Selection:
    """Which steps to draw, and how often each: all that a store is told about it.

    Raises:
        ValueError: a name is unknown, or the shares are not all finite and >= 0 with one above 0, or the
            half-life is not positive.
    """

    mix: Mapping[str, float]
    """Stratum -> its part of the draws, in any unit. A stratum is `source`, `source/outcome` or
    `source/outcome/task`, with `*` for any: `demo`, `rollout/success`, `*/*/lift`. One without episodes
    leaves its part to the others."""
    by: str = "steps"
    """Of a stratum's steps, all are drawn alike; `episodes`: all episodes are drawn alike, and of an episode
    all steps; `recency`: likewise, but newer episodes more often; `priority`: likewise, in proportion to what
    `EpisodeStore.prioritize` said last, 1 where it said nothing."""
    half_life: float = 1000.0
    """By recency, an episode is drawn half as often as one that is newer by so many of its stratum."""
    outcomes: tuple[str, ...] = ()
    """Draw only from episodes that ended so; `success` alone is success only. None: from all but `invalid`
    ones, which are never drawn from."""
    task: str | None = None
    """Draw only from episodes of this task; None: of all."""

    def __post_init__(self) -> None:
        found = [stratum_names(stratum) for stratum in self.mix]
        if unknown := sorted({source for source, _, _ in found} - {*SOURCES, "*"}):
            raise ValueError(f"mix: unknown sources {unknown}, there are {', '.join(SOURCES)}")
        ends = {outcome for _, outcome, _ in found} - {"*"} | set(self.outcomes)
        if unknown := sorted(ends - set(DRAWABLE)):
            raise ValueError(f"outcomes: {unknown} cannot be drawn, only {', '.join(DRAWABLE)}")
        shares = self.mix.values()
        if not all(0 <= share < float("inf") for share in shares) or not sum(shares) > 0:
            raise ValueError(
                f"mix needs finite shares of 0 or more with a positive sum, not {dict(self.mix)}"
            )
        if self.by not in DRAW_BY:
            raise ValueError(f"draw_by must be one of {', '.join(DRAW_BY)}, not {self.by!r}")
        if not 0 < self.half_life < float("inf"):
            raise ValueError(f"half_life must be finite and positive, not {self.half_life}")

    def __hash__(self) -> int:
        return hash((frozenset(self.mix.items()), self.by, self.half_life, self.outcomes, self.task))


def stratum_names(stratum: str) -> tuple[str, str, str]:
    """Source, outcome and task that a stratum of a `Selection` names, each `*` for any."""
    source, outcome, task = [*stratum.split("/", 2), "*", "*"][:3]
    return source, outcome, task


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first entry, in the order of keys, in which two nested mappings differ: its key, dotted, and what
    each has there, `absent` where that is nothing. None if they are equal."""
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            if below := difference(was, now):
                return f"{key}.{below[0]}", *below[1:]
        elif was != now:
            return key, was, now
    return None


def validate_step(step: Mapping[str, Array], spec: TaskSpec) -> None:
    """Check one step (arrays without time axis) against a task.

    Raises:
        EpisodeError: a key is missing or unknown, a shape or dtype differs, or a value is not finite.
    """
    _validate(step, spec, leading=())


def validate_episode(episode: Episode, spec: TaskSpec) -> None:
    """Check a whole episode against its task.

    Raises:
        EpisodeError: as `validate_step`, or the episode is empty, or its outcome or task is another.
    """
    if episode.meta.task != spec.name:
        raise EpisodeError(f"episode {episode.meta.id}: task is {episode.meta.task}, expected {spec.name}")
    if episode.outcome not in OUTCOMES:
        expected = ", ".join(OUTCOMES)
        raise EpisodeError(f"episode {episode.meta.id}: outcome is {episode.outcome!r}, expected {expected}")
    if ACTION not in episode.arrays or not len(episode.arrays[ACTION]):
        raise EpisodeError(f"episode {episode.meta.id} has no steps")
    try:
        _validate(episode.arrays, spec, leading=(episode.length,))
    except EpisodeError as error:
        raise EpisodeError(f"episode {episode.meta.id}: {error}") from error


def _validate(arrays: Mapping[str, Array], spec: TaskSpec, leading: tuple[int, ...]) -> None:
    expected = spec.arrays()
    if EXPERT_ACTION in arrays:
        expected[EXPERT_ACTION] = spec.action
    if arrays.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
        raise EpisodeError(f"task {spec.name}: missing arrays {missing}, unknown arrays {unknown}")
    for name, array in arrays.items():
        shape, dtype = leading + expected[name].shape, expected[name].dtype
        if array.shape != shape or array.dtype != dtype:
            raise EpisodeError(
                f"task {spec.name}: {name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}"
            )
        if dtype == "float32" and not np.isfinite(array).all():
            raise EpisodeError(f"task {spec.name}: {name} holds values that are not finite")
