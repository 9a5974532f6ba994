"""Plan of an import: which arrays of a data set an episode gets, and the task that follows from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from longview.replay.datasets.convert import (
    as_rgb,
    coarseness,
    layout_of,
    picture_problem,
    picture_rules,
    picture_shape,
)
from longview.replay.datasets.source import (
    BLOCK_BYTES,
    RATE_TOLERANCE,
    Account,
    Column,
    Columns,
    DatasetReader,
    Source,
    as_it_is,
    finite,
)
from longview.replay.episode import (
    ACTION,
    CONTROLLER,
    OBSERVATION_PREFIX,
    OPTIONAL,
    REWARD,
    ArraySpec,
    TaskSpec,
)
from longview.replay.errors import DatasetError

LONGEST_CONTEXT: Final = 16
"""Longest context length of a task that is made from a data set; the others are the powers of two below."""
MENDS: Final = "leave it out by --drop {key}, or all that cannot be read by --skip-bad"
"""What to do about an observation that cannot be taken."""
ADDED: Final = (REWARD, CONTROLLER, *OPTIONAL)
"""Arrays of an episode that a data set need not hold."""


@dataclass(frozen=True)
class Choice:
    """What a person wants of a data set. Arrays are named as in an episode, with or without the prefix
    `observation.`, or as in the data set."""

    keys: Sequence[str] = ()
    """Only these observations; empty: all that the format's rules take."""
    drop: Sequence[str] = ()
    """Arrays to leave out."""
    map: Mapping[str, str] = field(default_factory=dict)
    """New names for arrays, from the data set's to the episode's; also for what the format leaves out."""
    size: tuple[int, int] | None = None
    """Width and height to resize all pictures to; None: they keep their size."""
    skip_bad: bool = False
    """Leave out what cannot be read, and list it; else the first such part raises."""


def source_of(
    reader: DatasetReader,
    task: str,
    known: TaskSpec | None = None,
    columns: Columns | None = None,
    hz: float | None = None,
    mask: str | None = None,
    choice: Choice | None = None,
) -> Source:
    """Make a source of a task's episodes from a data set.

    Args:
        reader: reader of the data set.
        task: name of the task.
        known: spec of the task; None: make it from the data.
        columns: origin of the arrays that the data set holds under another name or in another form.
        hz: control steps per second, for a data set that does not say.
        mask: named subset of the episodes to use; None: all episodes.
        choice: what to take; None: everything, and nothing may be damaged.

    Raises:
        DatasetError: the data set lacks an array or the subset, has another rate than the task, or a part
            cannot be read.
    """
    choice = choice or Choice()
    account = Account(left_out=dict(reader.left_out))
    indices = range(reader.count) if mask is None else _subset(reader, mask)
    for problem in (*reader.problems, *(() if mask is None else reader.mask_problems.get(mask, ()))):
        _refuse(account, f"{reader.path}: {problem}", choice.skip_bad)
    arrays = _chosen(reader, choice, account)
    rate = _rate(reader, hz)
    if known is None:
        arrays = _readable(reader, arrays, indices, choice.skip_bad, account)
        known = _implied(reader, task, rate, arrays, choice)
    elif rate is not None and abs(rate / known.control_hz - 1) > RATE_TOLERANCE:
        raise DatasetError(
            f"{reader.path} was recorded at {rate:g} Hz, but {task} has {known.control_hz:g} control "
            "steps per second"
        )
    found = _origins(reader, known, arrays, columns or {})
    used = {column for column, _ in found.values()}
    for column in arrays.values():
        if column not in used:
            account.left_out[reader.columns[column].place] = f"{task} has no such array"
    specs = known.arrays(OPTIONAL)
    for name, (column, _) in found.items():
        account.taken[name] = _described(reader.columns[column], specs[name], choice.size)
    return Source(reader, known, found, indices, account, choice.size)


def _refuse(account: Account, problem: str, skip_bad: bool) -> None:
    """Note a part that cannot be read.

    Raises:
        DatasetError: nothing may be skipped.
    """
    if not skip_bad:
        raise DatasetError(problem)
    account.bad.append(problem)


def _subset(reader: DatasetReader, mask: str) -> Sequence[int]:
    if mask not in reader.masks:
        raise DatasetError(
            f"{reader.path} has no filter {mask!r}; it has {', '.join(reader.masks) or 'none'}"
        )
    return reader.masks[mask]


