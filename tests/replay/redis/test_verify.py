"""Tests that verification finds, reports and repairs damage, and leaves undamaged data alone."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from redis import Redis

from longview.replay.codec import decode_chunk, encode_chunk, encode_record
from longview.replay.errors import Quarantined, UnknownFormat
from longview.replay.redis import keys
from longview.replay.redis.index import index_entry
from longview.replay.redis.quarantine import chunk_keys
from longview.replay.redis.verify import Finding, Verdict
from longview.replay.store import EpisodeStore

Connect = Callable[..., EpisodeStore]
Spoil = Callable[[str], None]

on_both = pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)


@pytest.fixture
def store(connect: Connect, write: Any) -> EpisodeStore:
    store = connect()
    for number in range(8):
        write(store, number, source="demo" if number % 2 else "rollout")
    return store


def record_of(store: EpisodeStore, id: str) -> Any:
    (record,) = (record for record in store.records() if record.meta.id == id)
    return record


def chunks_of(store: EpisodeStore, id: str) -> list[str]:
    return chunk_keys(store._namespace.tag_of(id), record_of(store, id))


def flip(redis: Redis, key: str, place: int = -1) -> None:
    """Flip a bit of a stored value."""
    stored: Any = bytearray(redis.get(key) or b"")
    stored[place] ^= 1
    redis.set(key, bytes(stored))


def pack_anew(redis: Redis, key: str) -> None:
    """Store the same chunk in other bytes."""
    chunk: Any = redis.get(key)
    redis.set(key, encode_chunk(decode_chunk(chunk), compression=0))


DEMO, ROLLOUT = "demo.walk.000000003", "rollout.walk.000000004"


def test_a_redis_that_may_evict_by_now_is_found(store: EpisodeStore, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        (found,) = store.verify(repair=True).findings
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert (found.kind, found.repaired) == ("server", False)
    assert "may evict episodes by itself, because its maxmemory-policy is allkeys-lru" in found.why
    assert store.verify().sound


@on_both
def test_nothing_is_wrong(store: EpisodeStore) -> None:
    told: list[tuple[int, int]] = []
    verdict = store.verify(repair=True, progress=lambda done, total: told.append((done, total)))
    assert (verdict.episodes, verdict.steps, verdict.sound) == (8, 80, True)
    assert verdict.bytes == store.stats().total.bytes
    assert verdict.findings == []
    assert told[-1] == (8, 8)


# Episodes


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda redis, chunks: flip(redis, chunks[1]), "chunk is damaged: its checksum does not match"),
        (lambda redis, chunks: flip(redis, chunks[1], 3), "chunk is damaged: its checksum does not match"),
        (lambda redis, chunks: redis.delete(chunks[1]), "chunks 1 of 3 are missing"),
        (lambda redis, chunks: redis.delete(*chunks), "chunks 0, 1, 2 of 3 are missing"),
        (lambda redis, chunks: redis.set(chunks[2], redis.get(chunks[1])), r"chunks hold \[4, 4, 4\] steps"),
        (lambda redis, chunks: pack_anew(redis, chunks[1]), r"chunks have \d+ bytes, not \d+"),
        (lambda redis, chunks: redis.set(chunks[0], b""), "0 bytes are too few for a chunk"),
    ],
)
def test_a_reader_moves_a_damaged_episode_to_the_quarantine(
    store: EpisodeStore,
    connect: Connect,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    why: str,
) -> None:
    other, chunks = connect(), chunks_of(store, ROLLOUT)
    assert len(other.ids()) == 8
    damage(redis, chunks)
    with pytest.raises(Quarantined, match=rf"episode {ROLLOUT}: .*{why}"):
        store.read(ROLLOUT)
    assert [record.getMessage() for record in caplog.records if ROLLOUT in record.getMessage()]
    with pytest.raises(Quarantined, match=rf"episode {ROLLOUT} is damaged and in quarantine: .*{why}"):
        other.read(ROLLOUT)
    for reader in (store, other):
        assert ROLLOUT not in reader
        assert len(reader.ids()) == 7
        assert reader.read(DEMO).length == 10
    stats = store.stats()
    assert (stats.quarantined, stats.total.episodes, stats.total.steps) == (1, 7, 70)
    assert stats.committed[("rollout", "success")].episodes == 4, "it was committed once"
    verdict = store.verify()
    assert (verdict.episodes, verdict.sound) == (7, True)
    assert list(verdict.quarantined) == [ROLLOUT]


@on_both
def test_sampling_goes_on_without_a_damaged_episode(store: EpisodeStore, redis: Redis) -> None:
    flip(redis, chunks_of(store, ROLLOUT)[1])
    segments = store.sample({"rollout/success": 1.0}, 300, 9, 9, np.random.default_rng(0))
    assert len(segments) == 300
    assert {segment.meta.id for segment in segments} == {f"rollout.walk.{number:09d}" for number in (0, 2, 6)}
    assert store.stats().quarantined == 1
    assert store.verify().findings == []


def test_another_version_is_not_taken_for_damage(store: EpisodeStore, redis: Redis) -> None:
    key = chunks_of(store, DEMO)[0]
    chunk: Any = redis.get(key)
    redis.set(key, chunk[:3] + b"\7" + bytes(12) + chunk[16:])
    with pytest.raises(UnknownFormat):
        store.read(DEMO)
    verdict = store.verify(repair=True)
    assert [(found.kind, found.what, found.repaired) for found in verdict.findings] == [
        ("episode", DEMO, False)
    ]
    assert not verdict.sound
    assert DEMO in store


@on_both
def test_the_id_of_a_quarantined_episode_may_be_used_again(
    store: EpisodeStore, connect: Connect, write: Any, redis: Redis
) -> None:
    other = connect()
    # Once the second one is in the quarantine, the chunks of the first belong to no episode and must expire.
    for attempt, kinds in (1, ["episode"]), (2, ["episode", "expiry"]):
        flip(redis, chunks_of(store, ROLLOUT)[0])
        assert [found.kind for found in store.verify(repair=True).findings] == kinds
        assert other.missing([DEMO, ROLLOUT]) == [ROLLOUT]
        write(store, 4, first=100 * attempt)
        assert other.read(ROLLOUT).arrays["reward"][0] == 100 * attempt
    assert len(other.ids()) == 8
    assert store.verify().findings == []


def test_a_reader_that_may_not_write_reads_on(
    store: EpisodeStore, connect: Connect, redis: Redis, url: str
) -> None:
    flip(redis, chunks_of(store, DEMO)[0])
    redis.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection", "+info")
    redis.execute_command("ACL", "SETUSER", "reader", "+eval", "+evalsha", "+hsetnx")
    reader = connect(url.replace("unix://", "unix://reader:pw@"))
    for _ in range(2):
        with pytest.raises(Quarantined, match=f"{DEMO}: chunk is damaged"):
            reader.read(DEMO)
    assert reader.read(ROLLOUT).length == 10
    assert DEMO in store


# Everything else


Damage = Callable[[EpisodeStore, Redis], Any]


def lose_entry(store: EpisodeStore, redis: Redis) -> None:
    redis.zrem(keys.index(store._namespace.tag_of(DEMO), "demo"), index_entry(record_of(store, DEMO)))


def add_entry(store: EpisodeStore, redis: Redis) -> None:
    redis.zadd(keys.index(store._namespace.tag_of("nobody"), "correction"), {"nobody:10:0:success:walk": 7})


def change_entry(store: EpisodeStore, redis: Redis) -> None:
    lose_entry(store, redis)
    redis.zadd(keys.index(store._namespace.tag_of(DEMO), "demo"), {f"{DEMO}:999:0:success:walk": 7})


def change_totals(store: EpisodeStore, redis: Redis) -> None:
    redis.hincrby(keys.totals(store._namespace.tag_of(DEMO)), "live:demo:steps", 5)


def leave_chunks(store: EpisodeStore, redis: Redis) -> None:
    (key,) = keys.chunks(store._namespace.tag_of("nobody"), "nobody", "0123456789abcdef", [0])
    redis.set(key, b"chunk")


def miscount(store: EpisodeStore, redis: Redis) -> None:
    record = replace(record_of(store, DEMO), learnable=9)
    lose_entry(store, redis)
    redis.hset(keys.episodes(store._namespace.tag_of(DEMO)), DEMO, encode_record(record))
    redis.zadd(keys.index(store._namespace.tag_of(DEMO), "demo"), {index_entry(record): 7})
    redis.hincrby(keys.totals(store._namespace.tag_of(DEMO)), "live:demo:learnable", -1)


def let_expire(store: EpisodeStore, redis: Redis) -> None:
    redis.expire(chunks_of(store, DEMO)[1], 1000)


def spoil_chunk(store: EpisodeStore, redis: Redis) -> None:
    flip(redis, chunks_of(store, DEMO)[0])


def spoil_record(store: EpisodeStore, redis: Redis) -> None:
    redis.hset(keys.episodes(store._namespace.tag_of(DEMO)), DEMO, b"\xc1 nonsense")


def swap_record(store: EpisodeStore, redis: Redis) -> None:
    packed: Any = redis.hget(keys.episodes(store._namespace.tag_of(ROLLOUT)), ROLLOUT)
    redis.hset(keys.episodes(store._namespace.tag_of(DEMO)), DEMO, packed)


def break_contract(store: EpisodeStore, redis: Redis) -> None:
    """Replace the task's spec, so that its episodes no longer fit."""
    packed: Any = redis.hget(keys.tasks(store._namespace.name), "walk")
    plain = msgpack.unpackb(packed)
    plain["action"]["shape"] = [4]
    redis.hset(keys.tasks(store._namespace.name), "walk", msgpack.packb(plain))


