"""A real redis-server for the tests of the store; each test works in a namespace of its own."""

import itertools
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from cluster.services import find_redis_server, redis_server
from replay.config import StoreConfig
from replay.episode import ArraySpec, EpisodeMeta, TaskSpec, episode_id
from replay.store import EpisodeStore
from replay.writer import EpisodeWriter

NAMESPACES = (f"test-{number}" for number in itertools.count())

Connect = Callable[..., EpisodeStore]
Begin = Callable[..., EpisodeWriter]
Step = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as redis:
        yield redis


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
    """Connects to the test's namespace, where the task is registered; arguments as of `StoreConfig`."""
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
    """One step of the task, every value of it following from a number."""

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
    """Begins the number-th episode of a source."""

    def begin(store: EpisodeStore, number: int, source: str = "rollout") -> EpisodeWriter:
        return store.writer(
            EpisodeMeta(episode_id(source, "walk", number), "walk", number, source, (3, 4), 8)
        )

    return begin


@pytest.fixture
def write(begin: Begin, step: Step) -> Callable[..., str]:
    """Writes and commits an episode whose steps count up from `first`; returns its id."""

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
            writer.append(step(first + row))
        assert writer.commit(outcome)
        return episode_id(source, "walk", number)

    return write


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a bare redis-server with these options; what still runs at the end is killed."""
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


class LossyProxy:
    """Stands between clients and Redis; when told to, it lets a request through and loses the reply."""

    def __init__(self, target: str, path: Path) -> None:
        self.lose = threading.Event()
        self.lost = 0
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            while True:
                for end in select.select([client, server], [], [])[0]:
                    if not (data := end.recv(1 << 20)):
                        return
                    if end is server and self.lose.is_set():
                        self.lose.clear()
                        self.lost += 1
                        return
                    (client if end is server else server).sendall(data)


@pytest.fixture
def lossy(url: str, socket_path: Path) -> Iterator[tuple[LossyProxy, str]]:
    """A proxy in front of Redis, and the URL to reach it by."""
    proxy = LossyProxy(url.removeprefix("unix://"), socket_path)
    yield proxy, f"unix://{socket_path}"
    proxy.close()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path that is short enough for a socket, wherever the test's own folder is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "socket"
