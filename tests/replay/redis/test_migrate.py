"""Tests that a namespace of format 2 becomes one of the present format, however often that is interrupted.

`data/namespace_format_2.msgpack` was written by the last commit with format 2: its keys, each with type and
value. `data/namespace_format_2.json` lists the episodes as that commit read them.
"""

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from redis import Redis

from longview.replay.config import StoreConfig
from longview.replay.episode import EpisodeMeta, Selection
from longview.replay.errors import StoreError
from longview.replay.redis import keys
from longview.replay.redis.client import Client
from longview.replay.redis.migrate import Migration
from longview.replay.redis.namespace import FORMAT
from longview.replay.store import EpisodeStore

DATA = Path(__file__).parent.parent / "data"
QUARANTINED = "rollout.walk.000000003"

on_both = pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)


def load_old_namespace(redis: Redis, namespace: str) -> None:
    """Write the namespace of format 2 under this name."""
    for key, (kind, value) in msgpack.unpackb((DATA / "namespace_format_2.msgpack").read_bytes()).items():
        name = key.decode().replace("{old", "{" + namespace)
        match kind:
            case "string":
                redis.set(name, value)
            case "hash":
                redis.hset(name, mapping=value)
            case "zset":
                redis.zadd(name, value)


@pytest.fixture
def old(redis: Redis, namespace: str) -> None:
    load_old_namespace(redis, namespace)


def migrated(url: str, namespace: str, **options: Any) -> Any:
    client = Client(url, StoreConfig())
    try:
        return Migration(client, namespace, StoreConfig(), **options).run()
    finally:
        client.redis.close()


def assert_all_is_there(store: EpisodeStore) -> None:
    """Compare every episode of the store with the list."""
    held = json.loads((DATA / "namespace_format_2.json").read_text())
    assert store.ids() == sorted(one["meta"]["id"] for one in held)
    for one in held:
        source = one["meta"]["source"].replace("dagger", "correction")
        plain = one["meta"] | {"source": source, "policy_versions": tuple(one["meta"]["policy_versions"])}
        episode = store.read(one["meta"]["id"])
        assert episode.meta == EpisodeMeta(**plain)
        assert (episode.outcome, episode.extras) == (one["outcome"], one["extras"])
        assert episode.arrays.keys() == one["arrays"].keys() | {"controller"}
        for name, array in one["arrays"].items():
            expected = np.array(array["values"], array["dtype"])
            np.testing.assert_array_equal(episode.arrays[name], expected, strict=True)
        controller = 1 if source in ("demo", "import") else 0
        assert episode.arrays["controller"].dtype == np.uint8
        assert episode.arrays["controller"].tolist() == [controller] * episode.length
    verdict = store.verify()
    assert (verdict.findings, list(verdict.quarantined)) == ([], [QUARANTINED])
    stats = store.stats()
    counts = {
        source: (count.episodes, count.steps, count.learnable) for source, count in stats.stored.items()
    }
    assert counts == {
        "demo": (3, 15, 15),
        "import": (2, 14, 14),
        "rollout": (3, 17, 0),
        "correction": (6, 39, 36),  # three steps without labels
        "human": (0, 0, 0),
    }
    assert stats.committed["correction", "success"].steps == 30
    assert stats.committed["rollout", "wrong"].learnable == 0
    assert (stats.evicted["correction"].episodes, stats.evicted["correction"].learnable) == (1, 8)
    assert stats.quarantined == 1


