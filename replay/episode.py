"""Task specifications, episodes and segments: the contract between actors and learner.

Shapes: T steps of an episode, A action dimensions. Row t of every array belongs to step t: the observation
before the action, the action that was executed, and the reward that followed.
"""

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.replay.errors import EpisodeError
from longview.replay.names import check_name, encode_name

SOURCES: Final = ("demo", "import", "rollout", "correction", "human")
"""Sources, where an episode came from. `demo`: a scripted expert. `import`: a data set. `rollout`: a policy.
`correction`: a policy that an expert or a person corrected, by taking over or by labels. `human`: a
person."""

RENAMED_SOURCES: Final = {"dagger": "correction"}
"""Sources of Longview 0.1 that have another name now."""

OUTCOMES: Final = ("success", "wrong", "failure", "invalid")
"""Outcomes, how an episode ended. `success`: the task was completed at the right place. `wrong`: it was
completed at a place that a policy with memory would have ruled out, which separates forgetting from
clumsiness. `failure`: it was not completed in time. `invalid`: the simulator diverged, which says nothing
about the policy; the episode is kept, but nothing is drawn from it."""

DRAWABLE: Final = tuple(outcome for outcome in OUTCOMES if outcome != "invalid")
"""Outcomes of the episodes that steps may be drawn from."""

DRAW_BY: Final = ("steps", "episodes", "recency", "priority")
"""Rules by which steps are drawn within a stratum; `Selection.by` explains each."""

DTYPES: Final = ("float32", "uint8")
"""Dtypes that an array of an episode may have."""
OBSERVATION_PREFIX: Final = "observation."
"""Prefix of every observation's name in an episode."""
ACTION: Final = "action"
"""Name of the executed actions in an episode, (T, A) float32."""
REWARD: Final = "reward"
"""Name of the rewards in an episode, (T,) float32."""
EXPERT_ACTION: Final = "expert_action"
"""Name of the optional expert labels in an episode, (T, A) float32: what the expert would have done."""
PLAN_STEP: Final = "plan_step"
"""Name of the optional places of the labels in the expert's plans, (T,) uint8: 0 where a plan was made, 1 at
the plan's next step, and so on; `NO_PLAN` where a row has no label. It comes with `expert_action`. Without it
every label stands for itself."""
NO_PLAN: Final = 255
"""Value of `PLAN_STEP` at a step without a label: its `expert_action` repeats the executed action."""
OPTIONAL: Final = (EXPERT_ACTION, PLAN_STEP)
"""Names of the arrays that an episode holds at all of its steps or at none."""

CONTROLLER: Final = "controller"
"""Name of who was in control at each step of an episode, (T,) uint8: `BY_POLICY`, `BY_EXPERT` or
`BY_PERSON`."""

_ID = re.compile(r"[A-Za-z0-9_.%~\-]{1,512}")

Array = NDArray[Any]
"""A numpy array of any shape and dtype."""

