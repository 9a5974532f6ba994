"""EpisodeStore: episodes in Redis. The only code that knows what is where in it."""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from redis.client import Pipeline

from replay import keys, scripts
from replay.cache import EpisodeCache
from replay.client import Client
from replay.codec import (
    Record,
    decode_chunk,
    decode_record,
    decode_spec,
    encode_record,
    encode_spec,
    join_chunks,
)
from replay.config import StoreConfig
from replay.episode import SOURCES, Episode, EpisodeMeta, Segment, TaskSpec, difference
from replay.errors import CodecError, StoreError, StoreFull, UnknownEpisode
from replay.index import Index
from replay.sampling import cut, draw
from replay.stats import StoreStats, stats_of
from replay.writer import EpisodeWriter, Sink

EVICTED: Final = ("rollout", "dagger")
"""Sources that give way, oldest first, when the byte budget is used up."""

REMOVED_LISTED: Final = 10_000
"""Removals a shard remembers; a reader that missed more of them reads its whole index anew."""


class EpisodeStore:
    """A namespace of a Redis. Safe to use from several threads; a writer belongs to one."""

    def __init__(self, client: Client, namespace: str, config: StoreConfig) -> None:
        self._client = client
        self._redis = client.redis
        self._namespace = keys.check_namespace(namespace)
        self._config = config
        self._specs: dict[str, TaskSpec] = {}
        self._cache = EpisodeCache(config.cache_bytes)
        self._lock = threading.RLock()
        self._tags = [keys.tag(namespace, shard) for shard in range(self._agree_on_shards())]
        self._index = Index(len(self._tags))
        self._refreshed = -float("inf")
        self._write = self._redis.register_script(scripts.WRITE)
        self._commit = self._redis.register_script(scripts.COMMIT)
        self._changes = self._redis.register_script(scripts.CHANGES)

    @staticmethod
    def connect(url: str, namespace: str, config: StoreConfig) -> "EpisodeStore":
        """The namespace's episodes in the Redis at that URL; a namespace exists once it is connected to.

        Raises:
            StoreUnavailable: Redis does not answer within 15 s, or refuses the credentials.
            ValueError: the namespace holds characters that a key must not.
        """
        keys.check_namespace(namespace)
        return EpisodeStore(Client(url, config), namespace, config)

    def close(self) -> None:
        """Close all connections; a later call would open new ones."""
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

    def writer(self, meta: EpisodeMeta) -> EpisodeWriter:
        """Begin an episode of a registered task. Readers see nothing of it before it is committed.

        Raises:
            StoreError: the task is not registered.
        """
        token = secrets.token_hex(8)
        sink = Sink(
            put=partial(self._put_chunk, meta.id, token),
            commit=self._commit_episode,
            discard=partial(self._discard, meta.id, token),
        )
        return EpisodeWriter(meta, self.spec(meta.task), token, self._config, sink)

    def add(self, episode: Episode) -> bool:
        """Write a whole episode of a registered task.

        Returns:
            False if one of this id was there already.

        Raises:
            ReplayError: as the writer does.
        """
        writer = self.writer(episode.meta)
        for row in range(episode.length):
            writer.append({name: array[row] for name, array in episode.arrays.items()})
        return writer.commit(episode.outcome)

    def _put_chunk(self, id: str, token: str, number: int, chunk: bytes) -> None:
        tag = self._tag(id)
        names = [keys.episodes(tag), keys.chunks(tag, id, token)]
        args: list[Any] = [id, number, chunk, int(1000 * self._config.orphan_seconds)]
        self._call(f"writing episode {id}", lambda: self._write(names, args))

    def _commit_episode(self, record: Record, last: bytes) -> bool:
        id, source, tag = record.meta.id, record.meta.source, self._tag(record.meta.id)
        budget = self._config.byte_budget // len(self._tags)
        names = [keys.episodes(tag), keys.totals(tag), keys.removed(tag), keys.chunks(tag, id, record.token)]
        names += [keys.index(tag, name) for name in (source, *EVICTED)]
        args: list[Any] = [id, record.token, encode_record(record), source, record.outcome]
        args += [record.length, record.bytes, record.chunks, last]
        args += [budget, keys.chunks_prefix(tag), REMOVED_LISTED, *EVICTED]
        verdict, *detail = self._call(f"committing episode {id}", lambda: self._commit(names, args))
        if verdict == b"full":
            raise StoreFull(
                f"no room for episode {id} of {record.bytes} bytes: its shard may hold {budget} bytes, "
                f"{detail[0]} of them are never evicted; raise replay.byte_budget, which the shards divide"
            )
        if verdict == b"incomplete":
            raise StoreError(
                f"episode {id}: of {record.chunks - 1} chunks before the last, {detail[0]} are left; they "
                f"expire replay.orphan_seconds ({self._config.orphan_seconds:g}) after the newest was written"
            )
        return bool(verdict == b"committed")

    def _discard(self, id: str, token: str) -> None:
        key = keys.chunks(self._tag(id), id, token)
        self._call(f"discarding episode {id}", lambda: self._redis.unlink(key))

    # Reading

    def read(self, id: str) -> Episode:
        """A committed episode, from Redis. Its arrays are read-only.

        Raises:
            UnknownEpisode: there is none of this id, or it was removed meanwhile.
            CodecError: what is stored is damaged.
        """
        doing, tag = f"reading episode {id}", self._tag(id)
        packed = self._call(doing, lambda: self._redis.hget(keys.episodes(tag), id))
        if packed is None:
            raise UnknownEpisode(f"no committed episode {id!r}")
        record = decode_record(packed)
        stored = self._call(doing, lambda: self._redis.hgetall(keys.chunks(tag, id, record.token)))
        if not stored:
            raise UnknownEpisode(f"episode {id!r} was removed while it was read")
        try:
            arrays = join_chunks([decode_chunk(stored[number]) for number in sorted(stored, key=int)])
            if any(len(array) != record.length for array in arrays.values()):
                raise CodecError(f"chunks do not add up to {record.length} steps")
        except CodecError as error:
            raise CodecError(f"episode {id}: {error}") from None
        return Episode(record.meta, record.outcome, arrays)

    def ids(self, source: str | None = None) -> list[str]:
        """Ids of all committed episodes, or of those of one source, sorted."""
        with self._lock:
            self._refresh()
            strata = self._index.strata()
            chosen = strata.values() if source is None else [strata[source]]
            return sorted(id for stratum in chosen for id in stratum.ids)

    def __contains__(self, id: str) -> bool:
        key = keys.episodes(self._tag(id))
        return bool(self._call(f"looking for episode {id}", lambda: self._redis.hexists(key, id)))

    def __len__(self) -> int:
        return self.stats().total.episodes

    def stats(self) -> StoreStats:
        """Counts of what is stored and of what ever was."""

        def totals(pipe: Pipeline, shard: int) -> None:
            pipe.hgetall(keys.totals(self._tags[shard]))

        return stats_of(self._each_shard("counting episodes", totals), self._config.byte_budget)

    # Sampling

    def sample(
        self, mix: Mapping[str, float], count: int, before: int, after: int, rng: np.random.Generator
    ) -> list[Segment]:
        """Draw steps, uniformly over all steps of a source, and the rows around them.

        Equal contents, arguments and state of `rng` give equal segments.

        Args:
            mix: source -> its part of the draws; sources without episodes leave theirs to the others.
            count: number of segments.
            before, after: rows wanted before and after the drawn step; a segment holds those of steps
                now - before to now + after, both included, that the episode has.
            rng: the only source of chance.

        Raises:
            StoreError: there is no episode of any source in the mix.
            ValueError: the mix is no mix.
        """
        with self._lock:
            if time.monotonic() - self._refreshed >= self._config.refresh_seconds:
                self._refresh()
            segments: list[Segment] = []
            while len(segments) < count:
                for drawn in draw(self._index.strata(), mix, count - len(segments), rng):
                    try:
                        segments.append(cut(self._cached(drawn.id), drawn, before, after))
                    except UnknownEpisode:
                        # Removed since the last refresh: the next round draws another instead.
                        self._index.forget(drawn.id)
            return segments

    def hold_out(self, ids: Iterable[str]) -> None:
        """Draw no step of these episodes from now on; they can still be read."""
        with self._lock:
            self._index.hold_out(ids)

    def _cached(self, id: str) -> Episode:
        episode = self._cache.get(id)
        if episode is None:
            episode = self.read(id)
            self._cache.put(episode)
        return episode

    def _refresh(self) -> None:
        def changes(pipe: Pipeline, shard: int) -> None:
            tag = self._tags[shard]
            names = [keys.totals(tag), keys.removed(tag), *(keys.index(tag, source) for source in SOURCES)]
            self._changes(names, [self._index.clocks[shard]], client=pipe)

        for shard, reply in enumerate(self._each_shard("listing episodes", changes)):
            self._index.apply(shard, reply)
        self._refreshed = time.monotonic()

    # Plumbing

    def _agree_on_shards(self) -> int:
        key = keys.layout(self._namespace)
        self._call("connecting", lambda: self._redis.hsetnx(key, "shards", self._config.shards))
        return int(self._call("connecting", lambda: self._redis.hget(key, "shards")))

    def _tag(self, id: str) -> str:
        return self._tags[keys.shard_of(id, len(self._tags))]

    def _call(self, doing: str, operation: Callable[[], Any]) -> Any:
        return self._client.call(doing, operation)

    def _each_shard(self, doing: str, command: Callable[[Pipeline, int], None]) -> list[Any]:
        """One command to every shard, in one round trip; the replies by shard."""

        def run() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipe:
                for shard in range(len(self._tags)):
                    command(pipe, shard)
                replies: list[Any] = pipe.execute()
                return replies

        return list(self._call(doing, run))
