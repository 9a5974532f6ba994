"""EpisodeStore: episodes in Redis. The only code that knows what is where in it."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from longview.replay import limiter
from longview.replay.codec import Record, decode_record, decode_spec, encode_spec
from longview.replay.config import StoreConfig
from longview.replay.episode import SOURCES, Episode, EpisodeMeta, Segment, Selection, TaskSpec, difference
from longview.replay.errors import CodecError, Quarantined, ReplayError, StoreError, UnknownFormat
from longview.replay.limiter import Limiter
from longview.replay.redis import keys, scripts
from longview.replay.redis.blocks import BlockPool
from longview.replay.redis.client import Client
from longview.replay.redis.index import PAGE, Index
from longview.replay.redis.quarantine import move_to_quarantine, read_episode
from longview.replay.redis.reader import ChunkReader
from longview.replay.redis.sender import Queue, Sender
from longview.replay.redis.sink import Sink
from longview.replay.redis.totals import stats_of
from longview.replay.redis.verify import Verdict, Verifier
from longview.replay.redis.writer import EpisodeWriter
from longview.replay.sampling import draw
from longview.replay.stats import StoreStats

log = logging.getLogger(__name__)

FORMAT: Final = 2
"""Of what is where in a namespace; replay/keys.py and codec.py say what that is."""


class EpisodeStore:
    """A namespace of a Redis. Safe to use from several threads; a writer belongs to one."""

    def __init__(self, client: Client, namespace: str, config: StoreConfig) -> None:
        self._client = client
        self._redis = client.redis
        self._namespace = keys.check_namespace(namespace)
        self._config = config
        self._specs: dict[str, TaskSpec] = {}
        self._lock = threading.RLock()
        self._tags = [keys.tag(namespace, shard) for shard in range(self._agree_on_shards())]
        self._reader = ChunkReader(client, self._tag, config.cache_bytes)
        self._index = Index(len(self._tags))
        self._refreshed = -float("inf")
        self.limiter = Limiter()
        """When `sample` may draw: of this process alone, and another at any time."""
        self._sink = Sink(client, self._tag, len(self._tags), config)
        self._sender = Sender(client, config)
        self._memory = BlockPool(config.queue_bytes)

    @staticmethod
    def connect(url: str, namespace: str, config: StoreConfig) -> "EpisodeStore":
        """The namespace's episodes in the Redis at that URL; a namespace exists once it is connected to.

        Raises:
            StoreUnavailable: Redis does not answer within 15 s, or refuses the credentials.
            StoreError: the namespace is of another version's format.
            ValueError: the namespace holds characters that a key must not.
        """
        keys.check_namespace(namespace)
        return EpisodeStore(Client(url, config), namespace, config)

    def close(self) -> None:
        """Wait for what writers have handed over, then close all connections; a later call would open new
        ones.

        Raises:
            StoreUnavailable, StoreFull: Redis stays away or full, and commits are given up for that.
        """
        try:
            self._sender.close()
        finally:
            self._redis.close()

    # Tasks

    def register(self, spec: TaskSpec) -> None:
        """Make a task known. Registering an equal spec again changes nothing.

        Raises:
            StoreError: the task is known with another spec; the message names what differs.
        """
        packed = encode_spec(spec)
        key = keys.tasks(self._namespace)
        self._call(f"registering task {spec.name}", lambda: self._redis.hsetnx(key, spec.name, packed))
        if differing := difference(self.spec(spec.name).to_dict(), spec.to_dict()):
            name, known, new = differing
            raise StoreError(
                f"task {spec.name} is registered with {name} = {known}, not {new}: "
                "use another namespace, or another name for the task"
            )

    def spec(self, task: str) -> TaskSpec:
        """The spec that the task was registered with.

        Raises:
            StoreError: it was not.
        """
        if task not in self._specs:
            key = keys.tasks(self._namespace)
            packed = self._call(f"reading task {task}", lambda: self._redis.hget(key, task))
            if packed is None:
                known = ", ".join(self.tasks()) or "none"
                raise StoreError(f"task {task} is not registered in this store; registered: {known}")
            self._specs[task] = decode_spec(packed)
        return self._specs[task]

    def tasks(self) -> list[str]:
        """Names of all registered tasks, sorted."""
        names = self._call("listing tasks", lambda: self._redis.hkeys(keys.tasks(self._namespace)))
        return sorted(name.decode() for name in names)

    # Writing

    def writer(self, meta: EpisodeMeta, extras: Mapping[str, Any] | None = None) -> EpisodeWriter:
        """Begin an episode of a registered task. Readers see nothing of it before it is committed.

        Raises:
            StoreError: the task is not registered.
        """
        spec, token = self.spec(meta.task), secrets.token_hex(8)
        return EpisodeWriter(meta, spec, token, self._config, self._sink, self._sender, self._memory, extras)

    def add(self, episode: Episode) -> bool:
        """Write a whole episode of a registered task.

        Returns:
            False if one of this id was there already.

        Raises:
            ReplayError: as the writer does.
        """
        writer = self.writer(episode.meta, episode.extras)
        for row in range(episode.length):
            writer.append({name: array[row] for name, array in episode.arrays.items()})
        return writer.commit(episode.outcome)

    def queue(self) -> Queue:
        """What writers have handed over and is not stored yet."""
        return self._sender.state()

    def flush(self) -> None:
        """Wait until all that writers have handed over is stored.

        Raises:
            StoreUnavailable, StoreFull: Redis stays away or full.
        """
        self._sender.flush()

    # Reading

    def read(self, id: str) -> Episode:
        """A committed episode, from Redis. Its arrays are read-only.

        Raises:
            UnknownEpisode: there is none of this id, or it was removed meanwhile.
            Quarantined: it is damaged; now nobody reads it any more.
            UnknownFormat: it is of another version of the format.
        """
        try:
            return read_episode(self._client, self._tag(id), id)
        except UnknownFormat:
            raise
        except CodecError as error:
            self._quarantine(id, str(error))
            raise Quarantined(f"{error}; it is set aside: `longview store verify` tells of all") from None

    def ids(self, source: str | None = None) -> list[str]:
        """Ids of all committed episodes, or of those of one source, sorted."""
        with self._lock:
            self._refresh()
            return self._index.ids(source)

    def records(
        self, source: str | None = None, task: str | None = None, outcome: str | None = None
    ) -> Iterator[Record]:
        """What is known of all committed episodes of these, without their arrays, in the order of `ids`.

        Raises:
            UnknownFormat: one is of another version of the format.
        """
        for ids in _batches(self.ids(source), 1000):
            commands = [("HGET", keys.episodes(self._tag(id)), id) for id in ids]
            replies = self._client.pipelined("listing episodes", commands)
            for id, packed in zip(ids, replies, strict=True):
                if packed is None:  # removed meanwhile
                    continue
                try:
                    record = decode_record(packed)
                except UnknownFormat:
                    raise
                except CodecError as error:
                    self._quarantine(id, str(error))
                    continue
                if task in (None, record.meta.task) and outcome in (None, record.outcome):
                    yield record

    def __contains__(self, id: str) -> bool:
        return not self.missing([id])

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of these episodes that are not committed, in one round trip."""
        commands = [("HEXISTS", keys.episodes(self._tag(id)), id) for id in ids]
        present = self._client.pipelined("looking for episodes", commands)
        return [id for id, there in zip(ids, present, strict=True) if not there]

    def __len__(self) -> int:
        return self.stats().total.episodes

    def stats(self) -> StoreStats:
        """Counts of what is stored and of what ever was."""
        totals = [("HGETALL", keys.totals(tag)) for tag in self._tags]
        return stats_of(self._client.pipelined("counting episodes", totals), self._config.byte_budget)

    # Sampling

    def sample(
        self,
        selection: Selection | Mapping[str, float],
        count: int,
        before: int,
        after: int,
        rng: np.random.Generator,
    ) -> list[Segment]:
        """Draw steps, and the rows around them; waits first, if the limiter says so.

        Equal contents, arguments and state of `rng` give equal segments. An episode that turns out to be
        damaged is set aside, and another drawn.

        Args:
            selection: which steps; a mapping is the `mix` of one that draws by steps.
            count: number of segments.
            before, after: rows wanted before and after the drawn step; a segment holds those of steps
                now - before to now + after, both included, that the episode has.
            rng: the only source of chance.

        Raises:
            StoreError: there is no episode that is selected.
            LimiterTimeout: the limiter let nothing be drawn.
            ValueError: the mapping is no mix.
        """
        selected = selection if isinstance(selection, Selection) else Selection(selection)
        limiter.wait(lambda: self.limiter, count, lambda: self._sizes(selected))
        with self._lock:
            self._look()
            segments: list[Segment] = []
            while len(segments) < count:
                draws = draw(self._index.plan(selected), count - len(segments), rng)
                found, failed = self._reader.segments(draws, selected.by, before, after)
                segments += found
                for id, error in failed.items():
                    # Removed since the last refresh, or damaged: the next round draws another instead.
                    self._index.forget(id)
                    if isinstance(error, CodecError):
                        self._quarantine(id, str(error))
            return segments

    def prioritize(self, priorities: Mapping[str, float]) -> None:
        """Say how often episodes are drawn by priority, in proportion to one another: by every sampler, from
        its next refresh on, until it is said anew. Ids that are not there are left out.

        Args:
            priorities: by id; 0 is never. An episode that was given none has 1.

        Raises:
            ValueError: a priority is negative or not finite.
        """
        if wrong := {id: value for id, value in priorities.items() if not 0 <= value < float("inf")}:
            raise ValueError(f"priorities must be finite and not negative, not {wrong}")
        by_tag: dict[str, list[Any]] = {}
        for id, value in priorities.items():
            by_tag.setdefault(self._tag(id), []).extend((id, float(value)))
        commands = []
        for tag, args in by_tag.items():
            names = [keys.episodes(tag), keys.totals(tag), keys.priorities(tag), keys.prioritized(tag)]
            for first in range(0, len(args), 2 * PAGE):
                some = args[first : first + 2 * PAGE]
                commands.append(("EVAL", scripts.PRIORITIZE, len(names), *names, *some))
        self._client.pipelined("setting priorities", commands)

    def hold_out(self, ids: Iterable[str]) -> None:
        """Draw no step of these episodes from now on; they can still be read."""
        with self._lock:
            self._index.hold_out(ids)

    def _sizes(self, selection: Selection) -> tuple[int, int]:
        """Steps that were ever committed to what is selected, and that are there to draw from."""
        with self._lock:
            self._look()
            return self._index.committed_steps(selection), self._index.steps(selection)

    def _look(self) -> None:
        """Refresh what is known of the store, unless that was done just now."""
        if time.monotonic() - self._refreshed >= self._config.refresh_seconds:
            self._refresh()

    def _refresh(self) -> None:
        behind = list(range(len(self._tags)))
        while behind:
            commands = []
            for shard in behind:
                tag = self._tags[shard]
                names = [keys.totals(tag), keys.priorities(tag), keys.removed(tag), keys.prioritized(tag)]
                names += [keys.index(tag, source) for source in SOURCES]
                known = self._index.known(shard)
                commands.append(("EVAL", scripts.CHANGES, len(names), *names, PAGE, *known))
            replies = self._client.pipelined("listing episodes", commands)
            behind = [s for s, reply in zip(behind, replies, strict=True) if self._index.apply(s, reply)]
        self._refreshed = time.monotonic()

    def _quarantine(self, id: str, why: str) -> None:
        """Set a damaged episode aside, if it is still damaged when it is read once more; never fails."""
        try:
            read_episode(self._client, self._tag(id), id)
        except UnknownFormat:
            return
        except CodecError as error:
            try:
                if move_to_quarantine(self._client, self._tag(id), id, str(error)):
                    log.error("set aside as damaged: %s", error)
            except StoreError as refused:
                log.warning("%s, and cannot be set aside: %s", error, refused)
        except ReplayError as error:
            log.info("episode %s: %s, but then: %s", id, why, error)

    # Care

    def verify(
        self,
        repair: bool = False,
        drop: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Verdict:
        """Look for everything that can be wrong here; others may go on meanwhile.

        Args:
            repair: set damaged episodes aside, and put right what follows from the others.
            drop: remove what is in quarantine for good.
            progress: told how many episodes are done, and how many there are.

        Raises:
            StoreError: Redis stayed away, or refused.
        """
        seconds = self._config.orphan_seconds
        return Verifier(self._client, self._namespace, self._tags, seconds, repair, drop, progress).run()

    # Plumbing

    def _agree_on_shards(self) -> int:
        """The number of shards, once this Longview and the namespace's are known to lay it out alike."""
        key = keys.layout(self._namespace)
        found = self._call("connecting", lambda: self._redis.hgetall(key))
        if b"shards" not in found:
            # The format first: one who sees the shards sees it, too.
            for name, value in (("format", FORMAT), ("shards", self._config.shards)):
                self._call("connecting", partial(self._redis.hsetnx, key, name, value))
            found = self._call("connecting", lambda: self._redis.hgetall(key))
        if (format := int(found.get(b"format", 1))) != FORMAT:
            raise StoreError(
                f"namespace {self._namespace} is of format {format}, this version of Longview reads format "
                f"{FORMAT}: use another namespace, or the version that wrote it"
            )
        return int(found[b"shards"])

    def _tag(self, id: str) -> str:
        return self._tags[keys.shard_of(id, len(self._tags))]

    def _call(self, doing: str, operation: Callable[[], Any]) -> Any:
        return self._client.call(doing, operation)


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