@on_both
def test_a_namespace_of_format_2_is_refused_until_it_is_brought_over(
    old: None, url: str, namespace: str, redis: Redis
) -> None:
    command = f"has format 2, .* reads format 3: `longview store migrate {namespace}` brings it over"
    with pytest.raises(StoreError, match=command):
        EpisodeStore.connect(url, namespace, StoreConfig())
    times = [
        score
        for shard in (0, 1)
        for _, score in redis.zrange(keys.index(keys.tag(namespace, shard), "dagger"), 0, -1, withscores=True)
    ]
    told: list[tuple[int, int]] = []
    result = migrated(url, namespace, progress=lambda *so_far: told.append(so_far))
    assert (result.episodes, result.damaged) == (14, {})
    assert told == [(done, 14) for done in range(1, 15)]
    store = EpisodeStore.connect(url, namespace, StoreConfig(refresh_seconds=0.0))
    assert_all_is_there(store)
    assert times == [
        score
        for tag in store._namespace.tags
        for _, score in redis.zrange(keys.index(tag, "correction"), 0, -1, withscores=True)
    ]
    # A priority of 3.5, and 1 for the two other corrections of seven steps or more that succeeded.
    drawn = store.sample(
        Selection({"correction/success": 1}, by="priority"), 600, 0, 0, np.random.default_rng(0)
    )
    share = np.mean([segment.meta.id == "dagger.walk.000000002" for segment in drawn])
    assert abs(share - 3.5 / 5.5) < 0.07
    store.close()
    again = migrated(url, namespace)
    assert (again.episodes, again.damaged) == (0, {})


def migrate_and_die(url: str, namespace: str, calls: int) -> None:
    """Migrate, and die by SIGKILL before the call to Redis with this number."""
    client = Client(url, StoreConfig())
    attempt, numbers = client.attempt, itertools.count()

    def attempt_or_die(doing: str, operation: Callable[[], Any]) -> Any:
        if next(numbers) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt(doing, operation)

    client.attempt = attempt_or_die  # type: ignore[method-assign]
    Migration(client, namespace, StoreConfig()).run()


def test_a_migration_that_was_killed_at_any_point_is_repeated(redis_url: str) -> None:
    """Kill a migration before every third of its calls, and each time repeat it."""
    redis, context = Client(redis_url, StoreConfig()).redis, multiprocessing.get_context("fork")
    killed = 0
    for calls in itertools.count(1, 3):
        namespace = f"killed-{calls}"
        load_old_namespace(redis, namespace)
        child = context.Process(target=migrate_and_die, args=(redis_url, namespace, calls))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        killed += 1
        with pytest.raises(StoreError, match="brings it over"):
            EpisodeStore.connect(redis_url, namespace, StoreConfig())
        migrated(redis_url, namespace)
        store = EpisodeStore.connect(redis_url, namespace, StoreConfig())
        assert_all_is_there(store)
        store.close()
    assert killed > 20
    redis.close()


def test_what_is_damaged_goes_to_the_quarantine_and_the_rest_is_brought_over(
    old: None, url: str, namespace: str, redis: Redis
) -> None:
    tags = [keys.tag(namespace, shard) for shard in (0, 1)]
    (spoilt,) = redis.keys(f"{tags[0]}:chunks:dagger.walk.000000002:*:1")
    redis.setrange(spoilt, 100, b"other bytes")
    redis.hset(keys.episodes(tags[1]), "rollout.walk.000000001", b"\xc1 nonsense")
    result = migrated(url, namespace)
    assert result.episodes == 12
    assert "chunk is damaged: its checksum" in result.damaged["dagger.walk.000000002"]
    assert "record of an episode is malformed" in result.damaged["rollout.walk.000000001"]
    store = EpisodeStore.connect(url, namespace, StoreConfig())
    assert len(store.ids()) == 12
    verdict = store.verify()
    assert verdict.findings == []
    assert verdict.quarantined.keys() == {QUARANTINED, *result.damaged}
    store.close()


def test_a_namespace_of_another_format_or_none_is_refused(url: str, namespace: str, redis: Redis) -> None:
    with pytest.raises(StoreError, match=f"there is no namespace {namespace} in "):
        migrated(url, namespace)
    assert not redis.exists(keys.layout(namespace))
    redis.hset(keys.layout(namespace), "shards", 4)  # as in the first version, which had no format
    with pytest.raises(StoreError, match="has format 1; only format 2 can be brought over"):
        migrated(url, namespace)
    assert FORMAT == 3
