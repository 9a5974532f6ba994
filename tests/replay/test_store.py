import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from longview.actors.tasks import counting
from longview.replay.config import StoreConfig
from longview.replay.episode import (
    OUTCOMES,
    SOURCES,
    ArraySpec,
    EpisodeMeta,
    Selection,
    TaskSpec,
    episode_id,
    validate_episode,
)
from longview.replay.errors import (
    EpisodeError,
    MissingChunks,
    Quarantined,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnknownEpisode,
)
from longview.replay.owner import Owner
from longview.replay.redis import keys
from longview.replay.stats import Count
from longview.replay.store import EpisodeStore, StoreAddress
from tests.replay.redis.proxy import Proxy

Connect = Callable[..., EpisodeStore]
StartRedis = Callable[..., "subprocess.Popen[bytes]"]

everywhere = pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)
"""Runs a test on one Redis and on a Redis Cluster."""


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def chunk_keys(redis: Redis, namespace: str) -> list[bytes]:
    return list(redis.scan_iter(f"{{{namespace}:*:chunks:*", count=10_000))


def test_the_examples_of_the_guide_run(url: str) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(example.replace("redis://localhost:6379", url), names)
    names["store"].close()
    assert {segment.by for segment in names["segments"]} == {"recency"}


# Tasks


@everywhere
def test_tasks(connect: Connect, spec: TaskSpec) -> None:
    store = connect()
    store.register(replace(spec, name="another"))
    store.register(spec)
    assert connect().tasks() == ["another", "walk"]
    assert connect().spec("walk") == spec


def test_another_spec_of_the_same_name_is_refused(connect: Connect, spec: TaskSpec) -> None:
    changed = replace(spec, observation={**spec.observation, "position": ArraySpec((3,))})
    for store in (connect(), connect()):
        with pytest.raises(StoreError, match=r"walk is .*observation.position.shape = \(2,\), not \(3,\)"):
            store.register(changed)
        with pytest.raises(StoreError, match=r"observation.camera = .*, not absent"):
            store.register(replace(spec, observation={"position": ArraySpec((2,))}))


def test_an_unknown_task_is_named(connect: Connect) -> None:
    with pytest.raises(StoreError, match="task run is not registered in this store; registered: walk"):
        connect().writer(EpisodeMeta("x", "run", 0, "demo"))


@everywhere
def test_a_task_is_forgotten_with_its_episodes_and_may_come_back_otherwise(
    connect: Connect, spec: TaskSpec, write: Any
) -> None:
    store, reader = connect(), connect()
    ids = [write(store, number) for number in range(5)]
    assert reader.ids() == ids
    with pytest.raises(StoreError, match="the store holds 5 episodes of task walk"):
        store.forget("walk")
    assert store.forget("walk", with_episodes=True) == 5
    assert (reader.ids(), len(reader), store.tasks()) == ([], 0, [])
    with pytest.raises(StoreError, match="task walk is not registered"):
        store.forget("walk")
    total = reader.stats().total
    assert (total.episodes, total.steps, total.learnable, total.bytes) == (0, 0, 0, 0)
    # The same ids may be used again, unlike those of evicted episodes.
    changed = replace(spec, max_steps=spec.max_steps + 1)
    store.register(changed)
    store.forget("walk")
    store.register(spec)
    assert [write(store, number) for number in range(5)] == ids == reader.ids()
    assert not store.verify().findings


# Writing and reading


@everywhere
@pytest.mark.parametrize("length", [1, 4, 5, 23])
def test_round_trip(connect: Connect, spec: TaskSpec, begin: Any, step: Any, length: int) -> None:
    store = connect()
    writer = begin(store, 1)
    for number in range(length):
        writer.append(step(number))
        assert store.ids() == []
    assert writer.commit("wrong")
    episode = connect().read("rollout.walk.000000001")
    validate_episode(episode, spec)
    assert (episode.outcome, episode.length) == ("wrong", length)
    assert episode.meta == EpisodeMeta("rollout.walk.000000001", "walk", 1, "rollout", (3, 4), 8)
    assert episode.arrays["reward"].tolist() == list(range(length))
    assert episode.arrays["observation.camera"][:, 3, 3, 2].tolist() == list(range(length))
    assert not episode.arrays["action"].flags.writeable


