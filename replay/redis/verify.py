"""Verification of a whole store: it finds damage and inconsistencies, and repairs them.

A damaged episode is moved to the quarantine, where it can no longer be drawn or read. Data that follow from
the episodes (indices, totals, expiry of chunks) are computed again. A store may be verified while it is in
use: whatever looks wrong is read a second time, because it may just have changed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from reprlib import repr as shown
from typing import Any, Final

from longview.replay.codec import Record, decode_spec
from longview.replay.episode import SOURCES, TaskSpec, learnable, runs_of, validate_episode
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
"""Episodes or keys that are fetched in one round trip."""
PAGE_BYTES: Final = 32 << 20
"""Bytes of chunks that are fetched in one round trip; a single episode may exceed it."""
FOREVER: Final = -1
"""Reply to PTTL for a key that does not expire."""


@dataclass(frozen=True)
class Finding:
    """Problem that was found in a store."""

    kind: str
    """Kind of problem. `episode`: an episode is damaged. `index`: an index lists an episode that is not
    stored, or lacks one that is. `expiry`: chunks of an episode would expire, or chunks of no episode would
    not. `totals`: a total is wrong. `task`: a spec is damaged or missing, which cannot be repaired. `server`:
    a Redis may evict episodes by itself, which its administrator can mend."""
    what: str
    """Id, key or task that has the problem."""
    why: str
    """Description of the problem."""
    repaired: bool = False
    """Whether the problem was repaired."""


@dataclass
class Verdict:
    """Result of a verification."""

    episodes: int = 0
    """Number of undamaged episodes."""
    steps: int = 0
    """Steps of the undamaged episodes."""
    bytes: int = 0
    """Stored bytes of the undamaged episodes."""
    findings: list[Finding] = field(default_factory=list)
    """Problems, repaired or not."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Damage of the episodes in the quarantine, by id."""

    @property
    def sound(self) -> bool:
        """Whether no problem is left unrepaired."""
        return all(finding.repaired for finding in self.findings)


