import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from longview.replay.config import StoreConfig
from longview.replay.errors import StoreError, StoreFull, StoreUnavailable
from longview.replay.redis import keys
from longview.replay.redis.client import Client, redact
from longview.replay.store import EpisodeStore
from tests.replay.redis.test_failover import primary_of

SECRET = "hunter2-S3CRET"
StartRedis = Callable[..., "subprocess.Popen[bytes]"]


def refused(url: str) -> str:
    """Return the message with which connecting fails; check that it comes soon and hides the password."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        EpisodeStore.connect(url, "test", StoreConfig(url=url))
    assert time.monotonic() - started < 15
    shown = [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    assert not any(SECRET in text for text in shown)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pw@host:6379", "redis://***@host:6379"),
        ("rediss://user:p@w@host/1", "rediss://***@host/1"),
        ("unix:///tmp/a.sock?password=p@w", "unix:///tmp/a.sock"),
        ("unix://user@/tmp/a.sock?db=1&password=pw", "unix://***@/tmp/a.sock"),
        ("redis://host?password=pw", "redis://host"),
        ("redis://:p/w@host", "redis://***"),
        ("redis://user:12/w@host", "redis://***"),
        ("redis://user:12?w@host", "redis://***"),
        ("redis://user:12#w@host", "redis://***"),
        ("pw", "***"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(
    st.text(min_size=1), st.sampled_from(["redis://:{}@h:1/0", "rediss://u:{}@h", "unix:///s?password={}"])
)
def test_no_password_is_ever_shown(password: str, form: str) -> None:
    secret = f"<{password}>"
    assert secret not in redact(form.format(secret))


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}/x@host", f"redis://a:1/{SECRET}@host", f"http://:{SECRET}@host", SECRET]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert "expected redis://, rediss:// or unix://" in refused(url)


def test_an_option_that_does_not_exist_is_refused() -> None:
    assert "not a Redis URL: redis://host;" in refused(f"redis://host?passwrd={SECRET}")


def test_nobody_there(free_port: int) -> None:
    message = refused(f"redis://:{SECRET}@127.0.0.1:{free_port}/0")
    assert f"redis://***@127.0.0.1:{free_port}/0 did not answer" in message


def test_somebody_who_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(f"redis://:{SECRET}@127.0.0.1:{silent.getsockname()[1]}")


def test_wrong_and_right_password(start_redis: StartRedis, free_port: int) -> None:
    start_redis("--port", str(free_port), "--requirepass", "right")
    at = f"127.0.0.1:{free_port}"
    EpisodeStore.connect(f"redis://:right@{at}", "test", StoreConfig()).close()
    assert f"Redis at redis://***@{at} refuses" in refused(f"redis://:{SECRET}@{at}")
    assert "it wants a password, in the URL or in LONGVIEW_REDIS_PASSWORD" in refused(f"redis://{at}")
    assert "refuses" in refused(f"redis://{SECRET}:right@{at}")


def test_waits_for_redis_and_says_so_in_the_end(
    start_redis: StartRedis, socket_path: Path, connect: Callable[..., EpisodeStore]
) -> None:
    start = ["--port", "0", "--unixsocket", str(socket_path)]
    server = start_redis(*start)
    store = connect(f"unix://{socket_path}", patience_seconds=0.5, call_seconds=0.5)
    server.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"counting episodes: .* did not answer for 0.5 s"):
        len(store)
    assert 0.5 <= time.monotonic() - started < 3
    server.send_signal(signal.SIGCONT)
    assert len(store) == 0


def test_redis_at_its_own_memory_limit(
    start_redis: StartRedis, socket_path: Path, connect: Callable[..., EpisodeStore]
) -> None:
    limit = ("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    start_redis("--port", "0", "--unixsocket", str(socket_path), *limit)
    with pytest.raises(
        StoreFull, match=r"its own memory limit, which has to lie well above replay.byte_budget"
    ):
        connect(f"unix://{socket_path}", patience_seconds=0.3)


def test_a_redis_that_may_evict_is_refused_with_what_mends_it(
    start_redis: StartRedis, socket_path: Path, tmp_path: Path
) -> None:
    """The user may not read the config."""
    (tmp_path / "users.acl").write_text("user default on nopass ~* &* +@all -config\n")
    options = ("--maxmemory-policy", "volatile-lru", "--aclfile", str(tmp_path / "users.acl"))
    start_redis("--port", "0", "--unixsocket", str(socket_path), *options)
    with pytest.raises(
        StoreError, match=r"maxmemory-policy is volatile-lru: set it by `redis-cli CONFIG SET maxmemory-pol"
    ):
        EpisodeStore.connect(f"unix://{socket_path}", "lab", StoreConfig())


def test_one_node_of_a_cluster_that_may_evict_is_enough(cluster: Any, namespace: str) -> None:
    EpisodeStore.connect(cluster.url, namespace, StoreConfig()).close()
    primary = primary_of(cluster, keys.tag(namespace, 3))
    cluster.node(primary).execute_command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    try:
        with pytest.raises(StoreError, match=f"127.0.0.1:{primary} may evict .* is allkeys-random"):
            EpisodeStore.connect(cluster.url, namespace, StoreConfig())
    finally:
        cluster.node(primary).execute_command("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize("url", ["redis", "cluster"], indirect=True)
def test_a_conversation_that_breaks_off_spoils_no_other(url: str) -> None:
    def broken() -> Iterator[tuple[str, ...]]:
        yield "SET", "{stream}:a", "1"
        yield "INCR", "{stream}:a"
        raise KeyError

    client = Client(url, StoreConfig(max_connections=1))
    for _ in range(3):
        with pytest.raises(KeyError):
            client.stream(broken())
        commands = [("SET", "{stream}:a", "x"), ("INCR", "{stream}:a"), ("GET", "{stream}:a")]
        _, wrong, got = client.stream(commands)
        assert isinstance(wrong, ResponseError)
        assert got == b"x"
    assert client.stream([]) == []
    client.redis.close()