@pytest.mark.parametrize(("source", "controller"), [("demo", 1), ("import", 0), ("rollout", 0), ("human", 2)])
def test_who_is_in_control_follows_from_the_source(
    connect: Connect, write: Any, source: str, controller: int
) -> None:
    # The policy versions say that a policy acted in the imported episode.
    store = connect()
    episode = store.read(write(store, 1, source=source))
    assert episode.arrays["controller"].tolist() == [controller] * 10
    assert store.stats().total.learnable == (10 if controller else 0)


def test_an_imported_demonstration_is_an_experts(connect: Connect, step: Any) -> None:
    store = connect()
    writer = store.writer(EpisodeMeta("a", "walk", 0, "import"))
    writer.append(step(0))
    writer.commit("success")
    assert store.read("a").arrays["controller"].tolist() == [1]


def test_a_correction_says_who_is_in_control(connect: Connect, begin: Any, step: Any) -> None:
    store = connect()
    writer = begin(store, 1, "correction")
    with pytest.raises(EpisodeError, match=r"missing arrays \['controller'\]"):
        writer.append(step(0))
    for number, controller in enumerate((0, 0, 1, 2, 0, 1)):
        writer.append(step(number) | {"controller": np.uint8(controller)})
    writer.commit("success")
    (id,) = store.ids("correction")
    assert store.read(id).arrays["controller"].tolist() == [0, 0, 1, 2, 0, 1]
    assert [record.learnable for record in store.records()] == [3]
    labelled = begin(store, 2, "correction")
    labelled.append(step(0) | {"controller": np.uint8(0), "expert_action": np.zeros(3, np.float32)})
    labelled.commit("success")
    assert [record.learnable for record in store.records()] == [3, 1]


@everywhere
def test_what_is_there(connect: Connect, write: Any) -> None:
    store = connect()
    ids = [write(store, number, source=source) for source in SOURCES for number in (3, 1, 2)]
    assert store.ids() == sorted(ids)
    assert store.ids("correction") == [episode_id("correction", "walk", number) for number in (1, 2, 3)]
    assert len(store) == 15
    assert ids[0] in store
    assert "rollout.walk.000000009" not in store
    with pytest.raises(UnknownEpisode, match=r"rollout\.walk\.000000009"):
        store.read("rollout.walk.000000009")


def test_an_address_leads_to_its_store_and_shows_no_password(
    connect: Connect, write: Any, url: str, namespace: str
) -> None:
    id = write(connect(), 1)
    address = pickle.loads(pickle.dumps(StoreAddress(url, namespace)))
    with closing(address.connect(StoreConfig())) as store:
        assert store.ids() == [id]
    shown = repr(StoreAddress("redis://me:hunter2@host:6379/0", "lab"))
    assert shown == "StoreAddress('redis://***@host:6379/0', 'lab')"


def test_namespaces_are_apart(connect: Connect, write: Any, url: str, namespace: str) -> None:
    write(store := connect(), 1)
    assert EpisodeStore.connect(url, namespace + "0", store._config).ids() == []


@everywhere
def test_a_namespace_belongs_to_one_run(connect: Connect, write: Any, namespace: str) -> None:
    store, owner = connect(), Owner("f00", "walk", 3)
    write(store, 1)  # as `store import` does, before any run
    store.claim(owner)
    connect().claim(owner)
    with pytest.raises(
        StoreError,
        match=f"namespace {namespace} in Redis at .* belongs to another run, of task walk and seed 3",
    ):
        connect().claim(Owner("ba5", "walk", 3))
    with pytest.raises(StoreError, match="belongs to this run with seed 3, not 4"):
        connect().claim(replace(owner, seed=4))
    with pytest.raises(StoreError, match="belongs to this run with task walk, not run"):
        connect().claim(replace(owner, task="run"))


def test_a_damaged_owner_is_said(connect: Connect, redis: Redis, namespace: str) -> None:
    store = connect()
    redis.hset(keys.layout(namespace), "owner", b"{}")
    with pytest.raises(StoreError, match="its owner is damaged"):
        store.claim(Owner("f00", "walk", 3))


@everywhere
def test_names_may_hold_what_people_type(
    url: str, namespace: str, spec: TaskSpec, write: Any, step: Any, connect: Connect
) -> None:
    config = StoreConfig(chunk_steps=4, refresh_seconds=0.0)
    store = EpisodeStore.connect(url, f"Küche {{{namespace}}}: 50 %", config)
    task = replace(spec, name="Räum auf: #2")
    store.register(task)
    for index in range(3):
        meta = EpisodeMeta(episode_id("demo", task.name, index), task.name, index, "demo")
        writer = store.writer(meta)
        writer.append(step(index))
        assert writer.commit("success")
    another = EpisodeStore.connect(url, f"Küche {{{namespace}}}: 50 %", config)
    assert another.tasks() == [task.name]
    assert [record.meta.task for record in another.records(task=task.name)] == [task.name] * 3
    drawn = another.sample({f"demo/success/{task.name}": 1}, 4, 0, 0, np.random.default_rng(0))
    assert {segment.meta.task for segment in drawn} == {task.name}
    assert another.verify().sound
    assert another.verify().episodes == 3
    for each in (store, another):
        each.close()
    assert connect().ids() == []


