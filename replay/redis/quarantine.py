"""Whole episodes as they are stored, and what becomes of those that are damaged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from longview.replay.codec import Record, decode_chunk, decode_record, join_chunks
from longview.replay.episode import SOURCES, Episode
from longview.replay.errors import CodecError, Quarantined, UnknownEpisode
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client
from longview.replay.redis.index import entry_of
from longview.replay.redis.sink import REMOVED_LISTED


def read_whole(client: Client, tag: str, id: str) -> Episode:
    """A committed episode of a shard; its arrays are read-only.

    Raises:
        UnknownEpisode: there is none of this id, or it was removed meanwhile.
        Quarantined: there was one, and it is set aside.
        UnknownFormat: it is of another version of the format.
        CodecError: it is damaged.
    """
    doing = f"reading episode {id}"
    packed, aside = client.pipelined(
        doing, [("HGET", keys.episodes(tag), id), ("HGET", keys.quarantine(tag), id)]
    )
    if packed is None and aside is not None:
        raise Quarantined(f"episode {id} is damaged and in quarantine: {aside_of(aside).why}")
    if packed is None:
        raise UnknownEpisode(f"no committed episode {id!r}")
    record = whole_record(id, packed)
    stored, still = client.pipelined(
        doing,
        [("MGET", *chunk_keys(tag, record)), ("HGET", keys.episodes(tag), id)],
    )
    if still != packed:
        raise UnknownEpisode(f"episode {id!r} was removed while it was read")
    return assemble(record, stored)


def whole_record(id: str, packed: bytes) -> Record:
    """The record that is stored under an id.

    Raises:
        CodecError: it is damaged.
    """
    try:
        record = decode_record(packed)
        if record.meta.id != id:
            raise CodecError(f"record is of {record.meta.id}")
        return record
    except CodecError as error:
        raise CodecError(f"episode {id}: {error}") from None


def assemble(record: Record, stored: Sequence[bytes | None]) -> Episode:
    """An episode from its record and all its chunks; None are those that are not there.

    Raises:
        UnknownFormat: it is of another version of the format.
        CodecError: it is damaged.
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
    """Where the chunks of an episode are."""
    return keys.chunks(tag, record.meta.id, record.token, range(record.chunks))


def set_aside(client: Client, tag: str, id: str, why: str) -> bool:
    """Move an episode to the quarantine: nobody draws or reads it any more, and another may take its id.

    Returns:
        False if it is not there (any more).

    Raises:
        StoreError: Redis stayed away, or refused.
    """
    doing = f"setting episode {id} aside"
    packed = client.call(doing, lambda: client.redis.hget(keys.episodes(tag), id))
    if packed is None:
        return False
    names = [keys.episodes(tag), keys.totals(tag), keys.removed(tag), keys.quarantine(tag)]
    names += [keys.priorities(tag), keys.prioritized(tag), *(keys.index(tag, source) for source in SOURCES)]
    value = msgpack.packb(Aside(why, packed))
    args: list[Any] = [id, packed, value, REMOVED_LISTED]
    try:
        record = whole_record(id, packed)
        args += [entry_of(record), record.meta.source, record.length, record.bytes]
    except CodecError:
        pass  # then only counting everything anew tells what has to change beside it
    run = client.script(scripts.QUARANTINE, replicated=True)
    return bool(client.call(doing, lambda: run(names, args)))


class Aside(NamedTuple):
    """What the quarantine keeps of an episode, beside its chunks."""

    why: str
    record: bytes
    """As it was stored."""


def aside_of(value: bytes) -> Aside:
    """From what is stored."""
    return Aside(*msgpack.unpackb(value))


def owned(token: str, packed: bytes) -> bool:
    """Whether chunks of that token may belong to this record; a damaged one says nothing against it."""
    try:
        return decode_record(packed).token == token
    except CodecError:
        return True
