"""Tests that queued episodes are stored exactly once, whatever happens to the connection."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from longview.replay.errors import StoreError, StoreFull, StoreUnavailable
from longview.replay.redis import keys
from longview.replay.redis.sender import JOB_BYTES, InterruptibleCondition
from longview.replay.store import EpisodeStore
from tests.replay.redis.proxy import MOMENTS, Proxy

Connect = Callable[..., EpisodeStore]
StartRedis = Callable[..., "subprocess.Popen[bytes]"]

CHUNK = 4 * (2 * 4 + 4 * 4 * 3 + 3 * 4 + 4 + 1) + JOB_BYTES
"""Bytes that a chunk of four steps occupies in the queue."""


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def rewards(store: EpisodeStore, number: int) -> list[float]:
    return [float(reward) for reward in store.read(f"rollout.walk.{number:09d}").arrays["reward"]]


# The queue


def test_nobody_waits_before_the_queue_is_full(
    connect: Connect, begin: Any, step: Any, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    store = connect(proxy.url, queue_bytes=5 * CHUNK, patience_seconds=0.5, call_seconds=0.5)
    writer, other = begin(store, 1), begin(store, 2)
    proxy.hold.clear()
    for number in range(5 * 4 + 4):
        writer.append(step(number))
    queue = store.queue()
    assert (queue.chunks, queue.bytes, queue.waited_seconds) == (5, 5 * CHUNK, 0)
    assert not caplog.records

    for refused in (writer, other, writer):
        for number in range(4) if refused is other else ():
            other.append(step(number))
        with pytest.raises(
            StoreUnavailable, match=r"writing episode .*: Redis at .* did not answer for 0.5 s"
        ):
            refused.append(step(24))
    assert store.queue().chunks == 5
    assert store.queue().waited_seconds >= 1.5
    (message,) = [record.getMessage() for record in caplog.records if "queue is full" in record.getMessage()]
    assert "waiting for Redis" in message

    proxy.hold.set()
    for number in range(24, 30):
        until_taken(lambda number=number: writer.append(step(number)))
    until_taken(lambda: other.append(step(4)))
    assert writer.commit("success")
    assert other.commit("success")
    assert rewards(store, 1) == list(range(30))
    assert rewards(store, 2) == list(range(5))
    assert store.queue().chunks == store.queue().bytes == 0
    assert [r for r in caplog.records if "has caught up" in r.getMessage()]


def until_taken(call: Callable[[], None]) -> None:
    while True:
        try:
            return call()
        except StoreUnavailable:
            pass


def test_a_commit_need_not_be_waited_for(connect: Connect, begin: Any, step: Any, proxy: Proxy) -> None:
    store = connect(proxy.url, call_seconds=1.0)
    proxy.hold.clear()
    receipts = []
    for number in range(3):
        writer = begin(store, number)
        for row in range(6):
            writer.append(step(row))
        receipts.append(writer.finish("success"))
        assert writer.finish("success") is receipts[-1]
    assert not any(receipt.done for receipt in receipts)
    proxy.hold.set()
    assert [receipt.result() for receipt in receipts] == [True] * 3
    assert len(store.ids()) == 3


def test_a_chunk_larger_than_the_queue_goes_alone(connect: Connect, write: Any) -> None:
    store = connect(queue_bytes=1)
    write(store, 1, length=20)
    assert rewards(store, 1) == list(range(20))


def test_an_error_is_told_to_the_writer_whose_it_is(
    connect: Connect, begin: Any, step: Any, redis: Redis, url: str, namespace: str
) -> None:
    rights = [f"~{{{namespace}}}:*", f"~{keys.chunks_prefix(tag := keys.tag(namespace, 0))}*.000000001:*"]
    rights += [f"~{tag}:[^c]*", "+@all"]  # all keys but other writers' chunks
    redis.execute_command("ACL", "SETUSER", "one", "on", ">pw", *rights)
    store = connect(url.replace("unix://", "unix://one:pw@"), shards=1)
    good, bad = begin(store, 1), begin(store, 2)
    record = bad._record
    for row in range(4):
        good.append(step(row))
        bad.append(step(row))
    bad.append(step(4))
    store.flush()
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"writing episode {record.meta.id}: .*refuses: .*keys"):
            bad.append(step(5))
    with pytest.raises(StoreError, match="refuses"):
        bad.commit("success")
    for row in range(4, 9):
        good.append(step(row))
    assert good.commit("success")
    assert store.ids() == ["rollout.walk.000000001"]
    bad.abort()


def test_a_refusal_is_told_to_all_whom_it_concerns(
    connect: Connect, begin: Any, step: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    start_redis("--port", "0", "--unixsocket", str(socket_path))
    store = connect(f"unix://{socket_path}")
    writers = [begin(store, number) for number in range(3)]
    with Redis(unix_socket_path=str(socket_path)) as redis:
        redis.config_set("requirepass", "new")
        store._namespace.client.redis.connection_pool.disconnect()
        for writer in writers:
            for row in range(5):
                writer.append(step(row))
        for writer in writers:
            with pytest.raises(StoreUnavailable, match=r"writing episode .*: Redis at .* refuses"):
                writer.commit("success")
        redis.execute_command("AUTH", "new")
        redis.config_set("requirepass", "")


# Exactly once


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("command", "requests"), [(b"\r\nSET\r\n", 6), (b"EVALSHA", 3)])
def test_every_request_is_cut_once(
    connect: Connect,
    begin: Any,
    step: Any,
    write: Any,
    proxy: Proxy,
    redis: Redis,
    namespace: str,
    moment: str,
    command: bytes,
    requests: int,
) -> None:
    write(connect(), 0, source="demo")  # now Redis knows all scripts
    store = connect(proxy.url)
    proxy.cuts, proxy.only = cycle([moment, None]), command
    for number in range(3):
        writer = begin(store, number)
        for row in range(6):
            writer.append(step(row))
            store.flush()
        assert writer.commit("success")
    proxy.cuts = cycle([None])
    assert proxy.done == {moment: requests}
    count = store.stats().committed[("rollout", "success")]
    assert (count.episodes, count.steps) == (3, 18)
    assert len(list(redis.scan_iter(f"{{{namespace}:*:chunks:*", count=10_000))) == 3 + 3 * 2
    assert [rewards(store, number) for number in range(3)] == [list(range(6))] * 3
    assert store.verify().findings == []


def test_a_line_that_keeps_breaking(connect: Connect, begin: Any, step: Any, proxy: Proxy) -> None:
    # A store sends commits that wait together in one request. With four stores, requests are many enough to
    # be cut.
    stores, chance = [connect(proxy.url) for _ in range(4)], random.Random(0)
    proxy.cuts = iter(lambda: chance.choice([*MOMENTS, *repeat(None, 4)]), "")
    proxy.only = b"EVALSHA"

    def work(worker: int) -> int:
        committed = 0
        for number in range(32):  # two writers write each
            writer = begin(stores[worker % 4], 32 * (worker // 2) + number)
            for row in range(10):
                writer.append(step(row))
            committed += writer.commit("success")
        return committed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 128
    assert all(proxy.done[moment] > 3 for moment in MOMENTS)
    proxy.cuts = cycle([None])
    count = stores[0].stats().committed[("rollout", "success")]
    assert (count.episodes, count.steps) == (128, 1280)
    verdict = stores[0].verify()
    assert (verdict.episodes, verdict.findings) == (128, [])


PROGRAM = """
import os, sys, threading
import numpy as np
from longview.replay.config import StoreConfig
from longview.replay.episode import EpisodeMeta
from longview.replay.store import EpisodeStore

