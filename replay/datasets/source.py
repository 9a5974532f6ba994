"""Episodes of others: what the reader of a format offers, and how that becomes episodes of a task."""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from longview.replay.episode import (
    ACTION,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    Array,
    ArraySpec,
    Episode,
    EpisodeMeta,
    TaskSpec,
    episode_id,
)
from longview.replay.errors import DatasetError, EpisodeError

Columns = Mapping[str, tuple[str, Callable[[Array], Array]]]
"""By an array's name in the episode: which of the data set's it comes from, and how it follows from that."""

RATE_TOLERANCE: Final = 0.01
"""Rates that differ by less than this part are the same."""
LONGEST_CONTEXT: Final = 16
"""Of the context lengths that a task has which only the data tells of: powers of two up to here."""


@dataclass(frozen=True)
class About:
    """What a data set says of one episode beside its arrays."""

    seed: int
    outcome: str = "success"
    """What was published to be imitated counts as `success`, unless the data says otherwise."""
    policy_versions: tuple[int, ...] = ()
    context_length: int = 0
    extras: Mapping[str, Any] = field(default_factory=dict)


class DatasetReader(ABC):
    """One data set, episode by episode. Its arrays have the names that they have in an episode, and any
    numeric dtype; `Source` checks and converts them."""

    path: Path
    columns: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    """Shape of one step, and dtype."""
    count: int
    """Number of episodes, those that cannot be read included."""
    hz: float | None = None
    """Control steps per second; None where the data set does not say."""
    action_range: tuple[float, float] | None = None
    """What the format says of actions, if anything."""
    masks: Mapping[str, Sequence[int]] = MappingProxyType({})
    """Named subsets: the indices of their episodes."""
    spec: TaskSpec | None = None
    """The task, where the data set was written by this package and so tells of it."""

    @abstractmethod
    def place(self, index: int, column: str) -> str:
        """Where one array of one episode is, as a person looks for it."""

    @abstractmethod
    def rows(self, index: int, column: str) -> Array:
        """One array of one episode, (T, ...).

        Raises:
            DatasetError: it is missing or damaged.
        """

    @abstractmethod
    def about(self, index: int) -> About:
        """What else is known of one episode.

        Raises:
            DatasetError: that is damaged.
        """


@dataclass(frozen=True)
class Source:
    """A data set as episodes of a task; one of them is in memory at a time."""

    reader: DatasetReader
    spec: TaskSpec
    columns: Columns
    indices: Sequence[int]
    """Of the episodes to import; a filter leaves out the others, whose indices nobody else gets."""

    def id(self, index: int) -> str:
        """The same whenever this episode is imported; another data set's episode has another.

        Raises:
            DatasetError: its actions cannot be read.
        """
        digest = zlib.crc32(self._array(index, ACTION).tobytes())
        return f"{episode_id('import', self.spec.name, index)}.{digest:08x}"

    def read(self, index: int) -> Episode:
        """One episode.

        Raises:
            DatasetError: it is damaged or does not fit the task; the message names it and the field.
        """
        arrays = {name: self._array(index, name) for name in self.columns}
        steps = len(arrays[ACTION])
        for name, array in arrays.items():
            if len(array) != steps or not steps:
                raise DatasetError(
                    f"{self._place(index, name)} has {len(array)} steps, {self._place(index, ACTION)} {steps}"
                )
        about = self.reader.about(index)
        if REWARD not in arrays:
            arrays[REWARD] = np.zeros(steps, np.float32)
            arrays[REWARD][-1] = float(about.outcome == "success")
        meta = EpisodeMeta(
            self.id(index),
            self.spec.name,
            about.seed,
            "import",
            about.policy_versions,
            about.context_length,
        )
        return Episode(meta, about.outcome, arrays, about.extras)

    def _array(self, index: int, name: str) -> Array:
        column, rows_of = self.columns[name]
        where = self._place(index, name)
        found = _finite(where, self.reader.rows(index, column))
        spec = ({**self.spec.arrays(), EXPERT_ACTION: self.spec.action})[name]
        shape = (len(found), *spec.shape)
        rows = found
        with suppress(IndexError, ValueError):
            rows = rows_of(found)
        if _squeezed(rows.shape) != _squeezed(shape):
            raise DatasetError(f"{where} is {list(found.shape)}, which gives no {name} of {list(shape)}")
        array = _converted(where, rows.reshape(shape), spec)
        if name == ACTION and len(array):
            low, high = array.min(), array.max()
            if low < np.float32(spec.low) or high > np.float32(spec.high):
                raise DatasetError(
                    f"{where} must lie in [{spec.low:g}, {spec.high:g}], not {low:g} to {high:g}"
                )
        return array

    def _place(self, index: int, name: str) -> str:
        return f"{self.reader.path}, {self.reader.place(index, self.columns[name][0])}"


