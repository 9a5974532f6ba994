"""Store of episodes in Redis: writing, reading, sampling and verification."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from longview.replay import limiter
from longview.replay.codec import Record, encode_chunk
from longview.replay.config import StoreConfig
from longview.replay.episode import Array, Episode, EpisodeMeta, Segment, Selection, TaskSpec, difference
from longview.replay.errors import CodecError, Quarantined, StoreError, UnknownFormat
from longview.replay.limiter import Limiter
from longview.replay.names import check_name
from longview.replay.owner import Owner
from longview.replay.pictures import stored_as_jpeg
from longview.replay.redis.blocks import BlockPool
from longview.replay.redis.client import Client, redact
from longview.replay.redis.index import Index
from longview.replay.redis.namespace import Namespace
from longview.replay.redis.reader import ChunkReader
from longview.replay.redis.room import rooms
from longview.replay.redis.sender import Queue, Sender
from longview.replay.redis.sink import Sink
from longview.replay.redis.verify import Verdict, Verifier
from longview.replay.redis.writer import EpisodeWriter
from longview.replay.sampling import draw
from longview.replay.stats import StoreStats

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class StoreAddress:
    """Address of an episode store, which may be sent to other processes and printed."""

    url: str
    """URL of Redis: redis://, rediss:// or unix://. It may hold a password, which is never shown."""
    namespace: str
    """Name of the store within that Redis, such as a run's."""

    def __repr__(self) -> str:
        return f"StoreAddress({redact(self.url)!r}, {self.namespace!r})"

    def connect(self, config: StoreConfig) -> "EpisodeStore":
        """Connect to the store; errors are those of `EpisodeStore.connect`."""
        return EpisodeStore.connect(self.url, self.namespace, config)


