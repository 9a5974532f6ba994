"""Reading rows of episodes: only the chunks that they are in, of many episodes at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from longview.replay.cache import EpisodeCache, PartialEpisode
from longview.replay.codec import decode_chunk, decode_record
from longview.replay.episode import Segment
from longview.replay.errors import CodecError, UnknownEpisode, UnknownFormat
from longview.replay.redis import keys
from longview.replay.redis.client import Client
from longview.replay.sampling import Draw

FETCHED_AT_ONCE: Final = 32 << 20
"""Bytes of stored chunks that are asked for in one round trip, unless those of one episode are more."""

Found = PartialEpisode | UnknownEpisode | CodecError
"""An episode, or why there is none."""


class ChunkReader:
    """Reads rows of episodes, and keeps what it read as long as there is room."""

    def __init__(self, client: Client, tag_of: Callable[[str], str], cache_bytes: int) -> None:
        self._client = client
        self._tag_of = tag_of
        self._cache = EpisodeCache(cache_bytes)

    def segments(
        self, draws: Sequence[Draw], by: str, before: int, after: int
    ) -> tuple[list[Segment], dict[str, UnknownEpisode | CodecError]]:
        """What was drawn, with the rows around it; and by id, why there is nothing of an episode.

        Args:
            draws: the steps.
            by: what they were drawn by.
            before, after: rows wanted before and after each.

        Raises:
            StoreError, UnknownFormat: as `fetch`.
        """
        spans = [range(max(0, d.now - before), min(d.length, d.now + after + 1)) for d in draws]
        found = self.fetch((drawn.id, span) for drawn, span in zip(draws, spans, strict=True))
        segments = [
            Segment(
                meta=episode.record.meta,
                episode_length=episode.record.length,
                start=span.start,
                now=drawn.now,
                probability=drawn.probability,
                arrays=episode.arrays(span),
                stratum=drawn.stratum,
                by=by,
            )
            for drawn, span in zip(draws, spans, strict=True)
            if isinstance(episode := found[drawn.id], PartialEpisode)
        ]
        failed = {id: error for id, error in found.items() if not isinstance(error, PartialEpisode)}
        return segments, failed

    def fetch(self, wanted: Iterable[tuple[str, range]]) -> dict[str, Found]:
        """Episodes in which these rows are filled.

        All records that are not in the cache are read in one round trip, and then all chunks that are not, as
        far as they are no more than `FETCHED_AT_ONCE`.

        Args:
            wanted: ids, and rows that lie within the episode; of one id there may be several.

        Raises:
            StoreError: Redis stayed away.
            UnknownFormat: a chunk is of another version.
        """
        rows: dict[str, list[range]] = {}
        for id, span in wanted:
            rows.setdefault(id, []).append(span)
        found = self._records(rows)
        whole = {id: episode for id, episode in found.items() if isinstance(episode, PartialEpisode)}
        missing = {
            id: sorted({number for span in rows[id] for number in episode.missing(span)})
            for id, episode in whole.items()
        }
        for group in _groups(whole, missing):
            found |= self._filled({id: whole[id] for id in group}, missing)
        for id, episode in found.items():
            if isinstance(episode, PartialEpisode):
                self._cache.put(episode)
            else:
                self._cache.remove(id)
        return found

    def _records(self, ids: Iterable[str]) -> dict[str, Found]:
        found: dict[str, Found] = {}
        new = []
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
        """The same episodes with their missing chunks."""
        commands: list[tuple[str, ...]] = []
        for id, episode in episodes.items():
            tag = self._tag_of(id)
            commands.append(("MGET", *keys.chunks(tag, id, episode.record.token, missing[id])))
            # Chunks go with their record: if it is still here after them, what is missing is damage.
            commands.append(("HEXISTS", keys.episodes(tag), id))
        replies = self._client.pipelined("reading chunks of episodes", commands)
        found: dict[str, Found] = {}
        for (id, episode), chunks, there in zip(episodes.items(), replies[::2], replies[1::2], strict=True):
            try:
                found[id] = episode
                for number, chunk in zip(missing[id], chunks, strict=True):
                    if chunk is None:
                        raise CodecError(f"chunk {number} is missing")
                    episode.fill(number, decode_chunk(chunk))
            except UnknownFormat:
                raise
            except CodecError as error:
                found[id] = error if there else UnknownEpisode(id)
        return found


def _groups(
    episodes: Mapping[str, PartialEpisode], missing: Mapping[str, Sequence[int]]
) -> Iterator[list[str]]:
    """Ids of episodes with missing chunks, in groups to be read in one round trip each."""
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
