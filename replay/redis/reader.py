"""Reader of rows of many episodes at once. It fetches only the chunks that hold the rows."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from longview.replay.cache import EpisodeCache, PartialEpisode
from longview.replay.codec import decode_record, open_chunk
from longview.replay.episode import Segment
from longview.replay.errors import CodecError, UnknownEpisode, UnknownFormat
from longview.replay.redis import keys
from longview.replay.redis.blocks import BlockPool
from longview.replay.redis.client import Client
from longview.replay.sampling import Draw

FETCHED_AT_ONCE: Final = 32 << 20
"""Bytes of stored chunks that are fetched in one round trip; a single episode may exceed it."""
SPARE_BYTES: Final = 256 << 20
"""Most memory of dropped chunks that is kept for the next ones: about that of a large batch."""

Found = PartialEpisode | UnknownEpisode | CodecError
"""An episode, or the error that prevents reading it."""


class ChunkReader:
    """Reader of rows of episodes, with a cache. Threads may share it: each fetches and decodes for itself.

    Two threads that miss the same chunk at the same time both read it, which does no harm.
    """

    def __init__(self, client: Client, tag_of: Callable[[str], str], cache_bytes: int) -> None:
        """Make a reader with an empty cache.

        Args:
            client: connection to the store.
            tag_of: returns the hash tag of an episode id's shard.
            cache_bytes: limit on the decoded chunks that the reader keeps.
        """
        self._client = client
        self._tag_of = tag_of
        self._cache = EpisodeCache(cache_bytes)
        self._memory = BlockPool(SPARE_BYTES)
        self._lock = threading.Lock()
        """Lock of the cache and of changes to its episodes; held neither for a round trip nor to decode."""

    def segments(
        self, draws: Sequence[Draw], by: str, before: int, after: int
    ) -> tuple[list[Segment], dict[str, UnknownEpisode | CodecError]]:
        """Read the rows around drawn steps.

        Args:
            draws: the drawn steps.
            by: the rule that they were drawn by, one of `DRAW_BY`.
            before: rows before each drawn step.
            after: rows after each drawn step.

        Returns:
            A segment for each draw whose episode could be read, and the errors of the other episodes by id.

        Raises:
            StoreError, UnknownFormat: as for `fetch`.
        """
        found = self._records(dict.fromkeys(drawn.id for drawn in draws))
        self._look_up_runs(found)
        spans = [_span(found[drawn.id], drawn, before, after) for drawn in draws]
        self._load(found, [(drawn.id, span) for drawn, span in zip(draws, spans, strict=True)])
        segments, failed = list[Segment](), dict[str, UnknownEpisode | CodecError]()
        for drawn, span in zip(draws, spans, strict=True):
            try:
                segments.append(_segment(found[drawn.id], drawn, by, span))
            except (UnknownEpisode, CodecError) as error:
                failed[drawn.id] = error
        return segments, failed

    def fetch(self, wanted: Iterable[tuple[str, range]]) -> dict[str, Found]:
        """Load rows of episodes.

        The records that are not cached are read in one round trip. The chunks that are not cached follow in
        round trips of about `FETCHED_AT_ONCE` bytes.

        Args:
            wanted: pairs of an id and rows within its episode; an id may occur several times.

        Returns:
            By id, the episode with these rows loaded, or the error that prevents it.

        Raises:
            StoreError: Redis was unreachable for `patience_seconds`, or refused.
            UnknownFormat: a chunk was written in another version of the format.
        """
        pairs = list(wanted)
        found = self._records(dict.fromkeys(id for id, _ in pairs))
        self._load(found, pairs)
        return found

    def _look_up_runs(self, found: dict[str, Found]) -> None:
        """Read whole episodes whose records leave open which steps are learnable, as early versions did."""
        unclear = {
            id: episode
            for id, episode in found.items()
            if isinstance(episode, PartialEpisode) and episode.unclear
        }
        if unclear:
            self._load(found, [(id, range(episode.record.length)) for id, episode in unclear.items()])
        for id, episode in unclear.items():
            try:
                if found[id] is episode:
                    with self._lock:
                        episode.look_up_runs()
            except CodecError as error:
                found[id] = error

    def _load(self, found: dict[str, Found], wanted: Sequence[tuple[str, range]]) -> None:
        """Load rows of episodes whose records were found. An episode that cannot be loaded is replaced by the
        error."""
        rows: dict[str, list[range]] = {}
        for id, span in wanted:
            rows.setdefault(id, []).append(span)
        whole = {id: episode for id, episode in found.items() if isinstance(episode, PartialEpisode)}
        missing = {
            id: sorted({number for span in rows.get(id, ()) for number in episode.missing(span)})
            for id, episode in whole.items()
        }
        for group in _groups(whole, missing):
            found |= self._filled({id: whole[id] for id in group}, missing)
        with self._lock:
            for id, episode in found.items():
                if isinstance(episode, PartialEpisode):
                    self._cache.put(episode)
                else:
                    self._cache.remove(id)

    def _records(self, ids: Iterable[str]) -> dict[str, Found]:
        found: dict[str, Found] = {}
        new = []
        with self._lock:
            for id in ids:
                if (episode := self._cache.get(id)) is None:
                    new.append(id)
                else:
                    found[id] = episode
        commands = [("HGET", keys.episodes(self._tag_of(id)), id) for id in new]
        packed = self._client.pipelined("reading records of episodes", commands) if new else []
        for id, record in zip(new, packed, strict=True):
            try:
                found[id] = UnknownEpisode(id) if record is None else PartialEpisode(decode_record(record))
            except CodecError as error:
                found[id] = error
        return found

    def _filled(
        self, episodes: Mapping[str, PartialEpisode], missing: Mapping[str, Sequence[int]]
    ) -> dict[str, Found]:
        """Load the missing chunks of these episodes in one round trip."""
        commands: list[tuple[str, ...]] = []
        for id, episode in episodes.items():
            tag = self._tag_of(id)
            commands.append(("MGET", *keys.chunks(tag, id, episode.record.token, missing[id])))
            # Chunks are removed together with their record. If the record outlives a missing chunk, the
            # episode is damaged; otherwise it was removed.
            commands.append(("HEXISTS", keys.episodes(tag), id))
        replies = self._client.pipelined("reading chunks of episodes", commands)
        found: dict[str, Found] = {}
        for (id, episode), chunks, kept in zip(episodes.items(), replies[::2], replies[1::2], strict=True):
            try:
                found[id] = episode
                for number, chunk in zip(missing[id], chunks, strict=True):
                    if chunk is None:
                        raise CodecError(f"chunk {number} is missing")
                    opened = open_chunk(chunk, self._memory.take)
                    with self._lock:
                        episode.fill(number, opened)
            except UnknownFormat:
                raise
            except CodecError as error:
                found[id] = error if kept else UnknownEpisode(id)
        return found


def _span(episode: Found, drawn: Draw, before: int, after: int) -> range:
    """Return the rows around a drawn step; none if its episode could not be read."""
    if not isinstance(episode, PartialEpisode):
        return range(0)
    now = _now(episode, drawn)
    return range(max(0, now - before), min(episode.record.length, now + after + 1))


def _now(episode: PartialEpisode, drawn: Draw) -> int:
    """Return the drawn step, counted from the episode's start."""
    return drawn.number if drawn.imitated else episode.learnable_step(drawn.number)


def _segment(episode: Found, drawn: Draw, by: str, span: range) -> Segment:
    """Make the segment of a drawn step from its episode, whose rows are loaded.

    Raises:
        UnknownEpisode, CodecError: the episode could not be loaded, or a picture is damaged.
    """
    if not isinstance(episode, PartialEpisode):
        raise episode
    now = _now(episode, drawn)
    return Segment(
        meta=episode.record.meta,
        episode_length=episode.record.length,
        start=span.start,
        now=now,
        probability=drawn.chance + drawn.added * episode.is_learnable(now),
        arrays=episode.arrays(span),
        stratum=drawn.stratum,
        by=by,
    )


def _groups(
    episodes: Mapping[str, PartialEpisode], missing: Mapping[str, Sequence[int]]
) -> Iterator[list[str]]:
    """Divide the ids of episodes with missing chunks into groups, each read in one round trip."""
    group, size = list[str](), 0
    for id, numbers in missing.items():
        if numbers:
            record = episodes[id].record
            expected = record.bytes * len(numbers) // record.chunks
            if group and size + expected > FETCHED_AT_ONCE:
                yield group
                group, size = [], 0
            group.append(id)
            size += expected
    if group:
        yield group
