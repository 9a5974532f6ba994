"""Reading of whole episodes, and the quarantine, which holds damaged ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from longview.replay.codec import Record, decode_chunk, decode_record, join_chunks
from longview.replay.episode import SOURCES, Episode
from longview.replay.errors import CodecError, Quarantined, UnknownEpisode
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client
from longview.replay.redis.index import index_entry
from longview.replay.redis.sink import REMOVED_LISTED


def read_episode(client: Client, tag: str, id: str) -> Episode:
    """Read a committed episode. Its arrays are read-only.

    Args:
        client: connection to the store.
        tag: hash tag of the episode's shard.
        id: the episode's id.

    Raises:
        UnknownEpisode: no committed episode has the id, or it was removed during the read.
        Quarantined: the episode is in the quarantine.
        UnknownFormat: the episode was written in another version of the format.
        CodecError: the episode is damaged.
    """
    doing = f"reading episode {id}"
    packed, aside = client.pipelined(
        doing, [("HGET", keys.episodes(tag), id), ("HGET", keys.quarantine(tag), id)]
    )
    if packed is None and aside is not None:
        raise Quarantined(f"episode {id} is damaged and in quarantine: {decode_entry(aside).why}")
    if packed is None:
        raise UnknownEpisode(f"no committed episode {id!r}")
    record = checked_record(id, packed)
    stored, still = client.pipelined(
        doing,
        [("MGET", *chunk_keys(tag, record)), ("HGET", keys.episodes(tag), id)],
    )
    if still != packed:
        raise UnknownEpisode(f"episode {id!r} was removed while it was read")
    return assemble(record, stored)


def checked_record(id: str, packed: bytes) -> Record:
    """Decode the record that is stored under an id.

    Raises:
        CodecError: the record is damaged, or of another id.
    """
    try:
        record = decode_record(packed)
        if record.meta.id != id:
            raise CodecError(f"record is of {record.meta.id}")
        return record
    except CodecError as error:
        raise CodecError(f"episode {id}: {error}") from None


def assemble(record: Record, stored: Sequence[bytes | None]) -> Episode:
    """Make an episode from its record and its chunks.

    Args:
        record: the episode's record.
        stored: bytes of every chunk in order, None for a missing one.

    Raises:
        UnknownFormat: a chunk was written in another version of the format.
        CodecError: a chunk is missing or damaged, or the chunks do not match the record.
    """
    try:
        if missing := [str(number) for number, chunk in enumerate(stored) if chunk is None]:
            raise CodecError(f"chunks {', '.join(missing)} of {record.chunks} are missing")
        whole = [chunk for chunk in stored if chunk is not None]
        chunks = [decode_chunk(chunk) for chunk in whole]
        arrays = join_chunks(chunks)
        steps = [len(next(iter(chunk.values()))) for chunk in chunks]
        if sum(steps) != record.length or any(rows != record.chunk_steps for rows in steps[:-1]):
            raise CodecError(f"chunks hold {steps} steps, not {record.length} by {record.chunk_steps}")
        if (size := sum(map(len, whole))) != record.bytes:
            raise CodecError(f"chunks have {size} bytes, not {record.bytes}")
    except CodecError as error:
        raise type(error)(f"episode {record.meta.id}: {error}") from None
    return Episode(record.meta, record.outcome, arrays, record.extras)


def chunk_keys(tag: str, record: Record) -> list[str]:
    """Return the keys of an episode's chunks, in order."""
    return keys.chunks(tag, record.meta.id, record.token, range(record.chunks))


def move_to_quarantine(client: Client, tag: str, id: str, why: str) -> bool:
    """Move an episode to the quarantine. It can no longer be drawn or read, and its id may be used again.

    Args:
        client: connection to the store.
        tag: hash tag of the episode's shard.
        id: the episode's id.
        why: the damage, for people.

    Returns:
        False if no committed episode has the id.

    Raises:
        StoreError: Redis was unreachable for `patience_seconds`, or refused.
    """
    doing = f"moving episode {id} to the quarantine"
    packed = client.call(doing, lambda: client.redis.hget(keys.episodes(tag), id))
    if packed is None:
        return False
    names = [keys.episodes(tag), keys.totals(tag), keys.removed(tag), keys.quarantine(tag)]
    names += [keys.priorities(tag), keys.prioritized(tag), *(keys.index(tag, source) for source in SOURCES)]
    value = msgpack.packb(QuarantineEntry(why, packed))
    args: list[Any] = [id, packed, value, REMOVED_LISTED]
    try:
        record = checked_record(id, packed)
        args += [index_entry(record), record.meta.source]
        args += [record.length, record.learnable, record.bytes]
    except CodecError:
        pass  # without a record, `verify` has to correct the index and the totals
    run = client.script(scripts.QUARANTINE, replicated=True)
    return bool(client.call(doing, lambda: run(names, args)))


class QuarantineEntry(NamedTuple):
    """Entry of the quarantine: what is kept of a damaged episode besides its chunks."""

    why: str
    """The damage, for people."""
    record: bytes
    """The episode's record, as it was stored."""


def decode_entry(value: bytes) -> QuarantineEntry:
    """Decode an entry of the quarantine."""
    return QuarantineEntry(*msgpack.unpackb(value))


def may_own(token: str, packed: bytes) -> bool:
    """Tell whether chunks with this token may belong to the record. A damaged record may own any chunks."""
    try:
        return decode_record(packed).token == token
    except CodecError:
        return True