def _rate(reader: DatasetReader, hz: float | None) -> float | None:
    """Return the control rate, by the data set or by what a person said."""
    if reader.hz is not None and not 0 < reader.hz < math.inf:
        raise DatasetError(
            f"{reader.path} says that it was recorded at {reader.hz:g} Hz, not more than 0: correct it there"
        )
    if hz and reader.hz and abs(hz / reader.hz - 1) > RATE_TOLERANCE:
        raise DatasetError(f"{reader.path} says that it was recorded at {reader.hz:g} Hz, not {hz:g}")
    return hz if reader.hz is None else reader.hz


def _chosen(reader: DatasetReader, choice: Choice, account: Account) -> dict[str, str]:
    """Choose arrays by the format's rules and a person's choice, and account for the others.

    Returns:
        The names of the reader's columns, by name in the episode.
    """
    arrays = {name: name for name, column in reader.columns.items() if not column.rule}
    account.left_out |= {column.place: column.rule for column in reader.columns.values() if column.rule}

    def leave_out(name: str, rule: str) -> None:
        account.left_out[reader.columns[arrays.pop(name)].place] = rule

    for theirs, ours in choice.map.items():
        column = _find(reader, arrays, theirs)
        target = ours if ours in (ACTION, *ADDED) else _prefixed(ours)
        arrays = {name: taken for name, taken in arrays.items() if taken != column}
        if target in arrays:
            leave_out(target, f"--map gives the name {ours} to {theirs}")
        arrays[target] = column
        account.left_out.pop(reader.columns[column].place, None)
    for name in choice.drop:
        column = _find(reader, arrays, name)
        account.left_out[reader.columns[column].place] = "--drop"
        arrays = {name: taken for name, taken in arrays.items() if taken != column}
    wanted = [_find(reader, arrays, name) for name in choice.keys]
    for name, column in list(arrays.items()):
        if wanted and name.startswith(OBSERVATION_PREFIX) and column not in wanted:
            leave_out(name, "not among --keys")
    for column in wanted:
        if column not in arrays.values():
            raise DatasetError(
                f"{reader.path}: --keys cannot take {column}: "
                f"{account.left_out[reader.columns[column].place]}; --map gives it a name"
            )
    return arrays


def _find(reader: DatasetReader, arrays: Mapping[str, str], name: str) -> str:
    """Return the reader's column that a person means.

    Raises:
        DatasetError: there is none.
    """
    for spelled in (name, _prefixed(name)):
        if spelled in arrays or spelled in reader.columns:
            return arrays.get(spelled, spelled)
    for known, column in reader.columns.items():
        if column.place == name:
            return known
    there = ", ".join(sorted(column.place for column in reader.columns.values()))
    raise DatasetError(f"{reader.path}: there is no {name}; there are {there}")


def _prefixed(name: str) -> str:
    return name if name.startswith(OBSERVATION_PREFIX) else OBSERVATION_PREFIX + name


def _readable(
    reader: DatasetReader,
    arrays: Mapping[str, str],
    indices: Sequence[int],
    skip_bad: bool,
    account: Account,
) -> dict[str, str]:
    """Leave out observations that no episode can have. An action or reward must be readable.

    Raises:
        DatasetError: an array cannot be taken, or no observation is left.
    """
    action = reader.columns.get(arrays.get(ACTION, ""))
    if action is None or (not action.problem and len(action.shape) != 1):
        there = sorted(reader.columns.values(), key=lambda column: column.place)
        raise DatasetError(
            f"{reader.path}: there is no {ACTION} that is a vector (--map NAME={ACTION} names one); there "
            f"are {', '.join(f'{column.place} {list(column.shape)}' for column in there)}"
        )
    kept = {}
    # The action comes first: what is wrong with all episodes is told by it.
    for name, column in sorted(arrays.items(), key=lambda item: item[0] != ACTION):
        problem = _problem(reader, column, indices)
        if problem and name.startswith(OBSERVATION_PREFIX):
            key = name.removeprefix(OBSERVATION_PREFIX)
            _refuse(account, problem if skip_bad else f"{problem}: {MENDS.format(key=key)}", skip_bad)
        elif problem:
            raise DatasetError(problem)
        else:
            kept[name] = column
    if not any(name.startswith(OBSERVATION_PREFIX) for name in kept):
        raise DatasetError(f"{reader.path}: no observation is left: an episode must have one")
    return {name: column for name, column in arrays.items() if name in kept}


