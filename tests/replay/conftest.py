"""Fixtures for the tests of the store: a real redis-server, and a namespace for each test."""

import itertools
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from longview.cluster.run.services import find_redis_server, redis_server
from longview.replay.config import StoreConfig
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec, episode_id
from longview.replay.redis.client import Client
from longview.replay.redis.writer import EpisodeWriter
from longview.replay.store import EpisodeStore
from tests.replay.redis.proxy import Proxy

NAMESPACES = (f"test-{number}" for number in itertools.count())

Connect = Callable[..., EpisodeStore]
Begin = Callable[..., EpisodeWriter]
Step = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a Redis; parametrized with "cluster" (`indirect=True`), of a Redis Cluster."""
    if getattr(request, "param", "redis") == "cluster":
        return str(request.getfixturevalue("cluster").url)
    return str(request.getfixturevalue("redis_url"))


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    redis = Client(url, StoreConfig()).redis
    yield redis
    redis.close()


@pytest.fixture
def namespace() -> str:
    return next(NAMESPACES)


@pytest.fixture
def spec() -> TaskSpec:
    return TaskSpec(
        name="walk",
        observation={"position": ArraySpec((2,)), "camera": ArraySpec((4, 4, 3), "uint8")},
        action=ArraySpec((3,), low=-1.0, high=1.0),
        control_hz=20.0,
        max_steps=100,
        context_lengths=(1, 4),
        demonstrations=10,
    )


@pytest.fixture
def connect(url: str, namespace: str, spec: TaskSpec) -> Iterator[Connect]:
    """Return a function that opens the test's namespace and registers the task, given `StoreConfig` keys."""
    stores = []

    def connect(url: str = url, **config: Any) -> EpisodeStore:
        settings: dict[str, Any] = {"chunk_steps": 4, "refresh_seconds": 0.0, "patience_seconds": 20.0}
        store = EpisodeStore.connect(url, namespace, StoreConfig(**(settings | config)))
        store.register(spec)
        stores.append(store)
        return store

    yield connect
    for store in stores:
        store.close()


@pytest.fixture
def step() -> Step:
    """Return a function that makes a step of the task from a number, which determines all its values."""

    def step(number: int) -> dict[str, Any]:
        return {
            "observation.position": np.array((number, -number), np.float32),
            "observation.camera": np.full((4, 4, 3), number % 256, np.uint8),
            "action": np.full(3, number / 1000, np.float32),
            "reward": np.array(number, np.float32),
        }

    return step


@pytest.fixture
def begin() -> Begin:
    """Return a function that begins the number-th episode of a source."""

    def begin(store: EpisodeStore, number: int, source: str = "rollout") -> EpisodeWriter:
        return store.writer(
            EpisodeMeta(episode_id(source, "walk", number), "walk", number, source, (3, 4), 8)
        )

    return begin