BY_POLICY, BY_EXPERT, BY_PERSON = (np.array(value, np.uint8) for value in range(3))
"""Values of `CONTROLLER` at a step: a policy, a scripted expert, a person."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and range of one named array at one step.

    Raises:
        EpisodeError: the dtype is unknown or the range is empty.
    """

    shape: tuple[int, ...]
    """Shape without the time axis; () for a single number."""
    dtype: str = "float32"
    """Dtype of the values, one of `DTYPES`."""
    low: float = float("-inf")
    """Smallest value that the array takes."""
    high: float = float("inf")
    """Largest value that the array takes, at least `low`."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise EpisodeError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if not self.low <= self.high:
            raise EpisodeError(f"range is empty: low {self.low} > high {self.high}")

    @property
    def bytes(self) -> int:
        """Size of the array at one step."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def is_image(self) -> bool:
        """Whether the array is a camera picture, (H, W, 3) uint8."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] == 3


@dataclass(frozen=True)
class TaskSpec:
    """Description of a task: all that the learner and the store know about it.

    Raises:
        EpisodeError: the name breaks the rule of `check_name`, the action is not a vector, or the context
            lengths do not ascend from 1 or more.
    """

    name: str
    """Name that episodes, configs and metrics use for the task; see `check_name`."""
    observation: Mapping[str, ArraySpec]
    """Specs of the observations, by key; in an episode each key carries the prefix `observation.`."""
    action: ArraySpec
    """Spec of the action, shape (A,). Policies act within its limits. A task that is made from a data set has
    none (-inf and inf): a range that was measured in data says what happened, not what is allowed."""
    control_hz: float
    """Control steps per second."""
    max_steps: int
    """Time limit in steps. An episode that has not ended by then is cut off and counts as `failure`."""
    context_lengths: tuple[int, ...]
    """Context lengths T_o worth comparing, ascending; policies are trained up to the last one."""
    demonstrations: int
    """N, the number of demonstrations at data scale 1."""
    chance: float | None = None
    """Best success rate that a policy without memory can reach, 0 to 1; None: unknown."""

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "name of a task")
        except ValueError as error:
            raise EpisodeError(str(error)) from None
        if len(self.action.shape) != 1:
            raise EpisodeError(f"task {self.name}: action must be a vector, not {self.action}")
        if not self.context_lengths or list(self.context_lengths) != sorted(set(self.context_lengths)):
            raise EpisodeError(f"task {self.name}: context_lengths must ascend, not {self.context_lengths}")
        if self.context_lengths[0] < 1:
            raise EpisodeError(f"task {self.name}: context lengths start at 1, not {self.context_lengths[0]}")

    def arrays(self, held: Container[str] = ()) -> dict[str, ArraySpec]:
        """Return the specs of an episode's arrays, by their name in it.

        Args:
            held: names of arrays that the episode holds; those of `OPTIONAL` among them count. By default the
                arrays are those that every episode of this task holds.
        """
        observations = {OBSERVATION_PREFIX + key: spec for key, spec in self.observation.items()}
        controller = ArraySpec((), "uint8", float(BY_POLICY), float(BY_PERSON))
        optional = {EXPERT_ACTION: self.action, PLAN_STEP: ArraySpec((), "uint8", 0.0, float(NO_PLAN))}
        return {
            **observations,
            **{ACTION: self.action, REWARD: ArraySpec(()), CONTROLLER: controller},
            # A place in a plan says nothing without the plan.
            **{name: spec for name, spec in optional.items() if name in held and EXPERT_ACTION in held},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain types, for msgpack and JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "TaskSpec":
        """Make a spec from what `to_dict` returned.

        Raises:
            KeyError, TypeError, AttributeError, EpisodeError: the mapping is not a valid spec.
        """

        def array(spec: Mapping[str, Any]) -> ArraySpec:
            return ArraySpec(**{**spec, "shape": tuple(spec["shape"])})

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
    """Description of an episode that is known before its first step.

    Raises:
        EpisodeError: the id or the source is not valid.
    """

    id: str
    """Identity of the episode, 1 to 512 characters of A-Z, a-z, 0-9, `_`, `.`, `%`, `~` and `-`. A store
    holds at most one episode of an id."""
    task: str
    """Name of the task."""
    seed: int
    """Seed that the simulator was reset with."""
    source: str
    """Origin of the episode, one of `SOURCES`."""
    policy_versions: tuple[int, ...] = ()
    """Versions of the weights that acted; empty if only an expert acted."""
    context_length: int = 0
    """Context length T_o that the policy acted with; 0 if only an expert acted."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise EpisodeError(f"episode id must match {_ID.pattern}, not {self.id!r}")
        if self.source not in SOURCES:
            raise EpisodeError(f"source: {unknown_sources([self.source])}")


