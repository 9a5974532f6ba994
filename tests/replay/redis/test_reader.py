import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from redis import Redis

from longview.replay.cache import PartialEpisode
from longview.replay.codec import open_chunk
from longview.replay.errors import CodecError, UnknownEpisode
from longview.replay.redis import keys, reader
from longview.replay.store import EpisodeStore

Connect = Callable[..., EpisodeStore]


def rows(found: Any, span: range) -> list[float]:
    assert isinstance(found, PartialEpisode)
    rewards: list[float] = found.arrays(span)["reward"].tolist()
    return rewards


def chunk_key(redis: Redis, namespace: str, id: str, number: int) -> bytes:
    (key,) = redis.scan_iter(f"{{{namespace}:*:chunks:{id}:*:{number}", count=10_000)
    assert isinstance(key, bytes)
    return key


def commands(redis: Redis, *names: str) -> list[int]:
    """Return how often each command was called."""
    stats: dict[str, dict[str, int]] = redis.info("commandstats")
    return [stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names]


def test_only_chunks_that_are_needed_are_read(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    id = write(store := connect(), 1, length=100)
    others = [number for number in range(25) if number not in (5, 6)]
    redis.delete(*(chunk_key(redis, namespace, id, number) for number in others))
    span = range(21, 28)
    found = store._reader.fetch([(id, span)])[id]
    assert rows(found, span) == list(span)
    assert found is store._reader.fetch([(id, range(20, 21))])[id], "what was read is kept"
    damaged = store._reader.fetch([(id, range(19, 21))])[id]
    assert isinstance(damaged, CodecError)
    assert str(damaged) == "chunk 4 is missing"


def test_what_was_read_is_not_read_again(connect: Connect, write: Any, redis: Redis) -> None:
    ids = [write(store := connect(), number, length=20) for number in range(6)]
    wanted = [(id, range(4 * number % 16, 4 * number % 16 + 6)) for number, id in enumerate([*ids, *ids])]
    before = commands(redis, "hget", "mget")
    for _ in range(3):
        found = store._reader.fetch(wanted)
        for id, span in wanted:
            assert rows(found[id], span) == list(span)
    after = commands(redis, "hget", "mget")
    assert [b - a for a, b in zip(before, after, strict=True)] == [6, 6]


@pytest.mark.parametrize("at_once", [1, 3000])
def test_many_bytes_are_read_in_groups(
    connect: Connect, write: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FETCHED_AT_ONCE", at_once)
    store = connect(cache_bytes=0, compression=0)
    ids = [write(store, number, length=20, first=100 * number) for number in range(8)]
    found = store._reader.fetch([(id, range(2, 19)) for id in ids])
    for number, id in enumerate(ids):
        assert rows(found[id], range(2, 19)) == list(range(100 * number + 2, 100 * number + 19))


def test_what_is_not_there_is_told_from_what_is_damaged(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    whole, flipped, lost, gone = (write(store := connect(shards=1), number) for number in range(4))
    key = chunk_key(redis, namespace, flipped, 1)
    chunk = redis.get(key)
    assert isinstance(chunk, bytes)
    redis.set(key, chunk[:-1] + bytes([chunk[-1] ^ 1]))
    redis.delete(chunk_key(redis, namespace, lost, 1))
    redis.hdel(keys.episodes(keys.tag(namespace, 0)), gone)
    redis.hset(keys.episodes(keys.tag(namespace, 0)), "torn", b"\x82\xa4meta")
    found = store._reader.fetch([(id, range(3, 6)) for id in (whole, flipped, lost, gone, "torn")])
    assert rows(found[whole], range(3, 6)) == [3, 4, 5]
    assert [type(found[id]) for id in (flipped, lost, gone, "torn")] == [
        CodecError, CodecError, UnknownEpisode, CodecError,
    ]  # fmt: skip
    assert "checksum does not match" in str(found[flipped])
    assert "malformed" in str(found["torn"])


def test_a_large_episode_does_not_take_its_size_in_memory(connect: Connect, write: Any) -> None:
    id = write(store := connect(cache_bytes=40 * 76), 1, length=200)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 190, 100).tolist():
        span = range(start, start + 9)
        assert rows(store._reader.fetch([(id, span)])[id], span) == list(span)
        assert store._reader._cache._bytes <= 40 * 76


def test_threads_decode_at_the_same_time(
    connect: Connect, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk is decoded only once two threads are about to decode one."""
    both = threading.Barrier(2, timeout=30)

    def open_together(*given: Any) -> Any:
        both.wait()
        return open_chunk(*given)

    write(store := connect(cache_bytes=0), 1, length=4)
    monkeypatch.setattr(reader, "open_chunk", open_together)
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda seed: sampled(store, seed, count=1), range(2)))
    monkeypatch.undo()
    assert drawn == [sampled(store, seed, count=1) for seed in range(2)]


def test_threads_that_share_a_cache_draw_what_each_would_alone(connect: Connect, write: Any) -> None:
    store, alone = connect(cache_bytes=40 * 76), connect()
    for number in range(6):
        write(store, number, length=50, first=100 * number)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: sampled(store, seed, count=8), range(40)))
    assert drawn == [sampled(alone, seed, count=8) for seed in range(40)]
    assert store._reader._cache._bytes <= 40 * 76


def sampled(store: EpisodeStore, seed: int, count: int) -> list[list[float]]:
    """Return the rewards of drawn segments, by which the test store's rows are told apart."""
    segments = store.sample({"rollout/success": 1}, count, 6, 6, np.random.default_rng(seed))
    return [segment.arrays["reward"].tolist() for segment in segments]