url, namespace, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = StoreConfig(chunk_steps=4, patience_seconds=float(os.environ.get("PATIENCE", "60")))
store = EpisodeStore.connect(url, namespace, config)
arrays = store.spec("walk").arrays()

def finish(number, length=10):
    writer = store.writer(EpisodeMeta(f"rollout.walk.{number:09d}", "walk", number, "rollout"))
    for row in range(length):
        step = {name: np.zeros(spec.shape, spec.dtype) for name, spec in arrays.items()}
        writer.append(step | {"reward": np.array(row, np.float32)})
    return writer.finish("success")
"""


def program(lines: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Start a process that begins with PROGRAM."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + lines, *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_64_writers_in_4_processes(connect: Connect, url: str, namespace: str) -> None:
    lines = """
committed = []
def work(worker):
    for number in range(4):
        committed.append(finish(first + 100 * worker + number).result())   # an id of this writer only
        committed.append(finish(10_000 + number).result())                 # an id of all writers
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(committed))
"""
    store = connect()
    processes = [program(lines, url, namespace, 100_000 * number) for number in range(1, 5)]
    committed = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(committed) == 4 * 16 * 4 + 4
    count = store.stats().committed[("rollout", "success")]
    assert (count.episodes, count.steps) == (260, 2600)
    verdict = store.verify()
    assert (verdict.episodes, verdict.steps, verdict.findings) == (260, 2600, [])


# Redis is full


def test_redis_at_its_memory_limit_makes_writers_wait(
    connect: Connect, begin: Any, step: Any, start_redis: StartRedis, socket_path: Path
) -> None:
    start_redis("--port", "0", "--unixsocket", str(socket_path), "--maxmemory-policy", "noeviction")
    store = connect(f"unix://{socket_path}", patience_seconds=0.5)
    patient = connect(f"unix://{socket_path}")
    hasty, waiting = begin(store, 1), begin(patient, 2)
    with Redis(unix_socket_path=str(socket_path)) as redis:
        redis.config_set("maxmemory", 1)
        for row in range(6):
            hasty.append(step(row))
            waiting.append(step(row))
        with pytest.raises(StoreFull, match=r"its own memory limit, which has to lie well above"):
            hasty.commit("success")
        with ThreadPoolExecutor(1) as pool:
            committed = pool.submit(waiting.commit, "success")
            until(lambda: patient._sender._failure)
            assert not committed.done()
            redis.config_set("maxmemory", 0)
            assert committed.result()
    assert hasty.commit("success")
    assert rewards(store, 1) == rewards(store, 2) == list(range(6))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 12 MB, and return its folder."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to fill")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_at_once_and_makes_writers_wait(
    connect: Connect,
    begin: Any,
    step: Any,
    start_redis: StartRedis,
    socket_path: Path,
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ["--port", "0", "--unixsocket", str(socket_path), "--appendonly", "yes"]
    options += ["--dir", str(small_disk), "--auto-aof-rewrite-percentage", "0"]
    server = start_redis(*options)
    store = connect(f"unix://{socket_path}", patience_seconds=1.0, compression=0)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(10 << 20))
    acknowledged: list[int] = []

    def write(number: int) -> None:
        writer = begin(store, number)
        for row in range(400):
            writer.append(step(row))
        writer.commit("success")
        acknowledged.append(number)

    def write_until_it_fails() -> None:
        for number in range(1000):
            write(number)

    with pytest.raises(StoreUnavailable, match=r"could not write to its disk for 1 s: .*MISCONF"):
        write_until_it_fails()
    said = [text for text in caplog.messages if "trying again for 1 s" in text]
    assert ["could not write to its disk" in text for text in said] == [True], "once, before it fails"
    assert 5 < len(acknowledged) < 100
    assert store.stats().total.episodes >= len(acknowledged), "reading goes on"
    filler.unlink()
    until_taken(store.flush)
    for number in range(len(acknowledged) + 1, len(acknowledged) + 10):
        until_taken(lambda number=number: write(number))
    # The episode that was being committed when the disk was full is stored too.
    expected = {f"rollout.walk.{number:09d}" for number in range(len(acknowledged) + 1)}
    assert set(store.ids()) == expected
    server.send_signal(signal.SIGKILL)
    server.wait()
    start_redis(*options)
    until(lambda: connect(f"unix://{socket_path}"))
    verdict = store.verify()
    assert (verdict.episodes, verdict.findings) == (len(expected), [])


# The end


def test_closing_waits_for_what_is_under_way(connect: Connect, begin: Any, step: Any, proxy: Proxy) -> None:
    store = connect(proxy.url, call_seconds=1.0)
    proxy.hold.clear()
    for number in range(5):
        writer = begin(store, number)
        for row in range(6):
            writer.append(step(row))
        writer.finish("success")
    threading.Timer(0.2, proxy.hold.set).start()
    store.close()
    assert len(connect().ids()) == 5


def test_closing_says_what_it_gives_up(connect: Connect, begin: Any, step: Any, proxy: Proxy) -> None:
    store = connect(proxy.url, call_seconds=0.2, patience_seconds=0.4)
    proxy.hold.clear()
    receipts = []
    for number in range(2):
        writer = begin(store, number)
        writer.append(step(0))
        receipts.append(writer.finish("success"))
    begin(store, 2).append(step(0))  # without a commit, dropping it is no loss
    with pytest.raises(StoreUnavailable, match=r"gave up 2: committing episode rollout.walk.000000000"):
        store.close()
    for receipt in receipts:
        with pytest.raises(StoreUnavailable):
            receipt.result()
    store.close()
    proxy.hold.set()


def test_a_process_that_ends_leaves_nothing_behind(connect: Connect, url: str, namespace: str) -> None:
    store = connect()
    lines = "[finish(first + number) for number in range(50)]"
    process = program(lines, url, namespace, 0)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert len(store.ids()) == 50
    assert store.verify().findings == []


def test_a_process_ends_without_redis_too(
    connect: Connect, start_redis: StartRedis, socket_path: Path, namespace: str
) -> None:
    server = start_redis("--port", "0", "--unixsocket", str(socket_path))
    connect(f"unix://{socket_path}")
    lines = """