def implied_controller(meta: EpisodeMeta) -> Array | None:
    """Return who was in control at every step of an episode whose steps do not say it; None for a correction,
    where control changes hands. An imported episode is an expert's unless a policy acted."""
    match meta.source:
        case "correction":
            return None
        case "human":
            return BY_PERSON
        case "rollout":
            return BY_POLICY
        case "import" if meta.policy_versions:
            return BY_POLICY
    return BY_EXPERT


def episode_id(source: str, task: str, index: int) -> str:
    """Return the id of the index-th episode of a source. Ids of a task sort by index, and a job that is run
    again gets the same ids. The task's name is percent-encoded in them."""
    return f"{source}.{encode_name(task)}.{index:09d}"


def episode_index(id: str) -> int:
    """Return the index that an episode's id ends in."""
    return int(id.rpartition(".")[2])


@dataclass(frozen=True)
class Episode:
    """A whole, immutable episode."""

    meta: EpisodeMeta
    """Description of the episode: id, task, seed, source."""
    outcome: str
    """Outcome of the episode, one of `OUTCOMES`."""
    arrays: Mapping[str, Array]
    """`observation.<key>` (T, ...), `action` (T, A), `reward` (T,), `controller` (T,), optional
    `expert_action` (T, A) and `plan_step` (T,)."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Further facts from the data set that the episode was imported from: plain values by name. Longview does
    not interpret them; an export writes them back."""

    @property
    def length(self) -> int:
        """Number of steps T."""
        return len(self.arrays[ACTION])


class Rows(Mapping[str, Array]):
    """Arrays of consecutive steps, (steps, ...) by name, each of which may lie in several pieces.

    Pictures are large, and a batch copies them from the pieces. Any other array is joined when it is asked
    for.
    """

    def __init__(self, pieces: Mapping[str, Sequence[Array]]) -> None:
        """
        Args:
            pieces: one piece or more of each array, in the order of the steps.
        """
        self.pieces = pieces
        self._joined: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._joined:
            first, *others = self.pieces[name]
            self._joined[name] = np.concatenate([first, *others]) if others else first.view()
            self._joined[name].flags.writeable = False
        return self._joined[name]

    def __contains__(self, name: object) -> bool:
        return name in self.pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one episode around a drawn step, with the reason for the draw."""

    meta: EpisodeMeta
    """Description of the episode."""
    episode_length: int
    """Number of steps of the whole episode."""
    start: int
    """Step of the episode at row 0 of the arrays, 0 for the episode's first step."""
    now: int
    """Drawn step, counted from the episode's start; the arrays also hold steps before and after it."""
    probability: float
    """Probability that one draw picks this step."""
    arrays: Mapping[str, Array] = field(repr=False)
    """Rows of the episode's arrays, (steps, ...), by name."""
    stratum: str = ""
    """Stratum of the `Selection` that the step was drawn for."""
    by: str = ""
    """Rule that the step was drawn by, one of `DRAW_BY`; empty if the segment was not drawn."""

    def pieces(self, name: str) -> Sequence[Array]:
        """Return an array in pieces of consecutive rows, which need not be joined for that."""
        return self.arrays.pieces[name] if isinstance(self.arrays, Rows) else [self.arrays[name]]


