import numpy as np

from replay.cache import EpisodeCache
from replay.episode import Episode, EpisodeMeta


def episode(id: str, rows: int) -> Episode:
    return Episode(EpisodeMeta(id, "walk", 0, "demo"), "success", {"action": np.zeros((rows, 1), np.float32)})


def test_what_was_not_used_for_longest_gives_way() -> None:
    cache = EpisodeCache(max_bytes=3 * 4)
    for id in "abc":
        cache.put(episode(id, 1))
    assert cache.get("a")
    cache.put(episode("d", 2))
    assert [id for id in "abcd" if cache.get(id)] == ["a", "d"]


def test_an_episode_larger_than_the_cache_is_not_kept() -> None:
    cache = EpisodeCache(max_bytes=4)
    cache.put(episode("a", 2))
    assert cache.get("a") is None
    cache.put(episode("b", 1))
    assert cache.get("b")
