"""Tests of the manifests' Redis, started by its own script: each user's rights, the replica, the backup."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
import yaml
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
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A primary that does not wait for further replicas before it copies its data to the first."""

RUN = "lab"
PRIMARY, COPY = f"longview-redis-{RUN}-0", f"longview-redis-{RUN}-1"


class Pods:
    """The Redis of each pod, on a port of this machine. A pod that starts again keeps both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports: dict[str, int] = {}
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            "PATH": f"{Path(find_redis_server()).parent}:{os.environ['PATH']}",
            "LONGVIEW_REDIS_PASSWORD": PASSWORD,
            "RAY_REDIS_PASSWORD": RAY_PASSWORD,
            "RUN": RUN,
            "MEMORY": str(MEMORY),
        }

    def __call__(self, pod: str, *options: str) -> int:
        """Start a pod's Redis, and return its port once it answers."""
        port = self._ports.setdefault(pod, free_port())
        data, run = self.volume(pod), self._folder / pod / "run"
        data.mkdir(parents=True, exist_ok=True)
        run.mkdir(exist_ok=True)
        primary = f"127.0.0.1 {self._ports.get(PRIMARY)}"
        command = ["/bin/sh", BASE / "start-redis.sh", BASE / "redis.conf", run, data]
        places = ["--port", str(port), "--bind", "127.0.0.1"]
        with (self._folder / f"{pod}.log").open("ab") as log:
            self._servers[pod] = subprocess.Popen(
                [*command, *places, *options],
                env=self.environment | {"HOSTNAME": pod, "PRIMARY": primary},
                stdout=log,
                stderr=log,
            )
        with Redis(port=port, username="probe", password="") as probe:
            eventually(probe.ping)
        return port

    def volume(self, pod: str) -> Path:
        """Return the folder of a pod's data."""
        return self._folder / pod / "data"

    def stop(self, pod: str) -> None:
        """End a pod's Redis.

        Redis refuses to end, and forgets the signal, while a new copy writes its first append-only file.
        Kubernetes kills it after the grace period; here it is asked again.
        """
        server = self._servers[pod]
        for _ in range(30):
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(1)
                return
        raise AssertionError(f"{pod} did not end within 30 s")

    def kill(self) -> None:
        """End all of them at once."""
        for server in self._servers.values():
            server.kill()
            server.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Pods]:
    """Return a function that starts a pod's Redis and returns its port."""
    pods = Pods(tmp_path)
    yield pods
    pods.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def store_user(port: int) -> Redis:
    """Connect as the user that has the episode store."""
    return Redis(port=port, username="longview", password=PASSWORD)