@dataclass
class Verifier:
    """Verification of a namespace; each instance runs once."""

    client: Client
    """Connection to the store."""
    namespace: str
    """Namespace to verify."""
    tags: Sequence[str]
    """Hash tags of the shards, in order."""
    orphan_seconds: float
    """Life time to give to chunks that belong to no episode."""
    repair: bool
    """Whether to repair what is found."""
    drop: bool
    """Whether to delete the episodes in the quarantine."""
    progress: Callable[[int, int], None]
    """Function that is called with the number of episodes checked so far and of all episodes."""
    verdict: Verdict = field(default_factory=Verdict)
    """Result so far."""

    def run(self) -> Verdict:
        """Check everything, and return the result.

        Raises:
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
        """
        for server, why in self.client.evicting().items():
            self._found("server", server, why, repaired=False)
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
            for id, value in self._quarantine(tag).items():
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
        """Check a page of episodes. Adds each readable one to `listed`: by id, the number of its index and
        its entry."""
        tag, records = self.tags[shard], list[Record]()
        for name, packed in page.items():
            id = name.decode(errors="replace")
            try:
                records.append(checked_record(id, packed))
                if (right := shard_of(id, len(self.tags))) != shard:
                    raise CodecError(f"episode {id} belongs to shard {right}, not {shard}")
            except CodecError as error:
                self._report_damage(tag, id, str(error))
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
        """Check an episode, given the bytes and the life times of its chunks."""
        id, task = record.meta.id, record.meta.task
        try:
            episode = assemble(record, stored)
            if task in specs:
                validate_episode(episode, specs[task])
                found = learnable(episode.arrays)
                if (count := int(found.sum())) != record.learnable:
                    raise CodecError(f"episode {id}: {count} steps are learnable, not {record.learnable}")
                if record.runs and (runs := runs_of(found)) != record.runs:
                    raise CodecError(
                        f"episode {id}: steps {shown(runs)} are learnable, not {shown(record.runs)}"
                    )
            elif not any(found.what == task for found in self.verdict.findings if found.kind == "task"):
                self._found("task", task, "the store holds episodes of it, but it is not registered", False)
        except UnknownFormat as error:
            self._found("episode", id, str(error), repaired=False)
        except (CodecError, EpisodeError) as error:
            self._report_damage(tag, id, str(error))
        else:
            if any(left >= 0 for left in lives):
                self._stop_expiry(tag, record, lives)
            self.verdict.episodes += 1
            self.verdict.steps += record.length
            self.verdict.bytes += record.bytes

    def _report_damage(self, tag: str, id: str, why: str) -> None:
        """Report a damaged episode, unless it was removed meanwhile together with its chunks."""
        if self._ask([("HEXISTS", keys.episodes(tag), id)])[0]:
            repaired = self.repair and move_to_quarantine(self.client, tag, id, why)
            self._found("episode", id, why, repaired)

    def _stop_expiry(self, tag: str, record: Record, lives: list[int]) -> None:
        """Report an episode whose chunks would expire, given their life times in milliseconds."""
        if self.repair:
            self._ask([("PERSIST", chunk) for chunk in chunk_keys(tag, record)])
        left = min(left for left in lives if left >= 0)
        self._found("expiry", record.meta.id, f"would expire in {left / 1000:.0f} s", self.repair)

    # Indices

    def _indices(self, tag: str, listed: dict[str, tuple[int, str]]) -> None:
        """Compare the indices of a shard with the entries that they should hold."""
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
        """Check the entries of one episode again, and report them if they are still wrong."""
        packed = self._ask([("HGET", keys.episodes(tag), id)])[0]
        right: tuple[int, str] | None = None
        if packed is not None:
            try:
                record = checked_record(id, packed)
            except CodecError:
                return  # it was reported already
            right = SOURCES.index(record.meta.source), index_entry(record)
        candidates = sorted(suspected | ({right} if right else set()))
        names = [keys.index(tag, source) for source in SOURCES]
        scores = self._ask([("ZSCORE", names[number], entry) for number, entry in candidates])
        present = {entry for entry, score in zip(candidates, scores, strict=True) if score is not None}
        wrong = sorted(present - {right})
        missing = right is not None and right not in present
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

    # Expiry

    def _expiries(self) -> None:
        """Report chunks that belong to no episode and would never expire."""
        writers: dict[str, list[str]] = {}
        for key in self.client.call("looking for chunks", lambda: list(self._orphans())):
            writers.setdefault(key.rpartition(":")[0], []).append(key)
        for writer, chunks in writers.items():
            if self.repair:
                self._ask([("PEXPIRE", chunk, int(1000 * self.orphan_seconds)) for chunk in chunks])
            self._found("expiry", writer, "chunks of no episode would never expire", self.repair)

    def _orphans(self) -> Iterator[str]:
        """Yield the keys of chunks that belong to no episode and would never expire."""
        prefixes = {keys.chunks_prefix(tag): tag for tag in self.tags}
        found = self.client.redis.scan_iter(keys.chunks_pattern(self.namespace), count=PAGE)
        for page in _pages(found, PAGE):
            named = []
            for key in page:
                prefix = next((prefix for prefix in prefixes if key.startswith(prefix.encode())), None)
                if prefix is not None:
                    id, _, token = key.decode()[len(prefix) :].rpartition(":")[0].rpartition(":")
                    named.append((prefixes[prefix], key.decode(), id, token))
            # The life time is read before and after the owner, so that a chunk whose episode is committed or
            # evicted in between is not taken for an orphan.
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
            for (_, name, _, token), packed, quarantined, left in zip(
                lasting, replies, replies, replies, strict=True
            ):
                records = [packed] if packed is not None else []
                records += [decode_entry(quarantined).record] if quarantined is not None else []
                if left == FOREVER and not any(may_own(token, record) for record in records):
                    yield name

    # Totals and quarantine

    def _totals(self, tag: str) -> None:
        """Report totals of a shard that do not match its episodes."""
        names = [keys.episodes(tag), keys.totals(tag), keys.quarantine(tag)]
        wrong = self._script(scripts.RECOUNT, names, [int(self.repair), *SOURCES])
        for name, said, right in zip(wrong[::3], wrong[1::3], wrong[2::3], strict=True):
            self._found("totals", f"{tag} {name.decode()}", f"says {said}, not {right}", self.repair)

    def _quarantine(self, tag: str) -> dict[bytes, bytes]:
        """Return the entries of a shard's quarantine, encoded, by id."""
        entries: dict[bytes, bytes] = self._ask([("HGETALL", keys.quarantine(tag))])[0]
        return entries

    def _drop(self, tag: str) -> None:
        """Delete the episodes in a shard's quarantine."""
        for id, value in self._quarantine(tag).items():
            names, args = [keys.quarantine(tag), keys.totals(tag)], list[Any]([id, value])
            try:
                record = checked_record(id.decode(), decode_entry(value).record)
            except CodecError:
                pass  # its chunks are unknown; they expire as chunks of no episode
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
        """Yield the items of a hash or sorted set in pages; an item may be in several pages."""
        cursor: bytes | int = 0
        while True:
            cursor, items = self._ask([(command, key, cursor, "COUNT", PAGE)])[0]
            yield dict(items)
            if int(cursor) == 0:
                return


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Divide records into groups whose chunks are read in one round trip."""
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
    """Divide an iterable into lists of `size` items; the last list may be shorter."""
    rest = iter(found)
    while page := list(islice(rest, size)):
        yield page