class EpisodeStore:
    """Episodes of one namespace in Redis. Threads may share a store, but not a writer."""

    def __init__(self, client: Client, namespace: str, config: StoreConfig) -> None:
        """Open a namespace; see `connect` for the errors."""
        self._config = config
        self._specs: dict[str, TaskSpec] = {}
        self._lock = threading.RLock()
        """Lock of the index and its refreshes."""
        self._turn = threading.Lock()
        """Lock of the draw whose turn it is to wait for the limiter."""
        self._namespace = Namespace(client, namespace, config.shards)
        tag_of, shards = self._namespace.tag_of, len(self._namespace.tags)
        self._reader = ChunkReader(client, tag_of, config.cache())
        self._index = Index(shards)
        self._refreshed = -float("inf")
        self.limiter = Limiter()
        """Limit on the draws of this store object. It may be replaced at any time."""
        self._sink = Sink(client, tag_of, shards, config)
        self._sender = Sender(client, config)
        self._memory = BlockPool(config.queue_bytes)

    @staticmethod
    def connect(url: str, namespace: str, config: StoreConfig) -> "EpisodeStore":
        """Connect to Redis and open a namespace. A namespace that does not exist is made.

        Args:
            url: address of Redis: redis://, rediss:// or unix://.
            namespace: name that `check_name` accepts.
            config: settings; its `url` is not used.

        Raises:
            StoreUnavailable: Redis does not answer within 15 s, or refuses the credentials.
            StoreError: a server may evict episodes by itself, or the namespace has the layout of another
                version of Longview.
            ValueError: the namespace breaks the rule of `check_name`.
        """
        check_name(namespace, "namespace")
        return EpisodeStore(Client(url, config), namespace, config)

    def close(self) -> None:
        """Wait until the queue of the writers is empty, then close all connections.

        Raises:
            StoreUnavailable, StoreFull: nothing was stored for `patience_seconds`, and commits were dropped.
        """
        try:
            self._sender.close()
        finally:
            self._namespace.client.redis.close()

    def claim(self, owner: Owner) -> None:
        """Make a run the owner of the namespace, for good. If it is the owner already, nothing changes.

        Raises:
            StoreError: another run owns the namespace, or the run owns it with another task or seed.
        """
        space, found = self._namespace, self._namespace.claim(owner)
        at = f"namespace {space.name} in Redis at {space.client.shown}"
        if found.id != owner.id:
            raise StoreError(
                f"{at} belongs to another run, of task {found.task} and seed {found.seed}: "
                "give this run another name or another Redis"
            )
        if differing := difference(asdict(found), asdict(owner)):
            name, was, now = differing
            raise StoreError(f"{at} belongs to this run with {name} {was}, not {now}: launch another run")

    # Tasks

    def register(self, spec: TaskSpec) -> None:
        """Register a task, so that its episodes can be written. Registering an equal spec again changes
        nothing.

        Raises:
            StoreError: the task is registered with another spec; the message names the difference.
        """
        self._namespace.add_task(spec)
        if differing := difference(self.spec(spec.name).to_dict(), spec.to_dict()):
            name, known, new = differing
            raise StoreError(
                f"task {spec.name} is registered with {name} = {known}, not {new}: "
                "use another namespace, or another name for the task"
            )

    def spec(self, task: str) -> TaskSpec:
        """Return the spec of a registered task.

        Raises:
            StoreError: the task is not registered.
        """
        if task not in self._specs:
            if (found := self._namespace.task(task)) is None:
                known = ", ".join(self.tasks()) or "none"
                raise StoreError(f"task {task} is not registered in this store; registered: {known}")
            self._specs[task] = found
        return self._specs[task]

    def tasks(self) -> list[str]:
        """Return the names of all registered tasks, sorted."""
        return self._namespace.tasks()

    def forget(self, task: str, with_episodes: bool = False) -> int:
        """Remove a task's registration, so that its name is free, and return how many episodes went with it.

        Episodes of the task that are being written meanwhile are not found.

        Args:
            task: name of the task.
            with_episodes: whether to delete the task's episodes for good. They may be added again.

        Raises:
            StoreError: the task is not registered, or has episodes and they must stay.
        """
        self.spec(task)
        records = list(self.records(task=task))
        if records and not with_episodes:
            raise StoreError(f"the store holds {len(records)} episodes of task {task}")
        deleted = sum(self._namespace.forget(record) for record in records)
        self._namespace.forget_task(task)
        del self._specs[task]
        return deleted

    # Writing

    def writer(
        self, meta: EpisodeMeta, extras: Mapping[str, Any] | None = None, lossy: Collection[str] = ()
    ) -> EpisodeWriter:
        """Begin an episode of a registered task. Readers do not see it before it is committed.

        Args:
            meta: description of the episode.
            extras: further facts to keep with the episode, plain values by name.
            lossy: names of pictures whose source has lost something already, as a video has.

        Raises:
            StoreError: the task is not registered.
            EpisodeError: `meta` or `extras` hold values that cannot be stored.
        """
        spec, token = self.spec(meta.task), secrets.token_hex(8)
        to = self._sink, self._sender, self._memory
        return EpisodeWriter(meta, spec, token, self._config, *to, extras, lossy)

    def add(self, episode: Episode) -> bool:
        """Write a whole episode of a registered task.

        Returns:
            True if the store now holds this episode, False if it already held one of this id.

        Raises:
            ReplayError: as for `EpisodeWriter.append` and `EpisodeWriter.commit`.
        """
        writer = self.writer(episode.meta, episode.extras)
        writer.extend(episode.arrays)
        return writer.commit(episode.outcome)

    def stored_bytes(self, spec: TaskSpec, rows: Mapping[str, Array], lossy: Collection[str] = ()) -> int:
        """Return the bytes that steps of a task would take in this store.

        Args:
            spec: the task; it need not be registered.
            rows: rows (steps, ...) of every array of the task, by name; few enough for one chunk.
            lossy: as for `writer`.
        """
        as_jpeg = stored_as_jpeg(spec, lossy, self._config.pictures)
        return len(encode_chunk(rows, self._config.compression, as_jpeg))

    def rooms(self) -> dict[str, int]:
        """Return the bytes that more episodes may take, by what limits them: the byte budget, and where Redis
        runs on this machine its memory and disk."""
        return rooms(self._namespace.client, self.stats(), self._config.evict)

    def queue(self) -> Queue:
        """Return how full the queue of this store's writers is."""
        return self._sender.state()

    def flush(self) -> None:
        """Wait until the queue of this store's writers is empty.

        Raises:
            StoreUnavailable, StoreFull: nothing was stored for `patience_seconds`.
        """
        self._sender.flush()

    # Reading

    def read(self, id: str) -> Episode:
        """Read a committed episode. Its arrays are read-only.

        Raises:
            UnknownEpisode: no committed episode has the id, or it was removed during the read.
            Quarantined: the episode is damaged; it is in the quarantine from now on.
            UnknownFormat: the episode was written in another version of the format.
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
        """
        try:
            return self._namespace.read(id)
        except UnknownFormat:
            raise
        except CodecError as error:
            self._namespace.quarantine(id, str(error))
            raise Quarantined(f"{error}; `longview store verify` lists all damaged episodes") from None

    def ids(self, source: str | None = None) -> list[str]:
        """Return the ids of all committed episodes, or of one source, sorted."""
        with self._lock:
            self._refresh()
            return self._index.ids(source)

    def records(
        self, source: str | None = None, task: str | None = None, outcome: str | None = None
    ) -> Iterator[Record]:
        """Yield the records of committed episodes, which hold everything but the arrays, sorted by id.

        Args:
            source: only episodes of this source; None: all.
            task: only episodes of this task; None: all.
            outcome: only episodes that ended this way; None: all.

        Raises:
            UnknownFormat: a record was written in another version of the format.
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
        """
        for record in self._namespace.records(self.ids(source)):
            if task in (None, record.meta.task) and outcome in (None, record.outcome):
                yield record

    def __contains__(self, id: str) -> bool:
        return not self.missing([id])

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that no committed episode has, in one round trip."""
        return self._namespace.missing(ids)

    def __len__(self) -> int:
        return self.stats().total.episodes

    def stats(self) -> StoreStats:
        """Return the counts of stored, committed, evicted and damaged episodes."""
        return self._namespace.stats(self._config.byte_budget)

    # Sampling

    def sample(
        self,
        selection: Selection | Mapping[str, float],
        count: int,
        before: int,
        after: int,
        rng: np.random.Generator,
    ) -> list[Segment]:
        """Draw steps, and return each with the rows around it. Waits first while the limiter forbids the
        draw.

        Equal contents of the store, equal arguments and equal states of `rng` give equal segments. If a drawn
        episode is damaged, it is moved to the quarantine and another one is drawn. Threads that sample at the
        same time decode at the same time.

        Args:
            selection: steps to draw. A mapping is the `mix` of a selection that draws by steps.
            count: number of segments.
            before: rows before the drawn step.
            after: rows after the drawn step. A segment holds the steps from now - before to now + after, both
                included, as far as the episode has them.
            rng: only source of randomness.

        Raises:
            StoreError: the selection has no step to learn from, or Redis was unreachable for
                `patience_seconds`.
            LimiterTimeout: the limiter forbade the draw for `timeout_seconds`.
            ValueError: the mapping is not a valid mix.
        """
        selected = selection if isinstance(selection, Selection) else Selection(selection)
        with self._turn:
            limiter.wait(lambda: self.limiter, count, lambda: self.sizes(selected))
        with self._lock:
            self._refresh_if_due()
        segments: list[Segment] = []
        while len(segments) < count:
            with self._lock:
                draws = draw(self._index.plan(selected), count - len(segments), rng)
            found, failed = self._reader.segments(draws, selected.by, before, after)
            segments += found
            for id, error in failed.items():
                # It was removed since the last refresh, or is damaged. The next round draws a replacement.
                with self._lock:
                    self._index.forget(id)
                if isinstance(error, CodecError):
                    self._namespace.quarantine(id, str(error))
        return segments

    def prioritize(self, priorities: Mapping[str, float]) -> None:
        """Set the priorities of episodes, for draws with `Selection(by="priority")`.

        An episode's chance is proportional to its priority. Every sampler uses the new priorities from its
        next refresh on. Ids without a committed episode are ignored.

        Args:
            priorities: priority by id, at least 0; an episode with 0 is never drawn. Episodes without a
                priority have 1.

        Raises:
            ValueError: a priority is negative or not finite.
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
        """
        if wrong := {id: value for id, value in priorities.items() if not 0 <= value < float("inf")}:
            raise ValueError(f"priorities must be finite and not negative, not {wrong}")
        self._namespace.set_priorities(priorities)

    def hold_out(self, ids: Iterable[str]) -> None:
        """Exclude episodes from this store's draws from now on. They can still be read."""
        with self._lock:
            self._index.hold_out(ids)

    def sizes(self, selection: Selection) -> tuple[int, int]:
        """Return the steps to draw that were ever committed to the selection, and those stored in it now."""
        with self._lock:
            self._refresh_if_due()
            return self._index.committed_steps(selection), self._index.steps(selection)

    def _refresh_if_due(self) -> None:
        """Refresh the index, if the last refresh is `refresh_seconds` old."""
        if time.monotonic() - self._refreshed >= self._config.refresh_seconds:
            self._refresh()

    def _refresh(self) -> None:
        """Bring the index up to date with all shards."""
        self._namespace.refresh(self._index)
        self._refreshed = time.monotonic()

    # Verification

    def verify(
        self,
        repair: bool = False,
        drop: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Verdict:
        """Check the whole namespace for damage and inconsistencies. It may be used meanwhile.

        Args:
            repair: whether to move damaged episodes to the quarantine, and to correct indices, totals and
                expiry.
            drop: whether to delete the episodes in the quarantine.
            progress: called with the number of episodes checked so far and of all episodes.

        Raises:
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
        """
        seconds = self._config.orphan_seconds
        space = self._namespace
        verifier = Verifier(space.client, space.name, space.tags, seconds, repair, drop, progress)
        return verifier.run()
