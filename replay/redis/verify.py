"""Everything that can be wrong in a store: found, and put right.

An episode that is damaged goes to the quarantine, where nobody draws or reads it; what only follows from
episodes (indices, totals, life times) is made to follow again. A store may be verified while it is in use:
what looks wrong is looked at once more, for it may just have changed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from longview.replay.codec import Record, decode_spec
from longview.replay.episode import SOURCES, TaskSpec, validate_episode
from longview.replay.errors import CodecError, EpisodeError, UnknownFormat
from longview.replay.redis import keys, scripts
from longview.replay.redis.client import Client
from longview.replay.redis.index import index_entry
from longview.replay.redis.keys import shard_of
from longview.replay.redis.quarantine import (
    assemble,
    checked_record,
    chunk_keys,
    decode_entry,
    may_own,
    move_to_quarantine,
)

PAGE: Final = 500
"""Episodes, or keys, that are asked for at once."""
PAGE_BYTES: Final = 32 << 20
"""Bytes of chunks that are asked for at once, unless those of one episode are more."""
FOREVER: Final = -1
"""Time to live of a key that does not expire."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    kind: str
    """`episode`: damaged. `index`: it lists what is not there, or not what is. `expiry`: chunks of an episode
    would expire, or chunks of none would not. `totals`: they do not add up. `task`: a spec is damaged or
    missing, for which there is no repair."""
    what: str
    why: str
    repaired: bool = False


@dataclass
class Verdict:
    """What is in a store, and what is wrong with it."""

    episodes: int = 0
    steps: int = 0
    bytes: int = 0
    """Of the episodes that are whole."""
    findings: list[Finding] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    """By id: why."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or is no longer."""
        return all(finding.repaired for finding in self.findings)