@dataclass(frozen=True)
class Selection:
    """Rule that says which steps are drawn from a store, and how often each.

    A draw picks a stratum by its share of the mix, then an episode of the stratum, then one of the episode's
    learnable steps uniformly; one of all its steps if the stratum is to be imitated, as `imitates` tells.

    Raises:
        ValueError: a name is unknown, a share is negative or not finite, no share is above 0, or the
            half-life is not positive.
    """

    mix: Mapping[str, float]
    """Share of the draws by stratum, in any unit: shares are divided by their sum. A stratum is `source`,
    `source/outcome` or `source/outcome/task`, with `*` for any: `demo`, `rollout/success`, `*/*/lift`. The
    share of a stratum without steps to learn from goes to the other strata."""
    by: str = "steps"
    """Rule within a stratum, one of `DRAW_BY`. `steps`: every step has the same chance. `episodes`: every
    episode has the same chance. `recency`: newer episodes have a higher chance, see `half_life`. `priority`:
    an episode's chance is proportional to its priority (`EpisodeStore.prioritize`, 1 by default)."""
    half_life: float = 1000.0
    """Age at which an episode's chance is half that of the newest, for `recency`. The age is the number of
    newer episodes in the stratum."""
    outcomes: tuple[str, ...] = ()
    """Outcomes of the episodes to draw from; empty: all of `DRAWABLE`. `invalid` episodes are never drawn."""
    task: str | None = None
    """Task of the episodes to draw from; None: all tasks."""

    def __post_init__(self) -> None:
        found = [stratum_names(stratum) for stratum in self.mix]
        if others := {source for source, _, _ in found} - {*SOURCES, "*"}:
            raise ValueError(f"mix: {unknown_sources(others)}")
        ends = {outcome for _, outcome, _ in found} - {"*"} | set(self.outcomes)
        if unknown := sorted(ends - set(DRAWABLE)):
            raise ValueError(f"outcomes: {unknown} cannot be drawn, only {', '.join(DRAWABLE)} can")
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


def unknown_sources(names: Iterable[str]) -> str:
    """Return what is wrong with names that are not in `SOURCES`, and what to write instead."""
    unknown = sorted(names)
    for name in unknown:
        if name in RENAMED_SOURCES:
            return (
                f"source {name} is called {RENAMED_SOURCES[name]} now; "
                "`longview store migrate RUN` renames it in a run of Longview 0.1"
            )
    return f"unknown sources {unknown}, there are {', '.join(SOURCES)}"


def stratum_names(stratum: str) -> tuple[str, str, str]:
    """Split the name of a stratum into source, outcome and task, each `*` for any."""
    source, outcome, task = [*stratum.split("/", 2), "*", "*"][:3]
    return source, outcome, task


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first entry, in the order of keys, in which two nested mappings differ.

    Returns:
        The dotted key, the old value and the new value, `"absent"` for a key that a mapping lacks; None if
        the mappings are equal.
    """
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            if below := difference(was, now):
                return f"{key}.{below[0]}", *below[1:]
        elif was != now:
            return key, was, now
    return None


def learnable(arrays: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Tell which steps (T,) of an episode there is something to learn from: an expert or a person was in
    control, or the step carries an `expert_action`. Of a plan with several steps only the first one is."""
    labelled = arrays[PLAN_STEP] == 0 if PLAN_STEP in arrays else EXPERT_ACTION in arrays
    found: NDArray[np.bool_] = (arrays[CONTROLLER] != BY_POLICY) | labelled
    return found


def runs_of(learnable: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the runs of true entries (T,): the first step of each run and the step after its last one, as
    (start, stop, start, stop, ...)."""
    edges = np.flatnonzero(np.diff(learnable, prepend=False, append=False))
    return tuple(edges.tolist())


def imitates(stratum: str) -> bool:
    """Tell whether every step of a stratum's episodes is to be learnt from, whoever acted: the stratum names
    the outcome `success`."""
    return stratum_names(stratum)[1] == "success"


def validate_step(step: Mapping[str, Array], spec: TaskSpec) -> None:
    """Check one step, arrays without time axis, against a task.

    Raises:
        EpisodeError: a key is missing or unknown, a shape or dtype differs, a value is not finite, or a
            controller is unknown.
    """
    _validate(step, spec, leading=())


def validate_episode(episode: Episode, spec: TaskSpec) -> None:
    """Check a whole episode against its task.

    Raises:
        EpisodeError: the episode is empty, belongs to another task, has an unknown outcome, or its arrays do
            not fit the task as in `validate_step`.
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
    expected = spec.arrays(arrays)
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
    if (highest := arrays[CONTROLLER].max()) > BY_PERSON:
        raise EpisodeError(
            f"task {spec.name}: {CONTROLLER} is 0 (a policy), 1 (an expert) or 2 (a person), not {highest}"
        )
