"""Migration of a namespace of format 2 to the present format, in place.

First the layout is marked, so that no client opens the namespace meanwhile. Then every episode is written
again: its chunks with `controller`, under a new token, and its record with the new name of its source and the
number of learnable steps. Until one script puts them in the place of the old ones, the new chunks expire like
those of any writer. Last, the totals of each shard are renamed and counted again, and the mark is removed.
Each part may be interrupted at any point and repeated.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import numpy as np

from longview.replay.codec import Record, decode_chunk, decode_record, encode_chunk, encode_record, longer
from longview.replay.config import StoreConfig
from longview.replay.episode import (
    BY_POLICY,
    CONTROLLER,
    RENAMED_SOURCES,
    SOURCES,
    implied_controller,
    learnable,
)
from longview.replay.errors import CodecError, StoreError, UnknownFormat
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client
from longview.replay.redis.index import index_entry
from longview.replay.redis.namespace import FORMAT, MIGRATING, OLD_FORMAT
from longview.replay.redis.quarantine import chunk_keys, move_to_quarantine

PAGE: Final = 500
"""Episodes or entries that are listed in one round trip."""
OLD_SOURCES: Final = ("demo", "rollout", "dagger", "import")
"""Sources of format 2."""


@dataclass
class Migrated:
    """Result of a migration."""

    episodes: int = 0
    """Number of episodes that were brought over now."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Damage of the episodes that could not be brought over, by id; they are in the quarantine."""