print("ready", flush=True)
sys.stdin.readline()
[finish(first + number) for number in range(3)]
"""
    process = program(lines, f"unix://{socket_path}", namespace, 0, PATIENCE="0.5")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.kill()
    server.wait()
    _, errors = process.communicate("\n", timeout=20)
    assert "gave up 3: committing episode rollout.walk.000000000" in errors


def test_a_forked_process_writes_for_itself(connect: Connect, url: str, namespace: str) -> None:
    lines = """
import warnings
warnings.simplefilter("ignore")
mine = [finish(number) for number in range(20)]
child = os.fork()
if child == 0:
    assert store.queue().chunks == 0
    os._exit(not all(finish(100 + number).result() for number in range(20)))
print(os.waitpid(child, 0)[1], all(receipt.result() for receipt in mine))
"""
    store = connect()
    process = program(lines, url, namespace, 0)
    assert process.communicate(timeout=60) == ("0 True\n", "")
    assert len(store.ids()) == 40
    assert store.verify().findings == []


@pytest.mark.parametrize(
    ("raised", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (ValueError, RuntimeError)]
)
def test_a_ctrl_c_that_comes_while_a_wait_begins_is_not_replaced(
    raised: type[BaseException], seen: type[BaseException]
) -> None:
    """The lock is released already, and the wait has not begun."""

    def interrupted() -> None:
        with condition:
            condition.release()
            raise raised

    condition = InterruptibleCondition()
    with pytest.raises(seen):
        interrupted()