@everywhere
def test_clients_agree_on_the_number_of_shards(connect: Connect, write: Any) -> None:
    ids = [write(connect(shards=3), number) for number in range(9)]
    assert connect(shards=7).ids() == ids
    assert {len(store._namespace.tags) for store in (connect(shards=3), connect(shards=7))} == {3}


def test_a_step_that_does_not_fit_is_refused(connect: Connect, begin: Any, step: Any) -> None:
    writer = begin(connect(), 1)
    with pytest.raises(EpisodeError, match=r"float32\[2\], expected float32\[3\]"):
        writer.append(step(0) | {"action": np.zeros(2, np.float32)})


@everywhere
def test_totals_are_exact(connect: Connect, begin: Any, step: Any) -> None:
    store = connect()
    expected: dict[tuple[str, str], Count] = {}
    for number in range(24):
        source, outcome = SOURCES[number % 5], OUTCOMES[number // 5 % 4]
        writer = begin(store, number, source)
        for row in range(number + 1):
            writer.append(step(row) | {"controller": np.uint8(row % 3)})
        writer.commit(outcome)
        size = sum(map(len, stored_chunks(store, writer)))
        before = expected.get((source, outcome), Count())
        learnable = sum(row % 3 > 0 for row in range(number + 1))
        expected[source, outcome] = before + Count(1, number + 1, learnable, size)
    stats = connect().stats()
    assert stats.committed == expected
    assert stats.total == sum(expected.values(), Count())
    for source in SOURCES:
        counts = [count for (from_, _), count in expected.items() if from_ == source]
        assert stats.stored[source] == sum(counts, Count())


def stored_chunks(store: EpisodeStore, writer: Any) -> list[bytes]:
    record = writer._record
    names = keys.chunks(store._namespace.tag_of(record.meta.id), record.meta.id, record.token, range(9))
    return [chunk for chunk in store._namespace.client.redis.mget(names) if chunk is not None]


# Commit, exactly once


@everywhere
def test_the_first_of_two_writers_wins(
    connect: Connect, begin: Any, step: Any, redis: Redis, namespace: str
) -> None:
    one, other, late = (begin(connect(), 1) for _ in range(3))
    for number in range(9):
        one.append(step(number))
        other.append(step(100 + number))
        if number < 5:
            late.append(step(200 + number))
    assert other.commit("success")
    assert not one.commit("failure")
    for number in range(5, 9):
        late.append(step(200 + number))
    late.abort()
    until(lambda: len(chunk_keys(redis, namespace)) == 3)
    store = connect()
    assert store.read("rollout.walk.000000001").arrays["reward"].tolist() == list(range(100, 109))
    assert list(store.stats().committed) == [("rollout", "success")]
    assert [redis.ttl(left) for left in chunk_keys(redis, namespace)] == [-1] * 3


@everywhere
def test_many_writers_at_once(connect: Connect, step: Any, begin: Any, redis: Redis, namespace: str) -> None:
    store = connect()

    def work(worker: int) -> int:
        committed = 0
        for number in range(12):
            writer = begin(store, number)
            for row in range(6):
                writer.append(step(1000 * worker + row))
            committed += writer.commit("success")
        return committed

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(16))) == 12
    assert store.stats().committed[("rollout", "success")].episodes == 12
    assert len(chunk_keys(redis, namespace)) == 12 * 2
    for id in store.ids():
        rewards = store.read(id).arrays["reward"]
        assert (rewards - rewards[0]).tolist() == list(range(6))


@everywhere
def test_a_write_that_arrives_late_does_no_harm(
    connect: Connect, begin: Any, step: Any, redis: Redis, namespace: str
) -> None:
    store = connect()
    writer = begin(store, 1)
    for number in range(6):
        writer.append(step(number))
    writer.commit("success")
    first, second = sorted(chunk_keys(redis, namespace))
    chunk = redis.get(first)
    assert isinstance(chunk, bytes)
    late = replace(writer._record, chunks=0)
    store._namespace.client.pipeline([*store._sink.chunk(late, chunk), *store._sink.renew(writer._record)])
    assert redis.ttl(first) == redis.ttl(second) == -1
    assert store.read("rollout.walk.000000001").length == 6


