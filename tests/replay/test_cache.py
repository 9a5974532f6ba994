import numpy as np
import pytest

from longview.replay.cache import EpisodeCache, PartialEpisode
from longview.replay.codec import Record
from longview.replay.episode import Array, EpisodeMeta
from longview.replay.errors import CodecError


def partial(id: str = "a", length: int = 10) -> PartialEpisode:
    chunks = -(-length // 4)
    return PartialEpisode(
        Record(EpisodeMeta(id, "walk", 0, "demo"), "success", length, 0, chunks, 99, "ab", 4)
    )


def chunk(start: int, rows: int) -> dict[str, Array]:
    return {"action": np.arange(start, start + rows, dtype=np.float32)[:, None]}


def filled(id: str, length: int) -> PartialEpisode:
    episode = partial(id, length)
    for number in episode.missing(range(length)):
        episode.fill(number, chunk(4 * number, min(4, length - 4 * number)))
    return episode


@pytest.mark.parametrize(
    ("rows", "missing"),
    [(range(10), [0, 2]), (range(4, 8), []), (range(7, 9), [2]), (range(3, 4), [0]), (range(3, 5), [0])],
)
def test_what_is_missing_for_some_rows(rows: range, missing: list[int]) -> None:
    episode = partial()
    episode.fill(1, chunk(4, 4))
    assert episode.missing(rows) == missing


def test_rows_come_from_their_chunks_and_cannot_be_written() -> None:
    episode = partial()
    episode.fill(2, chunk(8, 2))
    episode.fill(1, chunk(4, 4))
    assert episode.bytes == 6 * 4
    rows = episode.arrays(range(5, 10))["action"]
    assert rows[:, 0].tolist() == [5, 6, 7, 8, 9]
    assert not rows.flags.writeable


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": np.zeros((3, 1), np.float32)},
        {"action": np.zeros((4, 2), np.float32)},
        {"action": np.zeros((4, 1), np.uint8)},
        {"reward": np.zeros((4, 1), np.float32)},
    ],
)
def test_a_chunk_that_does_not_belong_there_is_refused(wrong: dict[str, Array]) -> None:
    episode = partial()
    episode.fill(0, chunk(0, 4))
    with pytest.raises(CodecError, match="chunk 1 holds"):
        episode.fill(1, wrong)


def test_a_length_that_is_forged_costs_no_memory() -> None:
    forged = Record(EpisodeMeta("a", "walk", 0, "demo"), "success", 10**15, 0, 1, 99, "ab", 10**15)
    with pytest.raises(CodecError, match="chunk 0 holds"):
        PartialEpisode(forged).fill(0, chunk(0, 4))


def test_what_was_not_used_for_longest_gives_way() -> None:
    cache = EpisodeCache(max_bytes=3 * 4)
    for id in "abc":
        cache.put(filled(id, 1))
    cache.put(cache.get("a") or partial())
    cache.put(filled("d", 2))
    assert [id for id in "abcd" if cache.get(id)] == ["a", "d"]


def test_an_episode_that_grows_counts_anew() -> None:
    cache = EpisodeCache(max_bytes=6 * 4)
    cache.put(filled("a", 2))
    growing = partial("b")
    growing.fill(0, chunk(0, 4))
    cache.put(growing)
    assert cache.get("a")
    growing.fill(2, chunk(8, 2))
    cache.put(growing)
    assert [id for id in "ab" if cache.get(id)] == ["b"]
    cache.remove("b")
    cache.put(filled("c", 6))
    assert cache.get("c")


def test_an_episode_larger_than_the_cache_is_not_kept() -> None:
    cache = EpisodeCache(max_bytes=4)
    cache.put(filled("a", 2))
    assert cache.get("a") is None
    cache.put(filled("b", 1))
    assert cache.get("b")
