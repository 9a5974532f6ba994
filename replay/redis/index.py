"""What a reader knows of the store's contents: a row an episode, kept up to date by differences."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.replay.codec import Record
from longview.replay.episode import DRAWABLE, OUTCOMES, SOURCES, Selection, stratum_names
from longview.replay.errors import StoreError
from longview.replay.redis.totals import stats_of
from longview.replay.sampling import Plan, Table, plan

PAGE: Final = 5_000
"""Entries of a list that a shard is asked for at once: more would keep others waiting for Redis."""

PLANS: Final = 8
"""Selections whose plans are kept."""

_COLUMNS: Final = {
    "id": np.bytes_,
    "length": np.int32,
    "source": np.int8,
    "outcome": np.int8,
    "task": np.int32,
    "committed": np.int64,
    "priority": np.float64,
    "shard": np.int32,
}


def entry_of(record: Record) -> str:
    """What an index in Redis holds of an episode."""
    return f"{record.meta.id}:{record.length}:{record.outcome}:{record.meta.task}"


class Index:
    """All committed episodes as of the last `apply`. Not safe to use from several threads."""

    def __init__(self, shards: int) -> None:
        self._known = [[0] * (2 + len(SOURCES)) for _ in range(shards)]
        """Per shard, the times up to which its lists are known: removals, priorities, episodes by source."""
        self._totals: list[dict[bytes, bytes]] = [{} for _ in range(shards)]
        self._rows: dict[str, int] = {}
        """By id; a row whose episode is gone serves another later."""
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, kind) for name, kind in _COLUMNS.items()}
        self._tasks: list[str] = []
        self._held_out: set[str] = set()
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        """Rows that may be drawn from, sorted by id, but for these changes: rows that came and that went."""
        self._came: list[int] = []
        self._went: list[int] = []
        self._free: list[int] = []
        self._plans: dict[Selection, Plan] = {}

    def known(self, shard: int) -> list[int]:
        """What `scripts.CHANGES` wants to know: up to when this reader knows each of the shard's lists."""
        return self._known[shard]

    def apply(self, shard: int, reply: Sequence[Any]) -> bool:
        """Take in what `scripts.CHANGES` says of a shard, its indices in the order of `SOURCES`.

        Returns:
            Whether there is more to ask for.

        Raises:
            StoreError: another version of the store has written there.
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
            # Priorities of episodes that are not listed yet were left for later.
            elif number != 1 or not behind:
                known[number] = clock
        return behind or len(removed) >= PAGE or len(priorities) >= PAGE

    def forget(self, id: str, time: float = math.inf) -> None:
        """Leave out an episode that is no longer there, unless it was committed after this time."""
        row = self._rows.get(id)
        if row is not None and self._columns["committed"][row] < time:
            del self._rows[id]
            self._columns["length"][row] = 0
            self._went.append(row)
            self._plans.clear()

    def hold_out(self, ids: Iterable[str]) -> None:
        """Let no step of these episodes be drawn, whether they are known already or not."""
        self._held_out |= set(ids)
        self._columns["length"][[self._rows[id] for id in self._held_out if id in self._rows]] = 0
        self._plans.clear()

    def ids(self, source: str | None = None) -> list[str]:
        """Those of all episodes, or of one source, sorted."""
        of = self._columns["source"]
        return sorted(id for id, row in self._rows.items() if source is None or SOURCES[of[row]] == source)

    def plan(self, selection: Selection) -> Plan:
        """How to draw; made anew when something that is known has changed.

        Raises:
            StoreError: nothing that is known is selected.
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
        """How many there are to draw from."""
        try:
            return self.plan(selection).steps
        except StoreError:
            return 0

    def committed_steps(self, selection: Selection) -> int:
        """Steps that were ever committed, in all tasks, of sources and outcomes that are selected."""
        names = [stratum_names(stratum) for stratum, share in selection.mix.items() if share]
        return sum(
            count.steps
            for (source, outcome), count in stats_of(self._totals, 0).committed.items()
            if outcome in (selection.outcomes or DRAWABLE)
            and any(a in (source, "*") and b in (outcome, "*") for a, b, _ in names)
        )

    def _values(self, entry: str, source: int, time: int, shard: int) -> tuple[Any, ...]:
        """Of an episode, in the order of the columns."""
        try:
            id, length, outcome, task = entry.split(":", 3)
            drawable = outcome in DRAWABLE and id not in self._held_out
            kind = source, OUTCOMES.index(outcome), self._task(task)
            return id, int(length) * drawable, *kind, time, 1.0, shard
        except ValueError:
            raise StoreError(f"{entry!r} was written to the index by another version of Longview") from None

    def _add(self, episodes: Sequence[tuple[Any, ...]]) -> None:
        """Episodes by their values."""
        if not episodes:
            return
        rows = []
        for id, *_ in episodes:
            self.forget(id)
            # Without a free one, all that ever were are in use or have just gone.
            self._rows[id] = self._free.pop() if self._free else len(self._rows) + len(self._went)
            rows.append(self._rows[id])
        if (size := max(rows) + 1) > len(self._columns["id"]):
            # Twice as many: so each is copied only about once, however many there are.
            self._columns = {name: np.resize(column, 2 * size) for name, column in self._columns.items()}
            self._columns["length"][size:] = 0
        for name, values in zip(_COLUMNS, zip(*episodes, strict=True), strict=True):
            new: NDArray[Any] = np.array(values, _COLUMNS[name])
            if new.itemsize > self._columns[name].itemsize:
                self._columns[name] = self._columns[name].astype(new.dtype)
            self._columns[name][rows] = new
        self._came += rows
        self._plans.clear()

    def _task(self, name: str) -> int:
        if name not in self._tasks:
            self._tasks.append(name)
        return self._tasks.index(name)

    def _sort(self) -> None:
        """Take what came into the order, and what went out of it."""
        length, ids = self._columns["length"], self._columns["id"]
        order = self._order[length[self._order] > 0]
        came = np.array([row for row in self._came if length[row] > 0], np.int64)
        came = came[np.argsort(ids[came])]
        places = [bisect_left(order, id, key=ids.__getitem__) for id in ids[came]]
        self._order = np.insert(order, places, came)
        self._free += self._went
        self._came, self._went = [], []


def _scored(entries: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Entries of a sorted set, each with its score."""
    return ((entry.decode(), int(score)) for entry, score in zip(entries[::2], entries[1::2], strict=True))