def test_a_killed_writer_leaves_nothing(connect: Connect, redis: Redis, namespace: str, url: str) -> None:
    program = """if True:
        import sys, time
        import numpy as np
        from longview.replay.config import StoreConfig
        from longview.replay.episode import EpisodeMeta
        from longview.replay.store import EpisodeStore, StoreAddress

        config = StoreConfig(chunk_steps=4, orphan_seconds=2.0)
        store = EpisodeStore.connect(sys.argv[1], sys.argv[2], config)
        writer = store.writer(EpisodeMeta("killed", "walk", 0, "rollout"))
        arrays = store.spec("walk").arrays()
        for _ in range(10):
            writer.append({name: np.zeros(spec.shape, spec.dtype) for name, spec in arrays.items()})
        store.flush()
        print("ready", flush=True)
        time.sleep(60)
    """
    store = connect()
    with subprocess.Popen([sys.executable, "-c", program, url, namespace], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert len(chunk_keys(redis, namespace)) == 2
    assert store.ids() == []
    assert "killed" not in store
    until(lambda: not chunk_keys(redis, namespace))
    assert store.stats().committed == {}


@everywhere
def test_a_commit_after_its_chunks_expired_says_so(
    connect: Connect, begin: Any, step: Any, redis: Redis
) -> None:
    store = connect(orphan_seconds=0.05, queue_bytes=1)
    writer = begin(store, 1)
    for number in range(10):
        writer.append(step(number))
    store.flush()
    until(lambda: not stored_chunks(store, writer))
    with pytest.raises(MissingChunks, match=r"Redis holds [01] of its 3 chunks; .*orphan_seconds \(0.05\)"):
        writer.commit("success")
    assert store.ids() == []


@everywhere
def test_chunks_that_redis_has_lost_are_sent_again(
    connect: Connect, begin: Any, step: Any, redis: Redis, namespace: str
) -> None:
    store = connect(orphan_seconds=1.0)
    writer = begin(store, 1)
    for number in range(10):
        writer.append(step(number))
    store.flush()
    redis.delete(min(chunk_keys(redis, namespace)))
    for number in range(10, 15):
        writer.append(step(number))
    assert writer.commit("success")
    assert store.read(store.ids()[0]).arrays["reward"].tolist() == list(range(15))
    assert [redis.ttl(key) for key in chunk_keys(redis, namespace)] == [-1] * 4
    assert store.verify().findings == []


@everywhere
def test_chunks_of_a_writer_that_goes_on_do_not_expire(connect: Connect, begin: Any, step: Any) -> None:
    store = connect(orphan_seconds=2.0, queue_bytes=1)
    writer = begin(store, 1)
    for number in range(15):
        writer.append(step(number))
        if number in (5, 10):
            time.sleep(1.2)
    assert writer.commit("success")
    assert store.read(store.ids()[0]).length == 15


def test_a_namespace_of_another_format_is_refused(connect: Connect, redis: Redis, namespace: str) -> None:
    redis.hset(keys.layout(namespace), "shards", 4)  # as in the first version, which had no format
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{namespace} has format 1, .* reads format 3: use another"):
            connect()
    assert redis.hgetall(keys.layout(namespace)) == {b"shards": b"4"}


# Byte budget


def sizes(store: EpisodeStore) -> int:
    return store.stats().total.bytes


@everywhere
def test_the_oldest_that_are_no_demonstrations_give_way(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    store = connect(shards=1)
    demos = [write(store, number, source="demo") for number in range(3)]
    write(store, 0)
    budget = sizes(store) + 2 * (sizes(store) // 4)
    small = connect(byte_budget=budget)
    for number in range(1, 9):
        write(small, number, source="correction" if number % 2 else "rollout")
        assert sizes(small) <= budget
    assert store.ids("demo") == demos
    assert [*store.ids("rollout"), *store.ids("correction")] == [
        episode_id(source, "walk", number)
        for source, number in [("rollout", 6), ("rollout", 8), ("correction", 7)]
    ]
    stats = store.stats()
    assert stats.total.episodes == len(store.ids()) == 6
    assert len(chunk_keys(redis, namespace)) == 6 * 3
    assert stats.total.bytes == sum(count.bytes for count in stats.stored.values())
    assert stats.committed[("rollout", "success")].episodes == 5
    assert stats.committed[("correction", "success")].episodes == 4


@everywhere
def test_an_evicted_episode_does_not_come_back(connect: Connect, write: Any, begin: Any, step: Any) -> None:
    write(store := connect(shards=1), 0)
    small = connect(byte_budget=sizes(store))
    write(small, 1)
    again = begin(small, 0)
    again.append(step(0))
    assert not again.commit("success")
    assert small.ids() == ["rollout.walk.000000001"]
    assert small.stats().committed[("rollout", "success")].episodes == 2


def test_full(connect: Connect, write: Any, begin: Any, step: Any) -> None:
    store = connect(shards=1)
    write(store, 0, source="import")
    write(store, 0)
    small = connect(byte_budget=sizes(store))
    writer = begin(small, 1)
    for number in range(50):
        writer.append(step(number))
    with pytest.raises(StoreFull, match=r"no room for episode rollout\.walk\.000000001 of \d+ bytes"):
        writer.commit("success")
    assert len(store.ids()) == 2, "an episode that cannot fit must not evict others"


def test_what_gives_way_is_the_readers_and_writers_own_choice(connect: Connect, write: Any) -> None:
    store = connect(shards=1)
    first = [write(store, 0, source=source) for source in SOURCES]
    budget = sizes(store)
    write(connect(byte_budget=budget, evict=("import", "demo")), 1)
    assert store.ids() == sorted([*first[1:], episode_id("rollout", "walk", 1)])
    write(connect(byte_budget=budget, evict=("import", "demo")), 2)
    assert store.ids("import") == []
    stats = store.stats()
    assert [stats.evicted[source].episodes for source in SOURCES] == [1, 1, 0, 0, 0]
    assert stats.evicted["demo"] == stats.committed["demo", "success"]
    for nothing in ((), ("import", "demo")):
        with pytest.raises(StoreFull, match=r"\d+ of them are never evicted"):
            write(connect(byte_budget=budget, evict=nothing), 3)


def test_the_budget_is_kept_where_redis_has_a_limit_of_its_own(
    connect: Connect, write: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    limit = 8 << 20
    start_redis("--port", "0", "--unixsocket", str(socket_path), "--maxmemory", str(limit))
    url = f"unix://{socket_path}"
    store = connect(url, shards=2, byte_budget=limit // 4, compression=0, chunk_steps=64)
    for number in range(300):
        write(store, number, length=500)
    stats = store.stats()
    assert stats.committed["rollout", "success"].bytes > 2 * limit // 3
    assert stats.evicted["rollout"].episodes == 300 - stats.total.episodes > 0
    assert stats.total.bytes <= limit // 4
    assert len(store.sample({"rollout/success": 1}, 50, 0, 0, np.random.default_rng(0))) == 50


def test_redis_at_its_own_limit_makes_writers_wait(
    connect: Connect, write: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    start_redis("--port", "0", "--unixsocket", str(socket_path))
    store = connect(f"unix://{socket_path}")
    ids = [write(store, number) for number in range(3)]
    with Redis(unix_socket_path=str(socket_path)) as redis, ThreadPoolExecutor(1) as pool:
        redis.config_set("maxmemory", 1)
        waiting = pool.submit(write, store, 3)
        assert len(store.sample({"rollout/success": 1}, 50, 0, 0, np.random.default_rng(0))) == 50
        time.sleep(0.3)
        assert not waiting.done()
        assert store.ids() == ids
        redis.config_set("maxmemory", 0)
        ids.append(waiting.result(20))
    assert store.ids() == ids
    assert store.read(ids[-1]).length == 10


# Sampling


@everywhere
def test_segments_of_counting_are_continuous(url: str, namespace: str, connect: Connect) -> None:
    store = connect(chunk_steps=8)
    store.register(counting.spec)
    for seed in range(20):
        env = counting.make()
        observation, _ = env.reset(seed=seed)
        expert = counting.expert(env, np.random.default_rng(0))
        writer = store.writer(EpisodeMeta(f"demo.counting.{seed}", "counting", seed, "demo"))
        ended = False
        while not ended:
            action, seen = expert(), observation
            observation, reward, ended, _, info = env.step(action)
            step = {
                "observation.count": seen["count"],
                "action": action,
                "reward": np.array(reward, np.float32),
            }
            writer.append(step)
        assert writer.commit(info["outcome"])
    segments = store.sample({"demo": 1}, 400, 16, 8, np.random.default_rng(0))
    assert len(segments) == 400
    for segment in segments:
        whole = store.read(segment.meta.id).arrays["observation.count"][:, 0]
        assert segment.episode_length == len(whole)
        assert segment.start == max(0, segment.now - 16)
        counts = segment.arrays["observation.count"][:, 0]
        assert counts.tolist() == whole[segment.start : segment.now + 9].tolist()
        assert (np.diff(counts) == 1).all()
        assert segment.arrays["action"][:, 0].tolist() == counts.tolist()
        assert segment.arrays["reward"].tolist() == [1.0] * len(counts)


def test_samples_follow_from_contents_and_generator(connect: Connect, write: Any) -> None:
    one = connect(shards=3)
    for number in (5, 2, 9):
        write(one, number, length=number)
    write(one, 1, source="demo")
    mix = {"demo": 1.0, "rollout/success": 3.0}
    first = one.sample(mix, 64, 2, 3, np.random.default_rng(3))
    again = connect(cache_bytes=0).sample(mix, 64, 2, 3, np.random.default_rng(3))
    assert [(s.meta, s.now, s.start, s.probability) for s in first] == [
        (s.meta, s.now, s.start, s.probability) for s in again
    ]
    assert all((a.arrays["reward"] == b.arrays["reward"]).all() for a, b in zip(first, again, strict=True))
    probability = {segment.meta.source: segment.probability for segment in first}
    assert probability == {"demo": pytest.approx(0.25 / 10), "rollout": pytest.approx(0.75 / 16)}


def test_an_invalid_episode_is_kept_but_never_drawn(connect: Connect, write: Any) -> None:
    store, mix = connect(shards=1), {"rollout/success": 1.0}
    ids = [write(store, number, outcome="invalid" if number in (0, 2) else "success") for number in range(4)]
    assert store.ids() == ids
    assert [store.read(id).outcome for id in ids] == ["invalid", "success", "invalid", "success"]
    segments = store.sample(mix, 200, 0, 0, np.random.default_rng(0))
    assert {(segment.meta.id, segment.now) for segment in segments} == {
        (ids[number], now) for number in (1, 3) for now in range(10)
    }
    assert {segment.probability for segment in segments} == {1 / 20}
    # It is evicted like any other episode.
    small = connect(byte_budget=sizes(store))
    write(small, 4)
    assert small.ids() == [*ids[1:], episode_id("rollout", "walk", 4)]


def test_an_episode_held_out_is_read_but_never_drawn(connect: Connect, write: Any) -> None:
    store, mix = connect(), {"rollout/success": 1.0}
    ids = [write(store, number) for number in range(3)]
    store.hold_out([ids[1], episode_id("rollout", "walk", 4)])
    ids += [write(store, number) for number in (3, 4)]  # episode 4 was held out before it existed
    segments = store.sample(mix, 300, 0, 0, np.random.default_rng(0))
    assert {segment.meta.id for segment in segments} == {ids[0], ids[2], ids[3]}
    assert {segment.probability for segment in segments} == {1 / 30}
    assert store.ids() == ids
    assert store.read(ids[1]).length == 10


def test_a_store_of_invalid_episodes_has_nothing_to_draw(connect: Connect, write: Any) -> None:
    write(store := connect(), 0, outcome="invalid")
    with pytest.raises(StoreError, match="no steps to learn from"):
        store.sample({"rollout/success": 1.0}, 1, 0, 0, np.random.default_rng(0))


def test_an_empty_store_says_so(connect: Connect) -> None:
    with pytest.raises(
        StoreError, match=r"no steps to learn from: mix is {'demo': 1}, .*; episodes stored are {'demo': 0"
    ):
        connect().sample({"demo": 1}, 1, 0, 0, np.random.default_rng(0))


def test_a_sampler_sees_new_episodes_at_its_next_refresh(connect: Connect, write: Any) -> None:
    writer, eager, lazy = connect(), connect(), connect(refresh_seconds=1000.0)
    drawn = {}
    for number in range(2):
        write(writer, number)
        for name, store in (("eager", eager), ("lazy", lazy)):
            segments = store.sample({"rollout/success": 1}, 100, 0, 0, np.random.default_rng(0))
            drawn[name] = {segment.meta.seed for segment in segments}
    assert drawn == {"eager": {0, 1}, "lazy": {0}}


@everywhere
@pytest.mark.parametrize("by", ["steps", "episodes", "recency", "priority"])
def test_segments_say_why_they_were_drawn(connect: Connect, write: Any, by: str) -> None:
    store = connect()
    for number in range(6):
        write(store, number, length=4 + number, outcome="success" if number % 2 else "failure")
        write(store, number, source="demo")
    selection = Selection({"rollout/success": 3, "demo": 1}, by, half_life=2)
    segments = store.sample(selection, 400, 1, 1, np.random.default_rng(0))
    reasons = {segment.meta.source: (segment.stratum, segment.by) for segment in segments}
    assert reasons == {"rollout": ("rollout/success", by), "demo": ("demo", by)}
    assert {s.meta.seed for s in segments if s.meta.source == "rollout"} == {1, 3, 5}
    chances = {(s.meta.id, s.now): s.probability for s in segments}
    total = sum(
        next(chance for (id, _), chance in chances.items() if id == drawn) * store.read(drawn).length
        for drawn in {id for id, _ in chances}
    )
    assert total == pytest.approx(1)


def test_only_episodes_of_a_task_and_outcome(connect: Connect, spec: TaskSpec, step: Any, write: Any) -> None:
    store = connect()
    store.register(replace(spec, name="run"))
    write(store, 0, source="demo")
    write(store, 1, source="demo", outcome="failure")
    writer = store.writer(EpisodeMeta("other", "run", 7, "demo"))
    writer.append(step(0))
    assert writer.commit("success")
    for selection, seeds in [
        (Selection({"demo": 1}, task="run"), {7}),
        (Selection({"demo": 1}, task="walk", outcomes=("success",)), {0}),
        (Selection({"*/failure": 1}), {1}),
        (Selection({"*/*/run": 1, "*/failure/walk": 1}), {1, 7}),
    ]:
        segments = store.sample(selection, 50, 0, 0, np.random.default_rng(0))
        assert {segment.meta.seed for segment in segments} == seeds
    with pytest.raises(StoreError, match=r"task is fly; episodes stored are .*'demo': 3"):
        store.sample(Selection({"demo": 1}, task="fly"), 1, 0, 0, np.random.default_rng(0))


@everywhere
def test_priorities_are_seen_by_all_samplers_and_leave_with_their_episode(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    store, other = connect(shards=1), connect()
    ids = [write(store, number) for number in range(4)]
    selection = Selection({"rollout/success": 1}, by="priority")

    def chances(store: EpisodeStore) -> dict[str, float]:
        segments = store.sample(selection, 300, 0, 0, np.random.default_rng(0))
        return {segment.meta.id: round(10 * segment.probability, 6) for segment in segments}

    assert chances(other) == dict.fromkeys(ids, 0.25)
    store.prioritize({ids[0]: 5.0, ids[1]: 0.0, ids[2]: 2.0, "nobody": 7.0})
    assert chances(store) == chances(other) == {ids[0]: 0.625, ids[2]: 0.25, ids[3]: 0.125}
    other.prioritize({ids[0]: 1.0})
    assert chances(store) == chances(connect()) == {ids[0]: 0.25, ids[2]: 0.5, ids[3]: 0.25}
    small = connect(byte_budget=sizes(store))
    for number in range(4, 7):
        write(small, number)
    tag = keys.tag(namespace, 0)
    assert redis.hgetall(keys.priorities(tag)) == {}
    assert redis.zcard(keys.prioritized(tag)) == 0
    assert set(chances(other).values()) == {0.25}


def test_a_priority_that_is_none_is_refused(connect: Connect) -> None:
    with pytest.raises(ValueError, match=r"finite and not negative, not {'b': -1.0}"):
        connect().prioritize({"a": 1.0, "b": -1.0})


def test_priorities_survive_a_restart(
    connect: Connect, write: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    options = ("--port", "0", "--unixsocket", str(socket_path), "--appendonly", "yes")
    server = start_redis(*options)
    store = connect(f"unix://{socket_path}")
    ids = [write(store, number) for number in range(3)]
    store.prioritize(dict.fromkeys(ids[:2], 0.0))
    server.terminate()
    server.wait()
    start_redis(*options)
    segments = connect(f"unix://{socket_path}").sample(
        Selection({"rollout/success": 1}, by="priority"), 50, 0, 0, np.random.default_rng(0)
    )
    assert {segment.meta.id for segment in segments} == {ids[2]}


def test_a_long_index_is_read_in_pages(connect: Connect, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.replay.redis.namespace.PAGE", 3)
    monkeypatch.setattr("longview.replay.redis.index.PAGE", 3)
    store, reader = connect(shards=2), connect()
    ids = [write(store, number, source=SOURCES[number % 3]) for number in range(30)]
    store.prioritize(dict.fromkeys(ids, 0.0) | {ids[7]: 1.0})
    assert reader.ids() == sorted(ids)
    segments = reader.sample(Selection({"*/success": 1}, by="priority"), 50, 0, 0, np.random.default_rng(0))
    assert {segment.meta.id for segment in segments} == {ids[7]}


def test_a_damaged_episode_is_quarantined_and_another_drawn(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    ids = [write(store := connect(), number, length=20) for number in range(3)]
    (key,) = redis.scan_iter(f"{{{namespace}:*:chunks:{ids[1]}:*:2", count=10_000)
    chunk = redis.get(key)
    assert isinstance(chunk, bytes)
    redis.set(key, chunk[:-1] + bytes([chunk[-1] ^ 1]))
    segments = store.sample({"rollout/success": 1}, 200, 3, 3, np.random.default_rng(0))
    assert len(segments) == 200
    assert {segment.meta.id for segment in segments[100:]} == {ids[0], ids[2]}
    assert store.ids() == connect().ids() == [ids[0], ids[2]]
    assert store.stats().quarantined == 1


@everywhere
def test_a_removal_does_not_break_a_sampler(connect: Connect, write: Any) -> None:
    store = connect(shards=1)
    for number in range(4):
        write(store, number)
    stale = connect(refresh_seconds=1000.0, cache_bytes=0)
    rng = np.random.default_rng(0)
    assert len(stale.sample({"rollout/success": 1}, 50, 1, 1, rng)) == 50
    small = connect(byte_budget=sizes(store))
    for number in range(4, 7):
        write(small, number)
    segments = stale.sample({"rollout/success": 1}, 50, 1, 1, rng)
    assert [segment.meta.seed for segment in segments] == [3] * 50


def test_an_episode_removed_in_the_middle_of_a_read(connect: Connect, write: Any, proxy: Proxy) -> None:
    store, away = connect(shards=1), connect(proxy.url)
    id = write(store, 1)

    def evicted_before_its_chunks_are_read() -> Iterator[None]:
        yield None
        write(connect(byte_budget=sizes(store)), 2)
        yield from repeat(None)

    proxy.cuts, proxy.only = evicted_before_its_chunks_are_read(), b"HGET"
    with pytest.raises(UnknownEpisode, match="was removed while it was read") as caught:
        away.read(id)
    assert not isinstance(caught.value, Quarantined)
    assert store.stats().quarantined == 0


@everywhere
def test_a_reader_that_missed_removals_starts_anew(
    connect: Connect, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longview.replay.redis.sink.REMOVED_LISTED", 2)
    store, reader = connect(shards=1), connect()
    for number in range(3):
        write(store, number)
    assert len(reader.ids()) == 3
    small = connect(byte_budget=sizes(store))
    for number in range(3, 9):
        write(small, number)
        if number in (3, 8):
            assert reader.ids() == [
                episode_id("rollout", "walk", left) for left in range(number - 2, number + 1)
            ]


def test_a_reader_notices_that_everything_is_gone(
    connect: Connect, write: Any, redis: Redis, namespace: str
) -> None:
    store, reader = connect(), connect()
    write(store, 1)
    assert len(reader.ids()) == 1
    redis.delete(*(key for key in redis.scan_iter(f"{{{namespace}:*", count=10_000)))
    assert reader.ids() == []
    write(store, 2)
    assert reader.ids() == ["rollout.walk.000000002"]


# Redis away


def test_redis_is_killed_and_comes_back(
    connect: Connect, write: Any, begin: Any, step: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    options = [
        "--port",
        "0",
        "--unixsocket",
        str(socket_path),
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ]
    server = start_redis(*options)
    store = connect(f"unix://{socket_path}")
    hasty = connect(f"unix://{socket_path}", patience_seconds=0.2)
    ids = [write(store, number) for number in range(5)]
    waiting, giving_up = begin(store, 5), begin(hasty, 6)
    for number in range(6):
        waiting.append(step(number))
        giving_up.append(step(number))
    server.send_signal(signal.SIGKILL)
    server.wait()
    with pytest.raises(StoreUnavailable, match=r"committing episode rollout\.walk\.000000006"):
        giving_up.commit("success")
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(waiting.commit, "success")
        start_redis(*options)
        assert committed.result(20)
    assert giving_up.commit("success")
    assert store.ids() == hasty.ids() == [*ids, "rollout.walk.000000005", "rollout.walk.000000006"]
    for id in store.ids():
        assert store.read(id).arrays["reward"].tolist() == list(range(store.read(id).length))
    assert store.stats().committed[("rollout", "success")].episodes == 7
