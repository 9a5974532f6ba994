"""Data sets as episodes: the interface of a format's reader, and the checked conversion to a task's
episodes."""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from longview.replay.episode import (
    ACTION,
    BY_PERSON,
    CONTROLLER,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    Array,
    ArraySpec,
    Episode,
    EpisodeMeta,
    TaskSpec,
    episode_id,
    implied_controller,
)
from longview.replay.errors import DatasetError, EpisodeError

Columns = Mapping[str, tuple[str, Callable[[Array], Array]]]
"""Origin of an episode's arrays, by their name in the episode: the name of an array of the data set, and the
function that makes rows (steps, ...) of the episode's array from as many rows of it."""

EVERY: Final = slice(None)
"""All steps of an episode."""
BLOCK_BYTES: Final = 8 << 20
"""Bytes of an episode's arrays that are read at once, as far as a single step does not exceed it."""
RATE_TOLERANCE: Final = 0.01
"""Largest relative difference of two rates that count as equal."""
LONGEST_CONTEXT: Final = 16
"""Longest context length of a task that is made from a data set; the others are the powers of two below."""


@dataclass(frozen=True)
class EpisodeInfo:
    """Facts about one episode of a data set besides its arrays."""

    seed: int
    """Seed of the simulator, or the episode's index if the data set has no seed."""
    outcome: str = "success"
    """Outcome of the episode, one of `OUTCOMES`. Published demonstrations count as `success` unless the data
    set says otherwise."""
    policy_versions: tuple[int, ...] = ()
    """Versions of the weights that acted; empty if only an expert acted."""
    context_length: int = 0
    """Context length T_o that the policy acted with; 0 if only an expert acted."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, plain values by name, which an export writes back."""


class DatasetReader(ABC):
    """Reader of one data set, episode by episode.

    The arrays have the names that they get in an episode, and any numeric dtype; `Source` checks and converts
    them.
    """

    path: Path
    """File or folder of the data set."""
    columns: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    """Shape of one step and dtype of each array, by name."""
    count: int
    """Number of episodes, unreadable ones included."""
    hz: float | None = None
    """Control steps per second; None if the data set does not say."""
    action_range: tuple[float, float] | None = None
    """Smallest and largest value of actions by the format's rules; None if it has no rule."""
    masks: Mapping[str, Sequence[int]] = MappingProxyType({})
    """Named subsets of the episodes, as indices."""
    lossy: Collection[str] = ()
    """Names of the pictures that the data set holds as video, which is not exact."""
    spec: TaskSpec | None = None
    """Task spec that Longview wrote into the data set; None in data sets from elsewhere."""

    @abstractmethod
    def location(self, index: int, column: str) -> str:
        """Describe where a person finds one array of one episode in the data set."""

    @abstractmethod
    def length(self, index: int) -> int:
        """Return the number of steps T of an episode."""

    @abstractmethod
    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        """Read consecutive steps of one array of one episode, (steps, ...).

        Args:
            index: the episode.
            column: the array.
            span: the steps, with start and stop within the episode; by default all.

        Raises:
            DatasetError: the array is missing or damaged.
        """

    @abstractmethod
    def info(self, index: int) -> EpisodeInfo:
        """Read the other facts about one episode.

        Raises:
            DatasetError: the data are damaged.
        """


@dataclass(frozen=True)
class OpenEpisode:
    """Episode of a data set that is read block by block, so that it never has to fit into memory."""

    meta: EpisodeMeta
    """Description of the episode."""
    outcome: str
    """Outcome of the episode, one of `OUTCOMES`."""
    extras: Mapping[str, Any]
    """Further facts, plain values by name."""
    lossy: Collection[str]
    """Names of the pictures that come from a video."""
    blocks: Iterator[Mapping[str, Array]]
    """Arrays of consecutive steps, (steps, ...) by name, from the first step to the last."""