def source_of(
    reader: DatasetReader,
    task: str,
    known: TaskSpec | None = None,
    columns: Columns | None = None,
    hz: float | None = None,
    mask: str | None = None,
) -> Source:
    """The episodes of a data set as those of a task.

    Args:
        reader: of the data set.
        task: its name.
        known: its spec; None: the one that the data implies.
        columns: for arrays that are not there under their own name, as they are.
        hz: control steps per second, for a data set that does not say.
        mask: which named subset of the episodes; None: all.

    Raises:
        DatasetError: the data set lacks what the task needs, or there is no such subset.
    """
    if mask is not None and mask not in reader.masks:
        raise DatasetError(
            f"{reader.path} has no filter {mask!r}; it has {', '.join(reader.masks) or 'none'}"
        )
    indices = range(reader.count) if mask is None else reader.masks[mask]
    if known is None:
        known = implied_spec(reader, task, hz)
    elif reader.hz is not None and abs(reader.hz / known.control_hz - 1) > RATE_TOLERANCE:
        raise DatasetError(
            f"{reader.path} was recorded at {reader.hz:g} Hz, but {task} has {known.control_hz:g} control "
            "steps per second"
        )
    names = [*known.arrays(), EXPERT_ACTION]
    optional = [name for name in (REWARD, EXPERT_ACTION) if name not in reader.columns]
    found = {name: (name, _as_it_is) for name in names if name not in optional} | dict(columns or {})
    for name, (column, _) in found.items():
        if column not in reader.columns:
            raise DatasetError(
                f"{reader.path}: there is no {column}, from which {task} has its {name}; "
                f"there are {', '.join(sorted(reader.columns))}"
            )
    return Source(reader, known, found, indices)


def implied_spec(reader: DatasetReader, task: str, hz: float | None = None) -> TaskSpec:
    """The task that the data itself tells of: its arrays, its rate, the range of its actions, its longest
    episode, and all of its episodes as the number of demonstrations.

    Raises:
        DatasetError: it does not tell enough.
    """
    if reader.spec is not None:
        return replace(reader.spec, name=task)
    rate = hz if reader.hz is None else reader.hz
    if rate is None:
        raise DatasetError(f"{reader.path} does not say how many steps a second has: give it by --hz")
    if ACTION not in reader.columns or len(reader.columns[ACTION][0]) != 1:
        raise DatasetError(
            f"{reader.path}: there is no {ACTION} that is a vector; there are "
            + ", ".join(f"{name} {list(shape)}" for name, (shape, _) in sorted(reader.columns.items()))
        )
    longest, limits = 0, list(reader.action_range or ())
    for index in range(reader.count):
        with suppress(DatasetError):  # told when it is imported
            rows = reader.rows(index, ACTION).astype(np.float32)
            finite = rows[np.isfinite(rows)]
            longest = max(longest, len(rows))
            limits += [float(finite.min()), float(finite.max())] if finite.size else []
    if not longest or not limits:
        raise DatasetError(f"{reader.path}: there is no episode whose actions can be read")
    return TaskSpec(
        name=task,
        observation={
            name.removeprefix(OBSERVATION_PREFIX): ArraySpec(shape, "uint8", 0.0, 255.0)
            if dtype == np.uint8
            else ArraySpec(shape)
            for name, (shape, dtype) in reader.columns.items()
            if name.startswith(OBSERVATION_PREFIX)
        },
        action=ArraySpec(reader.columns[ACTION][0], low=min(limits), high=max(limits)),
        control_hz=float(rate),
        max_steps=longest,
        context_lengths=tuple(
            length for length in (1, 2, 4, 8, LONGEST_CONTEXT) if length <= max(1, longest)
        ),
        demonstrations=max(1, reader.count),
    )


def encode_about(episode: Episode) -> str:
    """What a format has no place for, as JSON that an export puts aside and an import finds again."""
    meta = episode.meta
    return json.dumps(
        {
            "seed": meta.seed,
            "outcome": episode.outcome,
            "policy_versions": meta.policy_versions,
            "context_length": meta.context_length,
            "extras": dict(episode.extras),
        }
    )


def decode_about(where: str, text: Any) -> About:
    """Inverse of `encode_about`; `where` it was found is for the error.

    Raises:
        DatasetError: this is something else.
    """
    try:
        plain = json.loads(text)
        return About(**{**plain, "policy_versions": tuple(plain["policy_versions"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where} is damaged: {error}") from None


def decode_spec_of(where: str, text: Any) -> TaskSpec:
    """A task's spec from JSON; `where` it was found is for the error.

    Raises:
        DatasetError: this is something else.
    """
    try:
        return TaskSpec.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, EpisodeError) as error:
        raise DatasetError(f"{where} is damaged: {error}") from None


def _as_it_is(rows: Array) -> Array:
    return rows


def _squeezed(shape: Sequence[int]) -> list[int]:
    """Steps, and what is not 1 of the rest: some formats cannot tell a number from a vector of one."""
    return [shape[0], *(size for size in shape[1:] if size != 1)] if shape else []


def _finite(where: str, rows: Array) -> Array:
    if rows.dtype.kind not in "fiub":
        raise DatasetError(f"{where} holds {rows.dtype}, not numbers")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        step = int(np.argwhere(~np.isfinite(rows))[0, 0])
        raise DatasetError(f"{where} holds values that are not finite, first in step {step}")
    return rows


def _converted(where: str, rows: Array, spec: ArraySpec) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        array = np.ascontiguousarray(rows, spec.dtype)
    # What is wider than float32 is rounded; whole numbers must not be.
    exact = rows.dtype.kind != "f" or spec.dtype == "uint8"
    if not np.isfinite(array).all() or (exact and not np.array_equal(array, rows)):
        raise DatasetError(
            f"{where} holds values that {spec.dtype} cannot hold, {rows.min()} to {rows.max()}"
        )
    return array
