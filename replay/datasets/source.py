"""Data sets as episodes: the interface of a format's reader, and the checked conversion to a task's
episodes."""

import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from longview.replay.datasets.convert import as_float32, as_rgb, layout_of
from longview.replay.episode import (
    ACTION,
    BY_PERSON,
    CONTROLLER,
    OPTIONAL,
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


@dataclass(frozen=True)
class Column:
    """One array of a data set, over all episodes."""

    place: str
    """Name of the array in the data set, such as `obs/joints`."""
    shape: tuple[int, ...]
    """Shape of one step."""
    dtype: np.dtype[Any]
    """Dtype of the values."""
    rule: str = ""
    """Rule of the format that leaves the array out; empty: an import takes it."""
    problem: str = ""
    """Reason why it cannot be read in most episodes; empty if nothing is known to be wrong with it."""
    lossy: bool = False
    """Whether the data set holds it as video, which is not exact."""

    @property
    def bytes(self) -> int:
        """Size of one step."""
        return math.prod(self.shape) * self.dtype.itemsize


class DatasetReader(ABC):
    """Reader of one data set, episode by episode.

    The arrays have the names that they get in an episode, and any numeric dtype; `Source` checks and converts
    them. What a format's rules leave out has the name that it has in the data set.
    """

    path: Path
    """File or folder of the data set."""
    columns: Mapping[str, Column]
    """All arrays, by name."""
    count: int
    """Number of episodes, unreadable ones included."""
    hz: float | None = None
    """Control steps per second; None if the data set does not say."""
    masks: Mapping[str, Sequence[int]] = MappingProxyType({})
    """Named subsets of the episodes, as indices."""
    mask_problems: Mapping[str, Sequence[str]] = MappingProxyType({})
    """What is wrong with a named subset, by its name."""
    left_out: Mapping[str, str] = MappingProxyType({})
    """Other parts of the data set that an import leaves out, each with the rule."""
    problems: Sequence[str] = ()
    """Parts of the data set that cannot be read and belong to no episode or array."""
    notes: Sequence[str] = ()
    """What a person should know of what was read so far."""
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


@dataclass
class Account:
    """Account of a data set: what becomes of each of its parts."""

    taken: dict[str, str] = field(default_factory=dict)
    """Arrays that the episodes hold, by name in the episode: where each comes from, and what is converted."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Parts that were left out by a rule, by their name in the data set: the rule."""
    bad: list[str] = field(default_factory=list)
    """Parts that could not be read, and what is wrong with each."""
    rounded: dict[str, float] = field(default_factory=dict)
    """Largest error of the conversion to float32, by name in the episode, where it is not exact."""


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
    account: Account = field(default_factory=Account)
    """What becomes of each part of the data set; reading episodes adds to it."""
    size: tuple[int, int] | None = None
    """Width and height that pictures are resized to; None: they keep their size."""

    def id(self, index: int) -> str:
        """Return the id of an episode. It follows from the task, the index and the actions, so that importing
        again gives the same id and another data set gives other ids.

        Raises:
            DatasetError: the episode has no steps, or its actions cannot be read.
        """
        return self._id(index, self._array(index, ACTION))

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
        info, action = self.reader.info(index), self._array(index, ACTION)
        id = self._id(index, action)
        meta = EpisodeMeta(id, self.spec.name, info.seed, "import", info.policy_versions, info.context_length)
        lossy = {name for name, (column, _) in self.columns.items() if self.reader.columns[column].lossy}
        blocks = self._blocks(index, action, info.outcome, implied_controller(meta))
        return OpenEpisode(meta, info.outcome, info.extras, lossy, blocks)

    def _id(self, index: int, action: Array) -> str:
        return f"{episode_id('import', self.spec.name, index)}.{zlib.crc32(action.tobytes()):08x}"

    def _blocks(
        self, index: int, action: Array, outcome: str, controller: Array | None
    ) -> Iterator[Mapping[str, Array]]:
        """Yield the arrays of an episode in blocks of at most `BLOCK_BYTES`, or of one step."""
        steps = len(action)
        bytes_per_step = {name: self._bytes_per_step(name) for name in self.columns}
        # Opening a column costs more than reading it, so the small ones are read once.
        small = {ACTION: action} | {
            name: self._rows(index, name, steps)
            for name, size in bytes_per_step.items()
            if name != ACTION and size * steps <= BLOCK_BYTES
        }
        if REWARD not in self.columns:
            small[REWARD] = np.zeros(steps, np.float32)
            small[REWARD][-1] = float(outcome == "success")
        if CONTROLLER not in self.columns and controller is not None:
            small[CONTROLLER] = np.full(steps, controller)
        for name in small.keys() - self.columns.keys():
            bytes_per_step[name] = small[name].itemsize
        size = max(1, BLOCK_BYTES // sum(bytes_per_step.values()))
        for start in range(0, steps, size):
            span = slice(start, min(start + size, steps))
            large = {name: self._rows(index, name, steps, span) for name in self.columns if name not in small}
            yield {name: rows[span] for name, rows in small.items()} | large

    def _bytes_per_step(self, name: str) -> int:
        """Return the bytes that one step of an array takes, in the data set or in the episode, whichever are
        more."""
        column, _ = self.columns[name]
        return max(self.reader.columns[column].bytes, self._specs()[name].bytes)

    def _specs(self) -> dict[str, ArraySpec]:
        return self.spec.arrays(OPTIONAL)

    def _rows(self, index: int, name: str, steps: int, span: slice = EVERY) -> Array:
        """Read some of the steps of one array of one episode, and check their number."""
        array, expected = self._array(index, name, span), len(range(steps)[span])
        if len(array) != expected:
            raise DatasetError(
                f"{self._location(index, name)} has {len(array)} of {expected} steps, "
                f"unlike {self._location(index, ACTION)}"
            )
        return array

    def _array(self, index: int, name: str, span: slice = EVERY) -> Array:
        """Read steps of one array of one episode, and convert them to the task's shape and dtype."""
        column, rows_of = self.columns[name]
        where = self._location(index, name)
        found = finite(where, self.reader.rows(index, column, span), span.start or 0)
        if not len(found):
            raise DatasetError(f"{where} has no steps")
        spec = self._specs()[name]
        layout = layout_of(found.shape[1:], found.dtype)
        if spec.is_image and layout and rows_of is as_it_is:
            array = as_rgb(where, found, layout, self.size)
            self._check_shape(where, name, array, array, spec)
            return array
        try:
            rows = rows_of(found)
        except (IndexError, ValueError):
            rows = found
        self._check_shape(where, name, rows, found, spec)
        array = self._numbers(where, name, rows.reshape(len(found), *spec.shape), spec)
        if name == CONTROLLER and (array > BY_PERSON).any():
            raise DatasetError(
                f"{where} must be 0 (a policy), 1 (an expert) or 2 (a person), not {array.max()}"
            )
        if name == ACTION:
            low, high = array.min(), array.max()
            if low < np.float32(spec.low) or high > np.float32(spec.high):
                raise DatasetError(
                    f"{where} must lie in [{spec.low:g}, {spec.high:g}], not {low:g} to {high:g}"
                )
        return array

    def _numbers(self, where: str, name: str, rows: Array, spec: ArraySpec) -> Array:
        """Convert rows to a spec's dtype. float32 may round them, which is noted; uint8 may not."""
        if spec.dtype == "uint8":
            with np.errstate(invalid="ignore"):
                array = np.ascontiguousarray(rows, np.uint8)
            if not np.array_equal(array, rows):
                raise DatasetError(
                    f"{where} holds values that uint8 cannot hold, {rows.min()} to {rows.max()}"
                )
            return array
        array, error = as_float32(where, rows)
        if error.any():
            self.account.rounded[name] = max(self.account.rounded.get(name, 0.0), float(error.max()))
        return array

    def _check_shape(self, where: str, name: str, rows: Array, found: Array, spec: ArraySpec) -> None:
        """Check that rows made of what was found have a spec's shape, but for axes of size 1."""
        shape = (len(found), *spec.shape)
        if _squeezed(rows.shape) != _squeezed(shape):
            message = f"{where} is {list(found.shape)}, which gives no {name} of {list(shape)}"
            if spec.is_image and layout_of(rows.shape[1:], rows.dtype):
                message += f": --resize {spec.shape[1]}x{spec.shape[0]} converts its pictures"
            raise DatasetError(message)

    def _location(self, index: int, name: str) -> str:
        return f"{self.reader.path}, {self.reader.location(index, self.columns[name][0])}"


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


def as_it_is(rows: Array) -> Array:
    """Return rows unchanged: an episode's array that the data set holds under the same name."""
    return rows


def finite(where: str, rows: Array, first: int = 0) -> Array:
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


def _squeezed(shape: Sequence[int]) -> list[int]:
    """Drop axes of size 1 behind the time axis: some formats do not tell a number from a vector of one."""
    return [shape[0], *(size for size in shape[1:] if size != 1)] if shape else []