@dataclass
class Migration:
    """Migration of a namespace, which nothing else uses meanwhile; each instance runs once."""

    client: Client
    """Connection to the store."""
    namespace: str
    """Namespace to bring over."""
    config: StoreConfig
    """Compression of the new chunks, and life time of those that an interruption leaves behind."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Function that is called with the number of episodes done so far and of all episodes."""
    result: Migrated = field(default_factory=Migrated)
    """Result so far."""

    def run(self) -> Migrated:
        """Bring the namespace over, and return what was done. A namespace of the present format stays as it
        is.

        Raises:
            StoreError: the namespace does not exist or has another format than 2, or Redis was unreachable
                for `patience_seconds`, or refused.
            UnknownFormat: a chunk was written in another version of the format.
        """
        layout = self._ask(("HGETALL", keys.layout(self.namespace)))
        if b"shards" not in layout:
            raise StoreError(f"there is no namespace {self.namespace} in {self.client.shown}")
        if MIGRATING not in layout:
            if (format := int(layout.get(b"format", 1))) == FORMAT:
                return self.result
            if format != OLD_FORMAT:
                raise StoreError(
                    f"namespace {self.namespace} has format {format}; only format {OLD_FORMAT} can be "
                    "brought over"
                )
            self._ask(("HSET", keys.layout(self.namespace), "format", FORMAT, MIGRATING, OLD_FORMAT))
        tags = [keys.tag(self.namespace, shard) for shard in range(int(layout[b"shards"]))]
        total, done = sum(self._ask(("HLEN", keys.episodes(tag))) for tag in tags), 0
        for tag in tags:
            for page in self._scan("HSCAN", keys.episodes(tag)):
                for id, packed in page.items():
                    self._episode(tag, id.decode(errors="replace"), packed)
                    done += 1
                    self.progress(min(done, total), total)
            self._sweep(tag)
            self._totals(tag)
        self._ask(("HDEL", keys.layout(self.namespace), MIGRATING))
        return self.result

    def _episode(self, tag: str, id: str, packed: bytes) -> None:
        """Bring one episode over, unless it has the present format already."""
        try:
            old, source = _decode(packed)
            if old.meta.id != id:
                raise CodecError(f"record is of {old.meta.id}")
            if source is None:
                return
            new = self._write_chunks(tag, old)
        except UnknownFormat:
            raise
        except CodecError as error:
            why = f"episode {id}: {error}"
            if move_to_quarantine(self.client, tag, id, why):
                self.result.damaged[id] = why
            return
        meta = old.meta
        names = [keys.episodes(tag), keys.index(tag, source), keys.index(tag, meta.source)]
        names += [keys.writer_prefix(tag, meta.id, record.token) for record in (old, new)]
        args: list[Any] = [meta.id, packed, encode_record(new), old.chunks]
        args += [f"{meta.id}:{old.length}:{old.outcome}:{meta.task}", index_entry(new)]
        run = self.client.script(scripts.MIGRATE, replicated=True)
        if missing := self.client.call(f"bringing episode {id} over", lambda: run(names, args)):
            raise StoreError(f"episode {id}: Redis has lost {missing} chunks just written: start again")
        self.result.episodes += 1

    def _write_chunks(self, tag: str, old: Record) -> Record:
        """Write an episode's chunks again, with `controller`, and return their record.

        Format 2 did not say who was in control in a correction, so a policy stands there. Its labelled steps,
        which are all steps that an actor of 0.1 wrote, are learnable either way.

        Raises:
            CodecError: a chunk is missing or damaged, or the chunks do not match the record.
        """
        implied = implied_controller(old.meta)
        renamed, life = replace(old, token=secrets.token_hex(8)), int(1000 * self.config.orphan_seconds)
        new = replace(renamed, length=0, learnable=0, chunks=0, bytes=0)
        for number, (key, target) in enumerate(
            zip(chunk_keys(tag, old), chunk_keys(tag, renamed), strict=True), start=1
        ):
            (stored,) = self._ask(("MGET", key))
            if stored is None:
                raise CodecError(f"chunk {number} of {old.chunks} is missing")
            arrays = decode_chunk(stored)
            rows = len(next(iter(arrays.values())))
            arrays[CONTROLLER] = np.full(rows, BY_POLICY if implied is None else implied)
            chunk = encode_chunk(arrays, self.config.compression)
            self._ask(("SET", target, chunk, "PX", life))
            new = longer(new, learnable(arrays), len(chunk))
        if new.length != old.length:
            raise CodecError(f"chunks hold {new.length} steps, not {old.length}")
        return new

    def _sweep(self, tag: str) -> None:
        """Remove what the indices list in the old way: the episodes of these entries are gone or damaged."""
        for source in OLD_SOURCES:
            for page in self._scan("ZSCAN", keys.index(tag, source)):
                for entry in page:
                    if not entry.split(b":", 3)[2].isdigit():  # an outcome, where learnable steps are now
                        self._ask(("ZREM", keys.index(tag, source), entry))

    def _totals(self, tag: str) -> None:
        """Rename the sources in a shard's totals and count again what is stored.

        The learnable steps of what was ever committed or evicted follow from the source: none of a rollout,
        all of the others.
        """
        found = {name.decode(): value for name, value in self._ask(("HGETALL", keys.totals(tag))).items()}
        new: dict[str, Any] = {}
        for name, value in found.items():
            kind, *parts = name.split(":")
            if kind in ("ever", "evicted"):
                parts[0] = RENAMED_SOURCES.get(parts[0], parts[0])
                new[":".join((kind, *parts))] = value
                if parts[-1] == "steps":
                    new[":".join((kind, *parts[:-1], "learnable"))] = 0 if parts[0] == "rollout" else value
        if new:
            self._ask(("HSET", keys.totals(tag), *(part for pair in new.items() for part in pair)))
        old = [name for name in found if name.split(":")[1:2] in ([old] for old in RENAMED_SOURCES)]
        if old:
            self._ask(("HDEL", keys.totals(tag), *old))
        run = self.client.script(scripts.RECOUNT)
        names = [keys.episodes(tag), keys.totals(tag), keys.quarantine(tag)]
        self.client.call("counting episodes", lambda: run(names, [1, *SOURCES]))

    def _ask(self, command: tuple[Any, ...]) -> Any:
        return self.client.pipelined("bringing a namespace over", [command])[0]

    def _scan(self, command: str, key: str) -> Iterator[Mapping[bytes, Any]]:
        """Yield the items of a hash or sorted set in pages; an item may be in several pages."""
        cursor: bytes | int = 0
        while True:
            cursor, items = self._ask((command, key, cursor, "COUNT", PAGE))
            yield dict(items)
            if int(cursor) == 0:
                return


def _decode(packed: bytes) -> tuple[Record, str | None]:
    """Decode a record of format 2 or of the present format.

    Returns:
        The record, with its source's new name and without a number of learnable steps if it is of format 2,
        and the source's name in format 2; None if the record is of the present format.

    Raises:
        CodecError: the bytes are not a valid record.
    """
    try:
        plain = msgpack.unpackb(packed)
        if "learnable" in plain:
            return decode_record(packed), None
        source = plain["meta"]["source"]
        plain["meta"]["source"] = RENAMED_SOURCES.get(source, source)
        return decode_record(msgpack.packb(plain | {"learnable": 0})), source
    except (ValueError, TypeError, KeyError) as error:
        raise CodecError(f"record of an episode is malformed: {error}") from None