@on_both
@pytest.mark.parametrize(
    ("damage", "kind", "what", "why", "left"),
    [
        (lose_entry, "index", DEMO, "not listed", 8),
        (add_entry, "index", "nobody", "listed under correction as nobody:10:0:success:walk", 8),
        (change_entry, "index", DEMO, f"not listed, listed under demo as {DEMO}:999", 8),
        (change_totals, "totals", "live:demo:steps", "says ", 8),
        (leave_chunks, "expiry", "nobody:0123456789abcdef", "chunks of no episode", 8),
        (let_expire, "expiry", DEMO, "would expire in ", 8),
        (spoil_chunk, "episode", DEMO, "chunk is damaged", 7),
        (spoil_record, "episode", DEMO, "record of an episode is malformed", 7),
        (miscount, "episode", DEMO, "10 steps are learnable, not 9", 7),
        (swap_record, "episode", DEMO, f"record is of {ROLLOUT}", 7),
    ],
)
def test_found_told_and_repaired(
    store: EpisodeStore,
    connect: Connect,
    redis: Redis,
    damage: Damage,
    kind: str,
    what: str,
    why: str,
    left: int,
) -> None:
    damage(store, redis)

    def matching(verdict: Verdict) -> list[Finding]:
        return [f for f in verdict.findings if f.kind == kind and what in f.what and why in f.why]

    seen = store.verify()
    assert not seen.sound
    assert len(matching(seen)) == 1
    assert store.verify().findings == seen.findings, "looking changes nothing"
    repaired = store.verify(repair=True)
    assert repaired.sound
    assert len(matching(repaired)) == 1
    again = store.verify()
    assert (again.findings, again.episodes, len(again.quarantined)) == ([], left, 8 - left)
    fresh = connect()
    assert len(fresh.ids()) == fresh.stats().total.episodes == left
    assert sum(fresh.read(id).length for id in fresh.ids()) == fresh.stats().total.steps == 10 * left


