"""Tests in which a primary is killed while episodes are written, and its replica takes over."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from longview.replay.errors import StoreUnavailable
from longview.replay.redis import keys
from longview.replay.stats import Count
from longview.replay.store import EpisodeStore

Connect = Callable[..., EpisodeStore]
StartRedis = Callable[..., "subprocess.Popen[bytes]"]

on_cluster = pytest.mark.parametrize("url", ["cluster"], indirect=True)


@on_cluster
@pytest.mark.parametrize("replicas", [0, 1])
def test_writers_survive_a_failover(
    cluster: Any, connect: Connect, write: Any, namespace: str, replicas: int
) -> None:
    acknowledged: dict[str, float] = {}
    done = threading.Event()

    def work(worker: int) -> None:
        """Write episodes, one after the other, until the test is done."""
        store = connect(shards=24, replicas=replicas, call_seconds=2.0)
        number = 1000 * worker
        while not done.is_set():
            acknowledged[write(store, number)] = time.monotonic()
            number += 1

    def everybody_writes_on() -> None:
        before = len(acknowledged)
        cluster.until(lambda: len(acknowledged) >= before + 200)

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, worker) for worker in range(4)]
        try:
            everybody_writes_on()
            victim = primary_of(cluster, f"{keys.tag(namespace, 0)}:")
            cluster.kill(victim)
            killed = time.monotonic()
            # Started earlier, it would come back as an empty primary.
            cluster.until(lambda: primary_of(cluster, f"{keys.tag(namespace, 0)}:"))
            cluster.start(victim)
            cluster.wait_until_whole()
            everybody_writes_on()
        finally:
            done.set()
        for worker in workers:
            worker.result()

    store = connect()
    lost = acknowledged.keys() - set(store.ids())
    assert all(abs(acknowledged[id] - killed) < 1.0 for id in lost)
    if replicas:
        assert not lost
    episodes = [store.read(id) for id in store.ids()]
    assert {episode.length for episode in episodes} == {10}
    assert store.stats().total.episodes == len(episodes)
    assert sum(store.stats().committed.values(), Count()).episodes == len(episodes)


def primary_of(cluster: Any, key: str) -> int:
    """Return the port of the primary that serves a key, or 0 while no primary does."""
    node = cluster.node(next(iter(cluster.servers)))
    slot = node.execute_command("CLUSTER KEYSLOT", key)
    for first, last, primary, *_ in node.execute_command("CLUSTER SLOTS"):
        if first <= slot <= last and primary[1] in cluster.servers:
            return int(primary[1])
    return 0


# A primary and a replica, at an address that one of them has


class Pair:
    """Primary and replica, behind one address that leads to either of them."""

    def __init__(self, start_redis: StartRedis, folder: Path) -> None:
        self.url = f"unix://{folder}/address"
        self._folder = folder
        self.servers: list[subprocess.Popen[bytes]] = []
        self.nodes: list[Redis] = []
        ports = []
        for name in ("one", "other"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports.append(free.getsockname()[1])
            options = ["--port", str(ports[-1]), "--unixsocket", str(folder / name)]
            options += ["--dbfilename", name, "--repl-diskless-sync-delay", "0"]
            self.servers.append(start_redis(*options))
            retry = Retry(ConstantBackoff(0.02), 250)
            self.nodes.append(Redis(unix_socket_path=str(folder / name), retry=retry))
        self.ports = ports
        self.nodes[1].replicaof("127.0.0.1", ports[0])
        assert self.nodes[0].wait(1, 10_000) == 1
        self.point_at("one")

    def point_at(self, name: str) -> None:
        """Let the address lead to the named server."""
        link = self._folder / "next"
        link.symlink_to(name)
        link.rename(self._folder / "address")


@pytest.fixture
def pair(start_redis: StartRedis, socket_path: Path) -> Pair:
    return Pair(start_redis, socket_path.parent)


def test_a_commit_waits_for_replicas(pair: Pair, connect: Connect, begin: Any, step: Any, write: Any) -> None:
    store = connect(pair.url, replicas=1, call_seconds=0.4, patience_seconds=1.0)
    write(store, 0)
    pair.servers[1].send_signal(signal.SIGSTOP)
    write(connect(pair.url), 1)
    writer = begin(store, 2)
    writer.append(step(0))
    with pytest.raises(StoreUnavailable, match=r"for 1 s: 0 replicas hold it"):
        writer.commit("success")
    pair.servers[1].send_signal(signal.SIGCONT)
    assert writer.commit("success")
    assert store.stats().committed[("rollout", "success")].episodes == 3


@pytest.mark.parametrize("demoted", [False, True], ids=["killed", "demoted"])
def test_another_takes_over_at_the_same_address(
    pair: Pair, connect: Connect, write: Any, demoted: bool
) -> None:
    safe, store = connect(pair.url, replicas=1), connect(pair.url)
    ids = [write(safe, number) for number in range(20)]
    assert store.ids() == ids
    pair.nodes[1].replicaof("NO", "ONE")
    if demoted:  # it keeps running and keeps its connections, but refuses writes
        pair.nodes[0].replicaof("127.0.0.1", pair.ports[1])
    else:
        pair.servers[0].kill()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(write, store, 20)
        time.sleep(0.3)
        pair.point_at("other")
        ids.append(late.result())
    assert store.ids() == ids


def test_a_primary_that_wants_replicas(pair: Pair, connect: Connect, begin: Any, step: Any) -> None:
    pair.nodes[0].config_set("min-replicas-to-write", 1)
    store = connect(pair.url, patience_seconds=0.5)
    pair.servers[1].kill()
    pair.servers[1].wait()
    writer = begin(store, 0)
    writer.append(step(0))
    with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
        writer.commit("success")
    pair.nodes[0].config_set("min-replicas-to-write", 0)
    assert writer.commit("success")