def eventually(question: Callable[[], object], seconds: float = 20.0) -> None:
    """Ask again until the answer is true.

    Raises:
        AssertionError: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(RedisError, OSError):
            if question():
                return
        time.sleep(0.02)
    raise AssertionError(f"the answer was not true within {seconds} s")


def test_the_store_works_as_its_user_and_keeps_its_limits(start: Pods) -> None:
    port = start(PRIMARY)
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
    store = EpisodeStore.connect(url, RUN, StoreConfig(chunk_steps=4))
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
        keys_of_another_run = ("HGETALL", "{other}:layout")
        for command in (("CONFIG", "GET", "dir"), ("FLUSHALL",), ("SHUTDOWN",), keys_of_another_run):
            with pytest.raises(NoPermissionError):
                user.execute_command(*command)
        assert user.info("memory")["maxmemory"] == MEMORY // 4 * 3


def test_the_stores_user_may_do_what_the_guide_says(start: Pods, tmp_path: Path) -> None:
    start(PRIMARY)
    guide = (ROOT / "docs" / "store.md").read_text().splitlines()
    (told,) = (line.split(" resetchannels ")[1] for line in guide if line.strip().startswith("user lab "))
    users = (tmp_path / PRIMARY / "run" / "users.acl").read_text().splitlines()
    (made,) = (line.split(" resetchannels ")[1] for line in users if line.startswith("user longview "))
    assert made == told


def test_other_users_may_do_only_their_part(start: Pods) -> None:
    port = start(PRIMARY)
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


def test_the_runbooks_questions_are_answered(start: Pods) -> None:
    port = start(PRIMARY)
    questions = set(re.findall(r"`in_redis ([a-z ]+)`", (ROOT / "docs" / "runbook.md").read_text()))
    assert questions
    with Redis(port=port, username="longview", password=PASSWORD) as user:
        assert all(user.execute_command(*question.split()) for question in questions)


def test_passwords_are_written_nowhere_but_for_the_replica(start: Pods, tmp_path: Path) -> None:
    start(PRIMARY)
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(secret.encode() in text for text in written for secret in (PASSWORD, RAY_PASSWORD))


def test_a_second_pod_has_a_copy_of_everything(start: Pods) -> None:
    primary, copy = start(PRIMARY, *AT_ONCE), start(COPY)
    with store_user(primary) as one, store_user(copy) as two:
        one.hset("{lab}:layout", "shards", "4")
        eventually(lambda: two.hget("{lab}:layout", "shards") == b"4")
        assert two.info("replication")["role"] == "slave"

    # Either may start again: the data is that which it was.
    start.stop(COPY)
    start.stop(PRIMARY)
    start(PRIMARY, *AT_ONCE)
    start(COPY)
    with store_user(primary) as one, store_user(copy) as two:
        one.hset("{lab}:layout", "shards", "5")
        eventually(lambda: two.hget("{lab}:layout", "shards") == b"5")


def test_a_primary_that_lost_its_volume_does_not_wipe_the_copy(start: Pods) -> None:
    primary, copy = start(PRIMARY, *AT_ONCE), start(COPY)
    with store_user(primary) as one, store_user(copy) as two:
        one.hset("{lab}:layout", "shards", "4")
        eventually(lambda: two.hget("{lab}:layout", "shards") == b"4")
        start.stop(PRIMARY)
        shutil.rmtree(start.volume(PRIMARY))
        start(PRIMARY, *AT_ONCE)
        assert not one.exists("{lab}:layout")
        log = start.volume(COPY).parents[1] / f"{COPY}.log"
        eventually(lambda: b"WRONGPASS" in log.read_bytes())
        assert two.hget("{lab}:layout", "shards") == b"4"
        # A copy that starts again does not follow it either.
        start.stop(COPY)
        start(COPY)
        time.sleep(2)
        assert two.hget("{lab}:layout", "shards") == b"4"
        assert two.info("replication")["master_link_status"] == "down"

    # The guide's remedy: the copy's data goes into the new volume.
    start.stop(PRIMARY)
    start.stop(COPY)
    shutil.rmtree(start.volume(PRIMARY))
    shutil.copytree(start.volume(COPY), start.volume(PRIMARY))
    start(PRIMARY, *AT_ONCE)
    start(COPY)
    with store_user(primary) as one, store_user(copy) as two:
        assert one.hget("{lab}:layout", "shards") == b"4"
        one.hset("{lab}:layout", "shards", "5")
        eventually(lambda: two.hget("{lab}:layout", "shards") == b"5")


@pytest.mark.parametrize(("lost", "same"), [("nothing", True), ("the files", False), ("the folder", False)])
def test_a_first_pod_keeps_its_identity_while_it_has_its_data(start: Pods, lost: str, same: bool) -> None:
    def identities() -> set[str]:
        return {conf.name for conf in (start.volume(PRIMARY).parent / "run").glob("*.conf")}

    start(PRIMARY)
    before, data = identities(), start.volume(PRIMARY) / "appendonlydir"
    start.stop(PRIMARY)
    if lost != "nothing":
        shutil.rmtree(data)
    if lost == "the files":
        data.mkdir()
    start(PRIMARY)
    assert (identities() == before) == same


@pytest.mark.parametrize(
    "limits",
    ["the script's", pytest.param("Redis' own, at the same scale", marks=pytest.mark.slow)],
)
def test_a_first_copy_ends_while_much_is_written(start: Pods, limits: str) -> None:
    # 1/8 of a small cluster: Redis' own limits of 256 MB and 64 MB for 60 s become 32 MB and 8 MB for 1 s.
    # Smaller ones would be within what the sockets hold.
    start.environment["MEMORY"] = str(512 << 20)
    own = () if limits == "the script's" else ("--client-output-buffer-limit", "replica 32mb 8mb 1")
    primary = start(PRIMARY, *AT_ONCE, *own)
    (conf,) = (start.volume(PRIMARY).parent / "run").glob("*.conf")
    assert f"client-output-buffer-limit replica {128 << 20} 0 0" in conf.read_text()
    with store_user(primary) as one:
        for number in range(2000):
            one.hset(f"{{lab}}:{number}", "chunk", b"x" * 1000)
        # The copy takes 2 ms for each key that it loads, as it takes long over gigabytes.
        copy = start(COPY, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
        with store_user(copy) as two:
            eventually(lambda: one.info("replication")["connected_slaves"] == 1)
            chunk = os.urandom(2_000_000)
            for _ in range(24):  # more than 32 MB, before the copy can have ended
                one.hset("{lab}:written", "chunk", chunk)
            ends, copied = time.monotonic() + 15, False
            while time.monotonic() < ends and not copied:
                one.hset("{lab}:written", "chunk", chunk)
                written = one.info("replication")["master_repl_offset"]
                time.sleep(0.1)
                # A copy that was cut off still gets what the sockets hold, and then asks for all again.
                known = two.info("replication")
                copied = known["master_link_status"] == "up" and known["slave_repl_offset"] >= written
        copies = one.info("stats")["sync_full"]
    assert (copied, copies) == (True, 1) if limits == "the script's" else copies > 1


@pytest.mark.skipif(shutil.which("redis-check-rdb") is None, reason="redis-check-rdb is not installed")
def test_a_backup_is_made_and_brought_back(start: Pods, tmp_path: Path) -> None:
    port = start(PRIMARY)
    backups = tmp_path / "backup"
    backups.mkdir()
    for old in ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z"):
        (backups / f"{old}.rdb").touch()
    with store_user(port) as user:
        user.hset("{lab}:layout", "shards", "4")
    script = ["/bin/sh", BASE / "backup-redis.sh", "127.0.0.1", str(port), backups]
    done = subprocess.run(script, env=start.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = sorted(backups.iterdir())
    assert [it.name for it in kept[:-1]] == ["20260102T000000Z.rdb", "20260103T000000Z.rdb"]
    assert done.stdout.splitlines()[-1] == str(kept[-1])

    start.stop(PRIMARY)
    shutil.rmtree(start.volume(PRIMARY))
    job = yaml.safe_load((ROOT / "k8s" / "restore-redis.yaml").read_text())
    (*shell, restore) = job["spec"]["template"]["spec"]["containers"][0]["command"]
    start.volume(PRIMARY).mkdir()
    restore = restore.replace("/backup/", f"{backups}/").replace("/data/", f"{start.volume(PRIMARY)}/")
    subprocess.run([*shell, restore], check=True)
    start(PRIMARY)
    with store_user(port) as user:
        assert user.hget("{lab}:layout", "shards") == b"4"
        user.hset("{lab}:layout", "shards", "5")
    # It is the data from now on.
    start.stop(PRIMARY)
    start(PRIMARY)
    with store_user(port) as user:
        assert user.hget("{lab}:layout", "shards") == b"5"


EXPORTER = shutil.which("prometheus-redis-exporter") or shutil.which("redis_exporter")


@pytest.mark.skipif(EXPORTER is None, reason="no exporter (Debian: apt install prometheus-redis-exporter)")
def test_the_exporter_tells_what_the_rules_ask(start: Pods, tmp_path: Path) -> None:
    primary, copy = start(PRIMARY, *AT_ONCE), start(COPY)
    documents = yaml.safe_load_all((BASE / "redis.yaml").read_text())
    (pod,) = (it["spec"]["template"]["spec"] for it in documents if it["kind"] == "StatefulSet")
    _, container = pod["containers"]
    told = ""
    for port in (primary, copy):
        listens = free_port()
        environment = {it["name"]: it["value"] for it in container["env"]}
        environment |= {"REDIS_ADDR": f"redis://127.0.0.1:{port}"}
        environment |= {"REDIS_EXPORTER_WEB_LISTEN_ADDRESS": f"127.0.0.1:{listens}"}
        with (tmp_path / "exporter.log").open("ab") as log:
            exporter = subprocess.Popen([str(EXPORTER)], env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{listens}/metrics"
            opened = build_opener(ProxyHandler({}))
            eventually(lambda opened=opened, address=address: b"redis_up 1" in opened.open(address).read())
            told += opened.open(address).read().decode()
        finally:
            exporter.kill()
            exporter.wait()
    rules = (ROOT / "monitoring" / "rules.yaml").read_text()
    asked = set(re.findall(r"(?<![:\w])redis_[a-z_]+\b(?!\()", rules)) - {"redis_aof_last_"}
    assert asked >= {"redis_memory_used_bytes", "redis_memory_max_bytes", "redis_master_link_up"}
    for name in asked | {"redis_aof_last_write_status", "redis_aof_last_bgrewrite_status"}:
        assert re.search(rf"^{name}(\{{.*\}})? ", told, re.MULTILINE), name


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
