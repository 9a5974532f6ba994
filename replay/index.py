"""What a reader knows of the store's contents: ids by source, kept up to date by differences."""

from collections.abc import Iterable, Mapping, Sequence

from replay.episode import SOURCES
from replay.keys import shard_of
from replay.sampling import Stratum


class Index:
    """All committed episodes and how many steps of each may be drawn, as of the last `apply`."""

    def __init__(self, shards: int) -> None:
        self.clocks = [0] * shards
        """Per shard, the time up to which its changes are known."""
        self._steps: dict[str, dict[str, int]] = {source: {} for source in SOURCES}
        """By source and id: how many steps may be drawn."""
        self._held_out: set[str] = set()
        self._strata: dict[str, Stratum] = {}

    def apply(self, shard: int, reply: Sequence[object]) -> None:
        """Take in what `scripts.CHANGES` says of a shard, its indices in the order of `SOURCES`."""
        clock, everything, removed, *indices = reply
        assert isinstance(clock, bytes)
        assert isinstance(removed, list)
        self.clocks[shard] = int(clock)
        if everything:
            self._clear(shard)
        for id in removed:
            self.forget(id.decode())
        for source, entries in zip(SOURCES, indices, strict=True):
            assert isinstance(entries, list)
            for entry in entries:
                id, steps = entry.decode().split(":")
                self._steps[source][id] = int(steps)
            if entries:
                self._strata.pop(source, None)

    def forget(self, id: str) -> None:
        """Leave out an episode that is no longer there."""
        for source, steps in self._steps.items():
            if steps.pop(id, None) is not None:
                self._strata.pop(source, None)

    def hold_out(self, ids: Iterable[str]) -> None:
        """Let no step of these episodes be drawn, whether they are known already or not."""
        self._held_out |= set(ids)
        self._strata.clear()

    def strata(self) -> Mapping[str, Stratum]:
        """What `sampling.draw` draws from, one stratum per source."""
        for source in SOURCES:
            if source not in self._strata:
                steps = self._steps[source].items()
                self._strata[source] = Stratum.of({id: 0 if id in self._held_out else n for id, n in steps})
        return self._strata

    def _clear(self, shard: int) -> None:
        shards = len(self.clocks)
        for source, steps in self._steps.items():
            self._steps[source] = {id: n for id, n in steps.items() if shard_of(id, shards) != shard}
        self._strata.clear()