@dataclass
class Verifier:
    """One pass over a namespace."""

    client: Client
    namespace: str
    tags: Sequence[str]
    orphan_seconds: float
    repair: bool
    drop: bool
    """Remove what is in quarantine for good."""
    progress: Callable[[int, int], None]
    """Told how many episodes are done, and how many there are."""
    verdict: Verdict = field(default_factory=Verdict)

    def run(self) -> Verdict:
        """Look at everything.

        Raises:
            StoreError: Redis stayed away, or refused.
        """
        specs = self._specs()
        counts = [("HLEN", keys.episodes(tag)) for tag in self.tags]
        total, done = sum(self._ask(counts)), 0
        for shard, tag in enumerate(self.tags):
            listed: dict[str, tuple[int, str]] = {}
            for page in self._scan("HSCAN", keys.episodes(tag)):
                self._episodes(shard, page, specs, listed)
                done += len(page)
                self.progress(min(done, total), total)
            self._indices(tag, listed)
        for tag in self.tags if self.drop else ():
            self._drop(tag)
        self._expiries()
        for tag in self.tags:
            self._totals(tag)
            for id, value in self._aside(tag).items():
                self.verdict.quarantined[id.decode()] = decode_entry(value).why
        return self.verdict

    # Tasks

    def _specs(self) -> dict[str, TaskSpec]:
        specs = {}
        for name, packed in self._ask([("HGETALL", keys.tasks(self.namespace))])[0].items():
            try:
                specs[name.decode()] = decode_spec(packed)
            except CodecError as error:
                self._found("task", name.decode(), str(error), repaired=False)
        return specs

    # Episodes

    def _episodes(
        self,
        shard: int,
        page: dict[bytes, bytes],
        specs: dict[str, TaskSpec],
        listed: dict[str, tuple[int, str]],
    ) -> None:
        """Check a page of episodes; adds to `listed` in which index each belongs, and as what."""
        tag, records = self.tags[shard], list[Record]()
        for name, packed in page.items():
            id = name.decode(errors="replace")
            try:
                records.append(checked_record(id, packed))
                if (right := shard_of(id, len(self.tags))) != shard:
                    raise CodecError(f"episode {id} belongs to shard {right}, not {shard}")
            except CodecError as error:
                self._damaged(tag, id, str(error))
            else:
                listed[id] = (SOURCES.index(records[-1].meta.source), index_entry(records[-1]))
        for group in _groups(records):
            commands: list[tuple[str, ...]] = []
            for record in group:
                chunks = chunk_keys(tag, record)
                commands += [("MGET", *chunks), *(("PTTL", chunk) for chunk in chunks)]
            replies = iter(self._ask(commands))
            for record in group:
                stored, *lives = islice(replies, 1 + record.chunks)
                self._episode(tag, record, stored, lives, specs)

    def _episode(
        self,
        tag: str,
        record: Record,
        stored: list[bytes | None],
        lives: list[int],
        specs: dict[str, TaskSpec],
    ) -> None:
        id, task = record.meta.id, record.meta.task
        try:
            episode = assemble(record, stored)
            if task in specs:
                validate_episode(episode, specs[task])
            elif not any(found.what == task for found in self.verdict.findings if found.kind == "task"):
                self._found("task", task, "there are episodes of it, but it is not registered", False)
        except UnknownFormat as error:
            self._found("episode", id, str(error), repaired=False)
        except (CodecError, EpisodeError) as error:
            self._damaged(tag, id, str(error))
        else:
            if any(left >= 0 for left in lives):
                self._expiring(tag, record, lives)
            self.verdict.episodes += 1
            self.verdict.steps += record.length
            self.verdict.bytes += record.bytes

    def _damaged(self, tag: str, id: str, why: str) -> None:
        packed = self._ask([("HEXISTS", keys.episodes(tag), id)])[0]
        if packed:  # else it was removed meanwhile, and its chunks with it
            repaired = self.repair and move_to_quarantine(self.client, tag, id, why)
            self._found("episode", id, why, repaired)

    def _expiring(self, tag: str, record: Record, lives: list[int]) -> None:
        if self.repair:
            self._ask([("PERSIST", chunk) for chunk in chunk_keys(tag, record)])
        left = min(left for left in lives if left >= 0)
        self._found("expiry", record.meta.id, f"would expire in {left / 1000:.0f} s", self.repair)

    # Indices

    def _indices(self, tag: str, listed: dict[str, tuple[int, str]]) -> None:
        """Compare the indices of a shard with what they should hold."""
        held: dict[str, set[tuple[int, str]]] = {id: set() for id in listed}
        for number, source in enumerate(SOURCES):
            for page in self._scan("ZSCAN", keys.index(tag, source)):
                for name in page:
                    entry = name.decode(errors="replace")
                    held.setdefault(entry.partition(":")[0], set()).add((number, entry))
        for id, entries in held.items():
            if entries != {listed.get(id)}:
                self._relist(tag, id, entries)

    def _relist(self, tag: str, id: str, suspected: set[tuple[int, str]]) -> None:
        packed = self._ask([("HGET", keys.episodes(tag), id)])[0]
        right: tuple[int, str] | None = None
        if packed is not None:
            try:
                record = checked_record(id, packed)
            except CodecError:
                return  # was found already
            right = SOURCES.index(record.meta.source), index_entry(record)
        candidates = sorted(suspected | ({right} if right else set()))
        names = [keys.index(tag, source) for source in SOURCES]
        scores = self._ask([("ZSCORE", names[number], entry) for number, entry in candidates])
        there = {entry for entry, score in zip(candidates, scores, strict=True) if score is not None}
        wrong = sorted(there - {right})
        missing = right is not None and right not in there
        if not wrong and not missing:
            return
        if self.repair:
            number, entry = (right[0] + 1, right[1]) if right else (0, "")
            args: list[Any] = [id, packed or b"", number, entry]
            args += [part for index, entry in wrong for part in (index + 1, entry)]
            self._script(scripts.RELIST, [keys.episodes(tag), keys.totals(tag), *names], args)
        why = ["not listed"] if missing else []
        why += [f"listed under {SOURCES[number]} as {entry}" for number, entry in wrong]
        self._found("index", id, ", ".join(why), self.repair)

    # Life times

    def _expiries(self) -> None:
        """Find chunks that belong to no episode and will not expire."""
        writers: dict[str, list[str]] = {}
        for key in self.client.call("looking for chunks", lambda: list(self._orphans())):
            writers.setdefault(key.rpartition(":")[0], []).append(key)
        for writer, chunks in writers.items():
            if self.repair:
                self._ask([("PEXPIRE", chunk, int(1000 * self.orphan_seconds)) for chunk in chunks])
            self._found("expiry", writer, "chunks of no episode, which would stay for ever", self.repair)

    def _orphans(self) -> Iterator[str]:
        prefixes = {keys.chunks_prefix(tag): tag for tag in self.tags}
        found = self.client.redis.scan_iter(keys.chunks_pattern(self.namespace), count=PAGE)
        for page in _pages(found, PAGE):
            named = []
            for key in page:
                prefix = next((prefix for prefix in prefixes if key.startswith(prefix.encode())), None)
                if prefix is not None:
                    id, _, token = key.decode()[len(prefix) :].rpartition(":")[0].rpartition(":")
                    named.append((prefixes[prefix], key.decode(), id, token))
            # How long each lives, whose it is, and once more how long: one that is committed or evicted in
            # between is not taken for an orphan.
            lives = self.client.pipeline([("PTTL", key) for _, key, _, _ in named])
            lasting = [name for name, left in zip(named, lives, strict=True) if left == FOREVER]
            questions = [
                question
                for tag, key, id, _ in lasting
                for question in (
                    ("HGET", keys.episodes(tag), id),
                    ("HGET", keys.quarantine(tag), id),
                    ("PTTL", key),
                )
            ]
            replies = iter(self.client.pipeline(questions))
            for (_, name, _, token), packed, aside, left in zip(
                lasting, replies, replies, replies, strict=True
            ):
                of = [packed] if packed is not None else []
                of += [decode_entry(aside).record] if aside is not None else []
                if left == FOREVER and not any(may_own(token, record) for record in of):
                    yield name

    # Totals and quarantine

    def _totals(self, tag: str) -> None:
        names = [keys.episodes(tag), keys.totals(tag), keys.quarantine(tag)]
        wrong = self._script(scripts.RECOUNT, names, [int(self.repair), *SOURCES])
        for name, said, right in zip(wrong[::3], wrong[1::3], wrong[2::3], strict=True):
            self._found("totals", f"{tag} {name.decode()}", f"says {said}, not {right}", self.repair)

    def _aside(self, tag: str) -> dict[bytes, bytes]:
        aside: dict[bytes, bytes] = self._ask([("HGETALL", keys.quarantine(tag))])[0]
        return aside

    def _drop(self, tag: str) -> None:
        for id, value in self._aside(tag).items():
            names, args = [keys.quarantine(tag), keys.totals(tag)], list[Any]([id, value])
            try:
                record = checked_record(id.decode(), decode_entry(value).record)
            except CodecError:
                pass  # which chunks are its own cannot be told: they expire like all that are nobody's
            else:
                names.append(keys.writer_prefix(tag, id.decode(), record.token))
                args.append(record.chunks)
            self._script(scripts.DROP, names, args)

    # Plumbing

    def _found(self, kind: str, what: str, why: str, repaired: bool) -> None:
        self.verdict.findings.append(Finding(kind, what, why, repaired))

    def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        return self.client.pipelined("verifying", commands)

    def _script(self, source: str, names: Sequence[str], args: Sequence[Any]) -> Any:
        run = self.client.script(source)
        return self.client.call("verifying", lambda: run(names, args))

    def _scan(self, command: str, key: str) -> Iterator[dict[bytes, Any]]:
        """Pages of a hash's or sorted set's items; an item may be in several."""
        cursor: bytes | int = 0
        while True:
            cursor, items = self._ask([(command, key, cursor, "COUNT", PAGE)])[0]
            yield dict(items)
            if int(cursor) == 0:
                return


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records of which all chunks are read in one round trip."""
    group, size = list[Record](), 0
    for record in records:
        if group and size + record.bytes > PAGE_BYTES:
            yield group
            group, size = [], 0
        group.append(record)
        size += record.bytes
    if group:
        yield group


def _pages(found: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(found)
    while page := list(islice(rest, size)):
        yield page
