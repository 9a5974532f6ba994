"""Commands by which writers store, commit and discard episodes, one attempt at a time."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from longview.replay.codec import Record, encode_record
from longview.replay.config import StoreConfig
from longview.replay.errors import MissingChunks, StoreFull
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client, evalsha
from longview.replay.redis.index import index_entry
from longview.replay.redis.sender import Commands

REMOVED_LISTED: Final = 10_000
"""Removals that a shard lists. A reader that missed more than this reads the whole index of the shard
again."""


class Sink:
    """Target of the writers of a namespace. Every method is safe to run twice."""

    def __init__(
        self, client: Client, tag_of: Callable[[str], str], shards: int, config: StoreConfig
    ) -> None:
        """Prepare the commands.

        Args:
            client: connection to the store.
            tag_of: returns the hash tag of an episode id's shard.
            shards: number of shards.
            config: byte budget, life time of chunks, replicas.
        """
        self._client = client
        self._tag_of = tag_of
        self._budget = config.byte_budget // shards
        self._config = config
        self._life = int(1000 * config.orphan_seconds)
        self._commit = client.script(scripts.COMMIT, replicated=True)
        self._discard = client.script(scripts.DISCARD)

    def chunk(self, record: Record, chunk: bytes | memoryview) -> Commands:
        """Make the command that stores the next chunk of an episode, whose record counts the chunks
        before."""
        # NX: a repeated SET would store the same bytes, but would let a committed chunk expire.
        return [("SET", f"{self._prefix(record)}{record.chunks}", chunk, "PX", self._life, "NX")]

    def renew(self, record: Record) -> Commands:
        """Make the command that extends the life of the stored chunks of an uncommitted episode."""
        return [("EVAL", scripts.RENEW, 1, self._prefix(record), record.chunks, self._life)]

    def send(self, commands: Commands) -> None:
        """Send commands that store chunks again.

        Raises:
            RedisError: Redis could not be reached or refused them.
        """
        self._client.pipeline(commands)

    def committing(self, record: Record) -> Commands:
        """Make the commands that commit an episode when they are sent directly after its chunks; `commit`
        takes the replies.

        The list is empty if replicas must hold the commit, because WAIT must then follow on the same
        connection.
        """
        return [] if self._config.replicas else [evalsha(scripts.COMMIT, *self._commitment(record))]

    def commit(self, record: Record, replies: Sequence[Any] = ()) -> bool:
        """Make an episode visible whose chunks are stored.

        Args:
            record: the episode's record, with its outcome.
            replies: replies to `committing`; if they hold no verdict, the commit is sent now.

        Returns:
            True if the store holds this episode, False if it already holds another one of this id.

        Raises:
            StoreFull: the episode does not fit, and nothing may be evicted.
            MissingChunks: Redis no longer holds all chunks of the episode.
            RedisError: Redis could not be reached or refused the commit.
        """
        if replies and not isinstance(replies[0], Exception):
            verdict, *detail = replies[0]
        else:
            verdict, *detail = self._commit(*self._commitment(record))
        if verdict == b"full":
            raise StoreFull(
                f"no room for episode {record.meta.id} of {record.bytes} bytes: its shard may hold "
                f"{self._budget} bytes, {detail[0]} of them are never evicted; "
                "raise replay.byte_budget, which is divided among the shards"
            )
        if verdict == b"incomplete":
            raise MissingChunks(
                f"episode {record.meta.id}: Redis holds {detail[0]} of its {record.chunks} chunks; chunks "
                f"expire within replay.orphan_seconds ({self._config.orphan_seconds:g}) after the newest"
            )
        return bool(verdict == b"committed")

    def discard(self, record: Record) -> None:
        """Remove the chunks of an episode that was given up.

        Raises:
            RedisError: Redis could not be reached or refused it.
        """
        id = record.meta.id
        names = [keys.episodes(self._tag_of(id)), self._prefix(record)]
        self._discard(names, [id, record.token, record.chunks])

    def _commitment(self, record: Record) -> tuple[list[str], list[Any]]:
        """Make KEYS and ARGV of the script that commits an episode."""
        id, source, evicted = record.meta.id, record.meta.source, self._config.evict
        tag, listed = self._tag_of(id), REMOVED_LISTED
        names = [keys.episodes(tag), keys.totals(tag), keys.removed(tag), self._prefix(record)]
        names += [keys.priorities(tag), keys.prioritized(tag), keys.quarantine(tag)]
        names += [keys.index(tag, name) for name in (source, *evicted)]
        args: list[Any] = [id, record.token, encode_record(record), source, record.outcome]
        args += [record.length, record.learnable, record.bytes, record.chunks]
        args += [self._budget, keys.chunks_prefix(tag), listed, index_entry(record), *evicted]
        return names, args

    def _prefix(self, record: Record) -> str:
        return keys.writer_prefix(self._tag_of(record.meta.id), record.meta.id, record.token)
