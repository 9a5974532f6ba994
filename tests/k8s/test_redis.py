"""Tests of the manifests' Redis, started by its own script: each user's rights, and the replica."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from longview.cluster.run.services import find_redis_server
from longview.replay.config import StoreConfig
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.store import EpisodeStore
from tests.k8s.conftest import ROOT

BASE = ROOT / "k8s" / "base"
PASSWORD, RAY_PASSWORD = "store-secret", "ray-secret"
MEMORY = 1 << 30

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a pod's Redis on a free port and returns the port."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(pod: str, *options: str) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        data, run = tmp_path / pod / "data", tmp_path / pod / "run"
        data.mkdir(parents=True)
        run.mkdir()
        folder = Path(find_redis_server()).parent
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOSTNAME": pod,
            "LONGVIEW_REDIS_PASSWORD": PASSWORD,
            "RAY_REDIS_PASSWORD": RAY_PASSWORD,
            "MEMORY": str(MEMORY),
        }
        command = ["/bin/sh", BASE / "start-redis.sh", BASE / "redis.conf", run, data]
        places = ["--port", str(port), "--bind", "127.0.0.1"]
        with (tmp_path / f"{pod}.log").open("wb") as log:
            servers.append(
                subprocess.Popen([*command, *places, *options], env=environment, stdout=log, stderr=log)
            )
        probe_user = Redis(port=port, username="probe", password="")
        eventually(probe_user.ping)
        probe_user.close()
        return port

    yield start
    for server in servers:
        server.kill()
        server.wait()


def eventually(question: Callable[[], object], seconds: float = 20.0) -> None:
    """Ask again until the answer is true.

    Raises:
        AssertionError: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(RedisError):
            if question():
                return
        time.sleep(0.02)
    raise AssertionError(f"the answer was not true within {seconds} s")


def test_the_store_works_as_its_user_and_keeps_its_limits(start: Start) -> None:
    port = start("longview-redis-0")
    spec = TaskSpec(
        name="walk",
        observation={"position": ArraySpec((2,))},
        action=ArraySpec((1,), low=-1.0, high=1.0),
        control_hz=10.0,
        max_steps=50,
        demonstrations=1,
        context_lengths=(1,),
    )
    url = f"redis://longview:{PASSWORD}@127.0.0.1:{port}"
    store = EpisodeStore.connect(url, "first", StoreConfig(chunk_steps=4))
    store.register(spec)
    writer = store.writer(EpisodeMeta("demo.walk.0", "walk", 0, "demo"))
    abandoned = store.writer(EpisodeMeta("demo.walk.1", "walk", 2, "demo"))
    for _ in range(9):
        step = {name: np.zeros(array.shape, array.dtype) for name, array in spec.arrays().items()}
        writer.append(step)
        abandoned.append(step)
    assert writer.commit("success")
    abandoned.abort()
    assert store.ids("demo") == ["demo.walk.0"]
    assert store.read("demo.walk.0").length == 9
    assert store.stats().total.episodes == 1
    store.close()

    with Redis(port=port, username="longview", password=PASSWORD) as user:
        for command in (("CONFIG", "GET", "dir"), ("FLUSHALL",), ("SHUTDOWN",), ("ACL", "LIST")):
            with pytest.raises(NoPermissionError):
                user.execute_command(*command)
        assert user.info("memory")["maxmemory"] == MEMORY // 4 * 3


def test_the_stores_user_may_do_what_the_guide_says(start: Start, tmp_path: Path) -> None:
    start("longview-redis-0")
    guide = (ROOT / "docs" / "store.md").read_text().splitlines()
    (told,) = (line.split(" -@all ")[1] for line in guide if line.strip().startswith("user lab "))
    users = (tmp_path / "longview-redis-0" / "run" / "users.acl").read_text().splitlines()
    (made,) = (line.split(" -@all ")[1] for line in users if line.startswith("user longview "))
    assert made == told


def test_other_users_may_do_only_their_part(start: Start) -> None:
    port = start("longview-redis-0")
    with Redis(port=port) as nobody, pytest.raises((AuthenticationError, ResponseError)):
        nobody.ping()
    with Redis(port=port, username="probe", password="") as probe, pytest.raises(NoPermissionError):
        probe.get("RAYa")
    with Redis(port=port, username="ray", password=RAY_PASSWORD) as ray:
        # These are the calls of Ray's head, which ends if one is refused.
        ray.info("cluster")
        ray.delete("DUMMY")
        ray.hset("RAYname@KV", "key", "value")
        assert ray.hscan("RAYname@KV")[1] == {b"key": b"value"}
        with pytest.raises(NoPermissionError):
            ray.hset("{first}:tasks", "key", "value")


def test_the_runbooks_questions_are_answered(start: Start) -> None:
    port = start("longview-redis-0")
    questions = set(re.findall(r"`in_redis ([a-z ]+)`", (ROOT / "docs" / "runbook.md").read_text()))
    assert questions
    with Redis(port=port, username="longview", password=PASSWORD) as user:
        assert all(user.execute_command(*question.split()) for question in questions)


def test_passwords_are_written_nowhere_but_for_the_replica(start: Start, tmp_path: Path) -> None:
    start("longview-redis-0")
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(secret.encode() in text for text in written for secret in (PASSWORD, RAY_PASSWORD))


def test_a_second_pod_has_a_copy_of_everything(start: Start) -> None:
    primary = start("longview-redis-0", "--repl-diskless-sync-delay", "0")
    # In a cluster a replica finds the primary by its host name. Here both are ports of one machine.
    copy = start("longview-redis-1", "--replicaof", "127.0.0.1", str(primary))
    with (
        Redis(port=primary, username="longview", password=PASSWORD) as one,
        Redis(port=copy, username="longview", password=PASSWORD) as two,
    ):
        one.hset("{run}:layout", "shards", "4")
        eventually(lambda: two.hget("{run}:layout", "shards") == b"4")
        assert two.info("replication")["role"] == "slave"


def test_without_a_password_nothing_starts(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "MEMORY": str(MEMORY), "RAY_REDIS_PASSWORD": RAY_PASSWORD}
    done = subprocess.run(
        ["/bin/sh", BASE / "start-redis.sh", BASE / "redis.conf", tmp_path, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "LONGVIEW_REDIS_PASSWORD" in done.stderr