@dataclass(frozen=True)
class Source:
    """Data set as episodes of a task."""

    reader: DatasetReader
    """Reader of the data set."""
    spec: TaskSpec
    """Task that the episodes fit."""
    columns: Columns
    """Origin of the episodes' arrays in the data set."""
    indices: Sequence[int]
    """Indices of the episodes to import. A filter skips the other indices and does not renumber them."""

    def id(self, index: int) -> str:
        """Return the id of an episode. It follows from the task, the index and the actions, so that importing
        again gives the same id and another data set gives other ids.

        Raises:
            DatasetError: the actions cannot be read.
        """
        digest = zlib.crc32(self._array(index, ACTION).tobytes())
        return f"{episode_id('import', self.spec.name, index)}.{digest:08x}"

    def read(self, index: int) -> Episode:
        """Read one episode, all of it into memory.

        Raises:
            DatasetError: the episode is damaged or does not fit the task; the message names it and the field.
        """
        opening = self.open(index)
        blocks = list(opening.blocks)
        arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        return Episode(opening.meta, opening.outcome, arrays, opening.extras)

    def open(self, index: int) -> "OpenEpisode":
        """Open one episode, to be read block by block.

        Raises:
            DatasetError: the episode is damaged or does not fit the task; the message names it and the field.
                The blocks raise it too.
        """
        info = self.reader.info(index)
        meta = EpisodeMeta(
            self.id(index), self.spec.name, info.seed, "import", info.policy_versions, info.context_length
        )
        lossy = {name for name, (column, _) in self.columns.items() if column in self.reader.lossy}
        blocks = self._blocks(index, info.outcome, implied_controller(meta))
        return OpenEpisode(meta, info.outcome, info.extras, lossy, blocks)

    def _blocks(self, index: int, outcome: str, controller: Array | None) -> Iterator[Mapping[str, Array]]:
        """Yield the arrays of an episode in blocks of at most `BLOCK_BYTES`, or of one step."""
        steps, specs = self.reader.length(index), self._specs()
        if not steps:
            raise DatasetError(f"{self._location(index, ACTION)} has no steps")
        # Opening a column costs more than reading it, so the small ones are read once.
        small = {
            name: self._array(index, name)
            for name in self.columns
            if specs[name].bytes * steps <= BLOCK_BYTES
        }
        if REWARD not in self.columns:
            small[REWARD] = np.zeros(steps, np.float32)
            small[REWARD][-1] = float(outcome == "success")
        if CONTROLLER not in self.columns and controller is not None:
            small[CONTROLLER] = np.full(steps, controller)
        size = max(1, BLOCK_BYTES // sum(specs[name].bytes for name in {*self.columns, *small}))
        for start in range(0, steps, size):
            span = slice(start, min(start + size, steps))
            large = {name: self._array(index, name, span) for name in self.columns if name not in small}
            yield {name: rows[span] for name, rows in small.items()} | large

    def _specs(self) -> dict[str, ArraySpec]:
        return self.spec.arrays() | {EXPERT_ACTION: self.spec.action}

    def _array(self, index: int, name: str, span: slice = EVERY) -> Array:
        """Read steps of one array of one episode, and convert them to the task's shape and dtype."""
        column, rows_of = self.columns[name]
        where = self._location(index, name)
        found = _finite(where, self.reader.rows(index, column, span), span.start or 0)
        spec = self._specs()[name]
        shape = (len(found), *spec.shape)
        rows = found
        with suppress(IndexError, ValueError):
            rows = rows_of(found)
        if _squeezed(rows.shape) != _squeezed(shape):
            raise DatasetError(f"{where} is {list(found.shape)}, which gives no {name} of {list(shape)}")
        array = _converted(where, rows.reshape(shape), spec)
        if name == CONTROLLER and (array > BY_PERSON).any():
            raise DatasetError(
                f"{where} must be 0 (a policy), 1 (an expert) or 2 (a person), not {array.max()}"
            )
        if name == ACTION and len(array):
            low, high = array.min(), array.max()
            if low < np.float32(spec.low) or high > np.float32(spec.high):
                raise DatasetError(
                    f"{where} must lie in [{spec.low:g}, {spec.high:g}], not {low:g} to {high:g}"
                )
        return array

    def _location(self, index: int, name: str) -> str:
        return f"{self.reader.path}, {self.reader.location(index, self.columns[name][0])}"


def source_of(
    reader: DatasetReader,
    task: str,
    known: TaskSpec | None = None,
    columns: Columns | None = None,
    hz: float | None = None,
    mask: str | None = None,
) -> Source:
    """Make a source of a task's episodes from a data set.

    Args:
        reader: reader of the data set.
        task: name of the task.
        known: spec of the task; None: make it from the data.
        columns: origin of the arrays that the data set holds under another name or in another form.
        hz: control steps per second, for a data set that does not say.
        mask: named subset of the episodes to use; None: all episodes.

    Raises:
        DatasetError: the data set lacks an array or the subset, or has another rate than the task.
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
    optional = [name for name in (REWARD, CONTROLLER, EXPERT_ACTION) if name not in reader.columns]
    found = {name: (name, _as_it_is) for name in names if name not in optional} | dict(columns or {})
    for name, (column, _) in found.items():
        if column not in reader.columns:
            raise DatasetError(
                f"{reader.path}: there is no {column}, from which {task} has its {name}; "
                f"there are {', '.join(sorted(reader.columns))}"
            )
    return Source(reader, known, found, indices)


def implied_spec(reader: DatasetReader, task: str, hz: float | None = None) -> TaskSpec:
    """Make a task spec from a data set: its arrays, rate, range of actions, longest episode and number of
    episodes.

    Args:
        reader: reader of the data set.
        task: name of the task.
        hz: control steps per second, for a data set that does not say.

    Raises:
        DatasetError: the rate is unknown, or no episode has readable actions.
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
        with suppress(DatasetError):  # the import reports it
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


def encode_info(episode: Episode) -> str:
    """Encode as JSON the facts about an episode that a format has no field for; `decode_info` reads them."""
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


def decode_info(where: str, text: Any) -> EpisodeInfo:
    """Decode what `encode_info` wrote.

    Args:
        where: file and field of the text, for the error.
        text: the JSON.

    Raises:
        DatasetError: the text is damaged.
    """
    try:
        plain = json.loads(text)
        return EpisodeInfo(**{**plain, "policy_versions": tuple(plain["policy_versions"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where} is damaged: {error}") from None


def decode_spec_json(where: str, text: Any) -> TaskSpec:
    """Decode a task's spec from JSON.

    Args:
        where: file and field of the text, for the error.
        text: the JSON.

    Raises:
        DatasetError: the text is damaged.
    """
    try:
        return TaskSpec.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, EpisodeError) as error:
        raise DatasetError(f"{where} is damaged: {error}") from None


def _as_it_is(rows: Array) -> Array:
    return rows


def _squeezed(shape: Sequence[int]) -> list[int]:
    """Drop axes of size 1 behind the time axis: some formats do not tell a number from a vector of one."""
    return [shape[0], *(size for size in shape[1:] if size != 1)] if shape else []


def _finite(where: str, rows: Array, first: int) -> Array:
    """Return rows of finite numbers unchanged. The first row is the episode's step `first`.

    Raises:
        DatasetError: the rows are not numbers, or not finite.
    """
    if rows.dtype.kind not in "fiub":
        raise DatasetError(f"{where} holds {rows.dtype}, not numbers")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        step = first + int(np.argwhere(~np.isfinite(rows))[0, 0])
        raise DatasetError(f"{where} holds values that are not finite, first in step {step}")
    return rows


def _converted(where: str, rows: Array, spec: ArraySpec) -> Array:
    """Convert rows to the dtype of a spec.

    Raises:
        DatasetError: the dtype cannot hold a value.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        array = np.ascontiguousarray(rows, spec.dtype)
    # Wider floats may be rounded to float32; whole numbers may not.
    exact = rows.dtype.kind != "f" or spec.dtype == "uint8"
    if not np.isfinite(array).all() or (exact and not np.array_equal(array, rows)):
        raise DatasetError(
            f"{where} holds values that {spec.dtype} cannot hold, {rows.min()} to {rows.max()}"
        )
    return array
