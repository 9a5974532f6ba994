"""Index of all committed episodes in a reader's memory, one row per episode, updated by changes only."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.replay.codec import Record
from longview.replay.episode import DRAWABLE, OUTCOMES, SOURCES, Selection, imitates, stratum_names
from longview.replay.errors import StoreError
from longview.replay.names import decode_name, encode_name
from longview.replay.redis.totals import stats_of
from longview.replay.sampling import Plan, Table, plan

PAGE: Final = 5_000
"""Entries that a shard returns at once. With more, a reply would block Redis for other clients."""

PLANS: Final = 8
"""Selections whose plans are kept."""

_COLUMNS: Final = {  # see `sampling.Table`; shard: the shard that lists the episode
    "id": np.bytes_,
    "length": np.int32,
    "learnable": np.int32,
    "source": np.int8,
    "outcome": np.int8,
    "task": np.int32,
    "committed": np.int64,
    "priority": np.float64,
    "shard": np.int32,
}


def index_entry(record: Record) -> str:
    """Return the entry of an episode in the index that Redis keeps."""
    meta = record.meta
    return f"{meta.id}:{record.length}:{record.learnable}:{record.outcome}:{encode_name(meta.task)}"


class Index:
    """All committed episodes at the time of the last `apply`. Only one thread at a time may use it."""

    def __init__(self, shards: int) -> None:
        self._known = [[0] * (2 + len(SOURCES)) for _ in range(shards)]
        """Times up to which the lists of each shard are known: removals, priorities, episodes by source."""
        self._totals: list[dict[bytes, bytes]] = [{} for _ in range(shards)]
        """Totals of each shard."""
        self._rows: dict[str, int] = {}
        """Rows by episode id."""
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, kind) for name, kind in _COLUMNS.items()}
        """Columns of the table, (rows,), with room for more rows."""
        self._tasks: list[str] = []
        """Names of the tasks, in the order in which they were first seen."""
        self._held_out: set[str] = set()
        """Ids that are never drawn."""
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        """Rows that may be drawn from, sorted by id, without the changes in `_added` and `_removed`."""
        self._added: list[int] = []
        """Rows that were added since `_order` was sorted."""
        self._removed: list[int] = []
        """Rows whose episode was removed since `_order` was sorted."""
        self._free: list[int] = []
        """Rows for new episodes to use again."""
        self._plans: dict[Selection, Plan] = {}
        """Plans of the current table."""

    def known(self, shard: int) -> list[int]:
        """Return the times up to which each list of a shard is known, as `scripts.CHANGES` takes them."""
        return self._known[shard]

    def apply(self, shard: int, reply: Sequence[Any]) -> bool:
        """Apply the reply of a shard to `scripts.CHANGES`, whose indices are in the order of `SOURCES`.

        Returns:
            Whether the shard has more changes to ask for.

        Raises:
            StoreError: the index was written by another version of Longview.
        """
        everything, totals, *lists = reply
        known, self._totals[shard] = self._known[shard], dict(zip(totals[::2], totals[1::2], strict=True))
        clock = int(self._totals[shard].get(b"clock", 0))
        if everything:
            for id in [id for id, row in self._rows.items() if self._columns["shard"][row] == shard]:
                self.forget(id)
            known[:] = [0] * len(known)
        removed, priorities, *indices = (list(_scored(entries)) for entries in lists)
        for id, time in removed:
            self.forget(id, time)
        for source, entries in enumerate(indices):
            self._add([self._values(entry, source, time, shard) for entry, time in entries])
        for entry, _ in priorities:
            id, priority = entry.split(":")
            if id in self._rows:
                self._columns["priority"][self._rows[id]] = float(priority)
                self._plans.clear()
        behind = any(len(entries) >= PAGE for entries in indices)
        for number, changes in enumerate((removed, priorities, *indices)):
            if len(changes) >= PAGE:
                known[number] = changes[-1][1]
            # The script returns no priorities while it has more episodes to list, so they stay unknown.
            elif number != 1 or not behind:
                known[number] = clock
        return behind or len(removed) >= PAGE or len(priorities) >= PAGE

    def forget(self, id: str, time: float = math.inf) -> None:
        """Remove an episode that is no longer stored, unless it was committed at or after this time."""
        row = self._rows.get(id)
        if row is not None and self._columns["committed"][row] < time:
            del self._rows[id]
            self._columns["length"][row] = 0
            self._removed.append(row)
            self._plans.clear()

    def hold_out(self, ids: Iterable[str]) -> None:
        """Exclude episodes from draws, also those that are not known yet."""
        self._held_out |= set(ids)
        self._columns["length"][[self._rows[id] for id in self._held_out if id in self._rows]] = 0
        self._plans.clear()

    def ids(self, source: str | None = None) -> list[str]:
        """Return the ids of all episodes, or of one source, sorted."""
        numbers = self._columns["source"]
        return sorted(
            id for id, row in self._rows.items() if source is None or SOURCES[numbers[row]] == source
        )

    def plan(self, selection: Selection) -> Plan:
        """Return the plan by which to draw for a selection. A plan is kept until the index changes.

        Raises:
            StoreError: the selection matches no episode.
        """
        if selection not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._sort()
            columns = {name: column for name, column in self._columns.items() if name != "shard"}
            table = Table(order=self._order, task_names=self._tasks, **columns)
            self._plans[selection] = plan(table, selection)
        return self._plans[selection]

    def steps(self, selection: Selection) -> int:
        """Return the number of stored steps that a selection may draw."""
        try:
            return self.plan(selection).steps
        except StoreError:
            return 0

    def committed_steps(self, selection: Selection) -> int:
        """Return the steps to draw that were ever committed with a selected source and outcome, in all tasks:
        learnable steps, or all steps where a stratum is to be imitated."""
        committed = 0
        for (source, outcome), count in stats_of(self._totals, 0).committed.items():
            strata = [
                imitates(stratum)
                for stratum, share in selection.mix.items()
                if share and _covers(stratum, source, outcome)
            ]
            if strata and outcome in (selection.outcomes or DRAWABLE):
                committed += count.steps if any(strata) else count.learnable
        return committed

    def _values(self, entry: str, source: int, time: int, shard: int) -> tuple[Any, ...]:
        """Return the values of an episode's row, in the order of the columns."""
        try:
            id, length, learnable, outcome, task = entry.split(":", 4)
            drawable = outcome in DRAWABLE and id not in self._held_out
            kind = source, OUTCOMES.index(outcome), self._task(decode_name(task))
            return id, int(length) * drawable, int(learnable), *kind, time, 1.0, shard
        except ValueError:
            raise StoreError(f"{entry!r} was written to the index by another version of Longview") from None

    def _add(self, episodes: Sequence[tuple[Any, ...]]) -> None:
        """Add episodes, each given by the values of its row."""
        if not episodes:
            return
        rows = []
        for id, *_ in episodes:
            self.forget(id)
            # If no row is free, every row so far is in use or in `_removed`.
            self._rows[id] = self._free.pop() if self._free else len(self._rows) + len(self._removed)
            rows.append(self._rows[id])
        if (size := max(rows) + 1) > len(self._columns["id"]):
            # Doubling the size copies each row only about once in total.
            self._columns = {name: np.resize(column, 2 * size) for name, column in self._columns.items()}
            self._columns["length"][size:] = 0
        for name, values in zip(_COLUMNS, zip(*episodes, strict=True), strict=True):
            new: NDArray[Any] = np.array(values, _COLUMNS[name])
            if new.itemsize > self._columns[name].itemsize:
                self._columns[name] = self._columns[name].astype(new.dtype)
            self._columns[name][rows] = new
        self._added += rows
        self._plans.clear()

    def _task(self, name: str) -> int:
        """Return the number of a task, a new one if its name is new."""
        if name not in self._tasks:
            self._tasks.append(name)
        return self._tasks.index(name)

    def _sort(self) -> None:
        """Bring `_order` up to date with the rows that were added and removed."""
        length, ids = self._columns["length"], self._columns["id"]
        order = self._order[length[self._order] > 0]
        added = np.array([row for row in self._added if length[row] > 0], np.int64)
        added = added[np.argsort(ids[added])]
        places = [bisect_left(order, id, key=ids.__getitem__) for id in ids[added]]
        self._order = np.insert(order, places, added)
        self._free += self._removed
        self._added, self._removed = [], []


def _covers(stratum: str, source: str, outcome: str) -> bool:
    """Tell whether a stratum has episodes of a source and outcome, in one task or all."""
    wanted_source, wanted_outcome, _ = stratum_names(stratum)
    return wanted_source in (source, "*") and wanted_outcome in (outcome, "*")


def _scored(entries: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Pair the entries of a sorted set with their scores."""
    return ((entry.decode(), int(score)) for entry, score in zip(entries[::2], entries[1::2], strict=True))
