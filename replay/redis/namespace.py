"""A namespace's keys as a whole: its layout, tasks, records, totals, priorities and changes."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from longview.replay.codec import Record, decode_record, decode_spec, encode_spec
from longview.replay.episode import SOURCES, Episode, TaskSpec
from longview.replay.errors import CodecError, ReplayError, StoreError, UnknownFormat
from longview.replay.names import check_name
from longview.replay.owner import Owner
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client
from longview.replay.redis.index import PAGE, Index, index_entry
from longview.replay.redis.quarantine import move_to_quarantine, read_episode
from longview.replay.redis.totals import stats_of
from longview.replay.stats import StoreStats

log = logging.getLogger(__name__)

FORMAT: Final = 3
"""Version of a namespace's layout, which keys.py, scripts.py and codec.py describe."""
OLD_FORMAT: Final = 2
"""Version that `migrate.py` brings over."""
MIGRATING: Final = b"migrating"
"""Field of the layout of a namespace whose migration has not ended."""

RECORDS_PER_READ: Final = 1000
"""Records that one round trip reads."""


class Namespace:
    """One namespace of a Redis. A method raises StoreError if Redis is unreachable or refuses."""

    def __init__(self, client: Client, name: str, shards: int) -> None:
        """Open a namespace, or make it with this number of shards if it is new.

        Raises:
            StoreError: the namespace has the layout of another version of Longview.
            ValueError: the name breaks the rule of `check_name`.
        """
        self.client, self.name = client, check_name(name, "namespace")
        self.tags = [keys.tag(name, shard) for shard in range(self._agree_on_shards(shards))]
        """Tag of each shard."""

    def tag_of(self, id: str) -> str:
        """Return the tag of the shard that an episode belongs to."""
        return self.tags[keys.shard_of(id, len(self.tags))]

    def claim(self, owner: Owner) -> Owner:
        """Write down the namespace's owner, unless it has one, and return its owner.

        Raises:
            StoreError: what is written down as the owner is damaged.
        """
        key, packed, redis = keys.layout(self.name), json.dumps(asdict(owner)), self.client.redis
        self._call("claiming the namespace", lambda: redis.hsetnx(key, "owner", packed))
        found = self._call("claiming the namespace", lambda: redis.hget(key, "owner"))
        try:
            return Owner(**json.loads(found))
        except (ValueError, TypeError):
            raise StoreError(f"namespace {self.name}: its owner is damaged: {found!r}") from None

    # Tasks

    def add_task(self, spec: TaskSpec) -> None:
        """Store a task's spec, unless the task has one."""
        key, packed = keys.tasks(self.name), encode_spec(spec)
        self._call(f"registering task {spec.name}", lambda: self.client.redis.hsetnx(key, spec.name, packed))

    def task(self, name: str) -> TaskSpec | None:
        """Read a task's spec; None if the task is not registered."""
        key = keys.tasks(self.name)
        packed = self._call(f"reading task {name}", lambda: self.client.redis.hget(key, name))
        return None if packed is None else decode_spec(packed)

    def tasks(self) -> list[str]:
        """Return the names of all registered tasks, sorted."""
        names = self._call("listing tasks", lambda: self.client.redis.hkeys(keys.tasks(self.name)))
        return sorted(name.decode() for name in names)

    def forget_task(self, name: str) -> None:
        """Remove a task's spec."""
        key = keys.tasks(self.name)
        self._call(f"forgetting task {name}", lambda: self.client.redis.hdel(key, name))

    # Episodes

    def forget(self, record: Record) -> bool:
        """Delete an episode for good, and return whether it was there. Its id may be used again."""
        id, tag, doing = record.meta.id, self.tag_of(record.meta.id), f"deleting episode {record.meta.id}"
        packed = self._call(doing, lambda: self.client.redis.hget(keys.episodes(tag), id))
        if packed is None:
            return False
        names = [keys.episodes(tag), keys.totals(tag), keys.priorities(tag), keys.prioritized(tag)]
        names += [keys.index(tag, record.meta.source), keys.writer_prefix(tag, id, record.token)]
        args = [id, packed, index_entry(record), record.meta.source]
        args += [record.length, record.learnable, record.bytes, record.chunks]
        run = self.client.script(scripts.FORGET, replicated=True)
        return bool(self._call(doing, lambda: run(names, args)))

    def read(self, id: str) -> Episode:
        """Read a committed episode; errors are those of `quarantine.read_episode`."""
        return read_episode(self.client, self.tag_of(id), id)

    def records(self, ids: Sequence[str]) -> Iterator[Record]:
        """Read the records of episodes. Those that were removed are left out, damaged ones are quarantined.

        Raises:
            UnknownFormat: a record was written in another version of the format.
        """
        for start in range(0, len(ids), RECORDS_PER_READ):
            some = ids[start : start + RECORDS_PER_READ]
            commands = [("HGET", keys.episodes(self.tag_of(id)), id) for id in some]
            replies = self.client.pipelined("listing episodes", commands)
            for id, packed in zip(some, replies, strict=True):
                try:
                    if packed is not None:
                        yield decode_record(packed)
                except UnknownFormat:
                    raise
                except CodecError as error:
                    self.quarantine(id, str(error))

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that no committed episode has, in one round trip."""
        commands = [("HEXISTS", keys.episodes(self.tag_of(id)), id) for id in ids]
        replies = self.client.pipelined("looking for episodes", commands)
        return [id for id, present in zip(ids, replies, strict=True) if not present]

    def quarantine(self, id: str, why: str) -> None:
        """Move an episode to the quarantine, if a second read confirms the damage. Errors are only logged."""
        try:
            self.read(id)
        except UnknownFormat:
            return
        except CodecError as error:
            try:
                if move_to_quarantine(self.client, self.tag_of(id), id, str(error)):
                    log.error("moved to the quarantine: %s", error)
            except StoreError as refused:
                log.warning("%s; it cannot be moved to the quarantine: %s", error, refused)
        except ReplayError as error:
            log.info("episode %s: first read: %s; second read: %s", id, why, error)

    # All shards together

    def stats(self, byte_budget: int) -> StoreStats:
        """Return the counts of stored, committed, evicted and damaged episodes."""
        totals = [("HGETALL", keys.totals(tag)) for tag in self.tags]
        return stats_of(self.client.pipelined("counting episodes", totals), byte_budget)

    def set_priorities(self, priorities: Mapping[str, float]) -> None:
        """Set the priorities of episodes, by id. Ids without a committed episode are ignored."""
        by_tag: dict[str, list[Any]] = {}
        for id, value in priorities.items():
            by_tag.setdefault(self.tag_of(id), []).extend((id, float(value)))
        commands = []
        for tag, args in by_tag.items():
            names = [keys.episodes(tag), keys.totals(tag), keys.priorities(tag), keys.prioritized(tag)]
            for first in range(0, len(args), 2 * PAGE):
                some = args[first : first + 2 * PAGE]
                commands.append(("EVAL", scripts.PRIORITIZE, len(names), *names, *some))
        self.client.pipelined("setting priorities", commands)

    def refresh(self, index: Index) -> None:
        """Bring an index up to date with all shards."""
        behind = list(range(len(self.tags)))
        while behind:
            commands = []
            for shard in behind:
                tag = self.tags[shard]
                names = [keys.totals(tag), keys.priorities(tag), keys.removed(tag), keys.prioritized(tag)]
                names += [keys.index(tag, source) for source in SOURCES]
                commands.append(("EVAL", scripts.CHANGES, len(names), *names, PAGE, *index.known(shard)))
            replies = self.client.pipelined("listing episodes", commands)
            behind = [
                shard for shard, reply in zip(behind, replies, strict=True) if index.apply(shard, reply)
            ]

    def _agree_on_shards(self, shards: int) -> int:
        """Return the namespace's number of shards, and set it if the namespace is new.

        Raises:
            StoreError: the namespace has the layout of another version of Longview.
        """
        key, redis = keys.layout(self.name), self.client.redis
        found = self._call("connecting", lambda: redis.hgetall(key))
        if b"shards" not in found:
            # The format is set first, so that a client that reads the shards also reads the format.
            for name, value in (("format", FORMAT), ("shards", shards)):
                self._call("connecting", partial(redis.hsetnx, key, name, value))
            found = self._call("connecting", lambda: redis.hgetall(key))
        format = OLD_FORMAT if MIGRATING in found else int(found.get(b"format", 1))
        if format != FORMAT:
            what_to_do = "use another namespace, or the version that wrote it"
            if format == OLD_FORMAT:
                what_to_do = f"`longview store migrate {self.name}` brings it over (--url names its Redis)"
            raise StoreError(
                f"namespace {self.name} has format {format}, this version of Longview reads format "
                f"{FORMAT}: {what_to_do}"
            )
        return int(found[b"shards"])

    def _call(self, doing: str, operation: Callable[[], Any]) -> Any:
        return self.client.call(doing, operation)