def test_what_only_a_person_can_decide_is_told(store: EpisodeStore, redis: Redis) -> None:
    redis.hdel(keys.tasks(store._namespace.name), "walk")
    redis.hset(keys.tasks(store._namespace.name), "run", b"nonsense")
    verdict = store.verify(repair=True)
    assert {(found.kind, found.what, found.repaired) for found in verdict.findings} == {
        ("task", "walk", False),
        ("task", "run", False),
    }
    assert verdict.episodes == len(store.ids()) == 8


def test_an_episode_that_breaks_its_contract_is_damaged(
    store: EpisodeStore, connect: Connect, redis: Redis
) -> None:
    break_contract(store, redis)
    verdict = store.verify()
    assert len(verdict.findings) == 8
    assert all(r"action is float32[10, 3], expected float32[10, 4]" in f.why for f in verdict.findings)


@on_both
def test_the_quarantine_can_be_deleted(store: EpisodeStore, redis: Redis, namespace: str) -> None:
    spoil_chunk(store, redis)
    store.verify(repair=True)
    assert store.stats().quarantined == 1
    assert len(list(redis.scan_iter(f"{{{namespace}:*:chunks:*", count=10_000))) == 8 * 3, "evidence stays"
    verdict = store.verify(drop=True)
    assert (verdict.sound, verdict.quarantined, store.stats().quarantined) == (True, {}, 0)
    assert len(list(redis.scan_iter(f"{{{namespace}:*:chunks:*", count=10_000))) == 7 * 3


def test_a_damaged_shard_does_not_stop_its_writers(
    store: EpisodeStore, redis: Redis, connect: Connect
) -> None:
    """Eviction meets an entry without an episode, a damaged record and wrong totals."""
    crowded = connect(byte_budget=4 * store.stats().total.bytes)
    for tag in crowded._namespace.tags:
        redis.zadd(keys.index(tag, "rollout"), {"nobody:10:0:success:walk": 1})
    redis.hset(keys.episodes(store._namespace.tag_of(ROLLOUT)), ROLLOUT, b"\xc1 nonsense")
    written = fill(crowded, 200)
    assert crowded.verify(repair=True).sound
    assert written == 200
    assert crowded.verify().findings == []


def fill(store: EpisodeStore, count: int) -> int:
    written = 0
    source = store.read(DEMO)
    for number in range(count):
        meta = source.meta.__class__(f"rollout.walk.{1000 + number:09d}", "walk", number, "rollout")
        written += store.add(source.__class__(meta, "success", source.arrays))
    return written


def test_a_store_in_use_is_not_accused(connect: Connect, write: Any, store: EpisodeStore) -> None:
    busy = connect(byte_budget=2 * store.stats().total.bytes)
    done = threading.Event()

    def work() -> None:
        number = 100
        while not done.is_set():
            write(busy, number)
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        verdicts = [store.verify(repair=number % 2 == 1) for number in range(20)]
    finally:
        done.set()
        thread.join()
    assert [found for verdict in verdicts for found in verdict.findings] == []
    assert store.stats().evicted["rollout"].episodes > 0
    assert store.verify().findings == []