@pytest.fixture
def write(begin: Begin, step: Step) -> Callable[..., str]:
    """Return a function that writes an episode whose steps count up from `first`, and returns its id. In a
    correction, the policy and the expert take turns."""

    def write(
        store: EpisodeStore,
        number: int,
        length: int = 10,
        source: str = "rollout",
        first: int = 0,
        outcome: str = "success",
    ) -> str:
        writer = begin(store, number, source)
        for row in range(length):
            said = {"controller": np.uint8(row % 2)} if source == "correction" else {}
            writer.append(step(first + row) | said)
        assert writer.commit(outcome)
        return episode_id(source, "walk", number)

    return write


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a redis-server with options; at the end, all servers are killed."""
    servers = []

    def start(*options: str) -> "subprocess.Popen[bytes]":
        command = [find_redis_server(), "--dir", str(tmp_path), "--save", "", *options]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        server.wait()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Redis Cluster on this machine with three primaries and a replica of each."""

    def __init__(self, folder: Path, certificate: str = "", ca: str = "") -> None:
        """Describe a cluster, which `form` starts.

        Args:
            folder: where the servers keep their files.
            certificate: file with the nodes' certificate and key; empty: no TLS.
            ca: file with the authority that signed it; with both files, the nodes speak TLS only.
        """
        self._folder = folder
        self._tls = {"tls-cert-file": certificate, "tls-key-file": certificate, "tls-ca-cert-file": ca}
        self._trusted = {"ssl": True, "ssl_ca_certs": ca} if ca else {}
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        """Running servers by port."""
        self.url = ""

    def start(self, port: int) -> None:
        """Start the server of a port."""
        command = [find_redis_server(), "--dir", str(self._folder), "--save", ""]
        if self._trusted:
            command += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
            command += ["--tls-cluster", "yes", "--tls-replication", "yes"]
            command += [part for name, file in self._tls.items() for part in (f"--{name}", file)]
        else:
            command += ["--port", str(port)]
        command += ["--cluster-enabled", "yes", "--cluster-config-file", f"{port}.conf"]
        command += ["--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"]
        with (self._folder / f"{port}.log").open("ab") as log:
            self.servers[port] = subprocess.Popen(command, stdout=log)

    def kill(self, port: int) -> None:
        """Kill the server of a port, and wait for its end."""
        server = self.servers.pop(port)
        server.kill()
        server.wait()

    def form(self) -> None:
        """Start the servers and make a cluster of them."""
        ports = [free_port_of_a_cluster() for _ in range(6)]
        for port in ports:
            self.start(port)
        self.url = f"{'rediss' if self._trusted else 'redis'}://127.0.0.1:{ports[0]}"
        nodes = [self.node(port) for port in ports]
        self.until(lambda: all(map(answers, nodes)))
        for number, node in enumerate(nodes):
            if number < 3:
                slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
                node.execute_command("CLUSTER ADDSLOTS", *slots)
                node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        self.until(lambda: all(node.cluster("info")["cluster_known_nodes"] == "6" for node in nodes))
        for primary, replica in zip(nodes, nodes[3:], strict=False):
            replica.execute_command("CLUSTER REPLICATE", primary.execute_command("CLUSTER MYID"))
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until every slot is served and every primary has its replica."""
        self.until(
            lambda: all(self.node(port).cluster("info")["cluster_state"] == "ok" for port in self.servers)
        )
        self.until(
            lambda: sorted(map(self.role, self.servers)) == [("master", 1)] * 3 + [("slave", "up")] * 3
        )

    def role(self, port: int) -> tuple[str, Any]:
        """Return ("master", number of replicas) or ("slave", state of the link to its primary)."""
        found = self.node(port).info("replication")
        return found["role"], found.get("master_link_status", found["connected_slaves"])

    def node(self, port: int) -> Redis:
        return Redis(host="127.0.0.1", port=port, socket_timeout=5, **self._trusted)

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)


@contextmanager
def redis_cluster(folder: Path, certificate: str = "", ca: str = "") -> Iterator[Cluster]:
    """Run a cluster within the context; the arguments are those of `Cluster`."""
    cluster = Cluster(folder, certificate, ca)
    try:
        cluster.form()
        yield cluster
    finally:
        for port in list(cluster.servers):
            cluster.kill(port)


def answers(redis: Redis) -> bool:
    with suppress(ConnectionError):
        return bool(redis.ping())
    return False


def free_port_of_a_cluster() -> int:
    """Return a free port below the system's own range whose bus port, 10,000 above it, is free too."""
    while True:
        port = random.randrange(10_000, 20_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


@pytest.fixture
def proxy(url: str, socket_path: Path) -> Iterator[Proxy]:
    """Run a proxy in front of Redis."""
    proxy = Proxy(url.removeprefix("unix://"), socket_path)
    yield proxy
    proxy.close()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Return a path that is short enough for a socket; the test's own folder may be too deep."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "socket"
