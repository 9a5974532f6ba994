"""Where writers' episodes go: what is sent to Redis to store and to commit them, one attempt at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from longview.replay.codec import Record, encode_record
from longview.replay.config import StoreConfig
from longview.replay.errors import MissingChunks, StoreFull
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client, evalsha
from longview.replay.redis.index import entry_of
from longview.replay.redis.sender import Commands

REMOVED_LISTED: Final = 10_000
"""Removals a shard remembers; a reader that missed more of them reads its whole index anew."""


class Sink:
    """The shards of a namespace, as writers see them. All of this may run twice."""

    def __init__(
        self, client: Client, tag_of: Callable[[str], str], shards: int, config: StoreConfig
    ) -> None:
        self._client = client
        self._tag_of = tag_of
        self._budget = config.byte_budget // shards
        self._config = config
        self._life = int(1000 * config.orphan_seconds)
        self._commit = client.script(scripts.COMMIT, replicated=True)
        self._discard = client.script(scripts.DISCARD)

    def chunk(self, record: Record, chunk: bytes | memoryview) -> Commands:
        """What stores the next chunk of an episode, whose record counts those before."""
        # Where there is one of this number, it is the same, and must not begin to expire if it is committed.
        return [("SET", f"{self._prefix(record)}{record.chunks}", chunk, "PX", self._life, "NX")]

    def renew(self, record: Record) -> Commands:
        """What lets the chunks of an episode that are stored live on."""
        return [("EVAL", scripts.RENEW, 1, self._prefix(record), record.chunks, self._life)]

    def send(self, commands: Commands) -> None:
        """Store chunks, again.

        Raises:
            RedisError: it did not work.
        """
        self._client.pipeline(commands)

    def committing(self, record: Record) -> Commands:
        """What may make an episode visible when it is sent right behind its chunks; `commit` takes the reply.
        Nothing, where replicas have to hold it: that takes a command more, on the same connection."""
        return [] if self._config.replicas else [evalsha(scripts.COMMIT, *self._commitment(record))]

    def commit(self, record: Record, replies: Sequence[Any] = ()) -> bool:
        """Make an episode visible whose chunks are all stored; False: another writer's already was.

        Args:
            replies: to `committing`, if that was sent.

        Raises:
            StoreFull: there is no room, and nothing that may be evicted.
            MissingChunks: what was stored of it is no longer there.
            RedisError: it did not work.
        """
        if replies and not isinstance(replies[0], Exception):
            verdict, *detail = replies[0]
        else:
            verdict, *detail = self._commit(*self._commitment(record))
        if verdict == b"full":
            raise StoreFull(
                f"no room for episode {record.meta.id} of {record.bytes} bytes: its shard may hold "
                f"{self._budget} bytes, {detail[0]} of them are never evicted; "
                "raise replay.byte_budget, which the shards divide"
            )
        if verdict == b"incomplete":
            raise MissingChunks(
                f"episode {record.meta.id}: of {record.chunks} chunks, {detail[0]} are left; they expire "
                f"within replay.orphan_seconds ({self._config.orphan_seconds:g}) of the newest"
            )
        return bool(verdict == b"committed")

    def discard(self, record: Record) -> None:
        """Remove what is stored of an episode that is given up.

        Raises:
            RedisError: it did not work.
        """
        id = record.meta.id
        names = [keys.episodes(self._tag_of(id)), self._prefix(record)]
        self._discard(names, [id, record.token, record.chunks])

    def _commitment(self, record: Record) -> tuple[list[str], list[Any]]:
        id, source, evicted = record.meta.id, record.meta.source, self._config.evict
        tag, listed = self._tag_of(id), REMOVED_LISTED
        names = [keys.episodes(tag), keys.totals(tag), keys.removed(tag), self._prefix(record)]
        names += [keys.priorities(tag), keys.prioritized(tag), keys.quarantine(tag)]
        names += [keys.index(tag, name) for name in (source, *evicted)]
        args: list[Any] = [id, record.token, encode_record(record), source, record.outcome]
        args += [record.length, record.bytes, record.chunks]
        args += [self._budget, keys.chunks_prefix(tag), listed, entry_of(record), *evicted]
        return names, args

    def _prefix(self, record: Record) -> str:
        return keys.writer_prefix(self._tag_of(record.meta.id), record.meta.id, record.token)