def _problem(reader: DatasetReader, name: str, indices: Sequence[int]) -> str:
    """Say why an array cannot be taken from any episode; empty if it can. Values are looked at in the first
    block of the first episode that can be read, but of pictures in uint8, which fit as they are."""
    column = reader.columns[name]
    if problem := column.problem or picture_problem(column.shape, column.dtype):
        return f"{reader.path}: {column.place} {problem}"
    if column.dtype == np.uint8:
        return ""
    first, layout = "", layout_of(column.shape, column.dtype)
    most = max(1, BLOCK_BYTES // max(1, column.bytes))
    for index in indices:
        where = f"{reader.path}, {reader.location(index, name)}"
        try:
            rows = finite(where, reader.rows(index, name, slice(0, min(most, reader.length(index)))))
            if not len(rows):
                continue
        except DatasetError as error:
            first = first or str(error)
            continue
        try:
            if layout:
                as_rgb(where, rows, layout)
                return ""
            coarse = coarseness(where, rows)
        except DatasetError as error:
            return str(error)
        return coarse and f"{where}: {coarse}"
    return first or f"{reader.path}: no episode has any steps"


def _implied(
    reader: DatasetReader,
    task: str,
    rate: float | None,
    arrays: Mapping[str, str],
    choice: Choice,
) -> TaskSpec:
    """Make a task spec from a data set: its arrays, rate, longest episode and number of episodes. Actions
    have no limits. A spec that Longview wrote into the data set goes before.

    Raises:
        DatasetError: the rate is unknown.
    """
    observation = {
        name.removeprefix(OBSERVATION_PREFIX): _spec(reader.columns[column], choice.size)
        for name, column in arrays.items()
        if name.startswith(OBSERVATION_PREFIX)
    }
    if reader.spec is not None:
        own = reader.spec.observation
        taken = {
            key: spec if choice.size and spec.is_image else own.get(key, spec)
            for key, spec in observation.items()
        }
        # A key without an array is an error, unless a person left it out.
        whole = not (choice.keys or choice.drop or choice.map or choice.skip_bad)
        return replace(reader.spec, name=task, observation={**own, **taken} if whole else taken)
    if rate is None:
        raise DatasetError(f"{reader.path} does not say how many steps a second has: give it by --hz")
    longest = max((reader.length(index) for index in range(reader.count)), default=0)
    lengths = (length for length in (1, 2, 4, 8, LONGEST_CONTEXT) if length <= max(1, longest))
    return TaskSpec(
        name=task,
        observation=observation,
        action=ArraySpec(reader.columns[arrays[ACTION]].shape),
        control_hz=float(rate),
        max_steps=max(1, longest),
        context_lengths=tuple(lengths),
        demonstrations=max(1, reader.count),
    )


def _spec(column: Column, size: tuple[int, int] | None) -> ArraySpec:
    """Make the spec of an observation that a column becomes."""
    if layout := layout_of(column.shape, column.dtype):
        return ArraySpec(picture_shape(column.shape, layout, size), "uint8", 0.0, 255.0)
    if column.dtype == np.uint8:
        return ArraySpec(column.shape, "uint8", 0.0, 255.0)
    return ArraySpec(column.shape)


def _origins(reader: DatasetReader, spec: TaskSpec, arrays: Mapping[str, str], columns: Columns) -> Columns:
    """Find the origin of each of a task's arrays.

    Raises:
        DatasetError: the data set lacks an array.
    """
    names = [name for name in spec.arrays(OPTIONAL) if name in arrays or name not in ADDED]
    found: Columns = {**{name: (arrays.get(name, ""), as_it_is) for name in names}, **columns}
    missing = {name: column or name for name, (column, _) in found.items() if column not in reader.columns}
    if missing:
        raise DatasetError(
            f"{reader.path}: there is no {' and no '.join(missing.values())}, from which {spec.name} has its "
            f"{' and '.join(missing)}; there are {', '.join(sorted(arrays))}. --map renames arrays; "
            "environment.keys chooses what a task gym:ID or robosuite:NAME observes"
        )
    return found


def _described(column: Column, spec: ArraySpec, size: tuple[int, int] | None) -> str:
    """Say where an array of the episodes comes from, and how it is converted."""
    layout, rules = layout_of(column.shape, column.dtype), []
    if layout and spec.is_image:
        rules = picture_rules(column.shape, column.dtype, layout, size)
    elif column.dtype != spec.dtype:
        rules = [f"as {spec.dtype}"]
    return ", ".join([f"{column.place} {list(column.shape)} {column.dtype}", *rules])
