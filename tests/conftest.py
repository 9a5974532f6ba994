"""For tests of whole runs: real processes, found again by a tag in their environment."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import Blosc

from longview.actors.tasks import push_t
from longview.cluster.roles.auth import choose_ray_auth

# Before any test imports Ray.
choose_ray_auth(None)
# Ray would start its processes at niceness 15, at which they starve beside the tests of the other process.
os.environ.setdefault("RAY_worker_niceness", "0")

LEAN_HEAD: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Options of the head of a Ray cluster, without the processes that no test asks: each takes a second to
start."""

TAG = "LONGVIEW_TEST_TAG"

# Python ignores Ctrl-C where its parent does, as a test runner in the background may.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "longview"
from longview.cluster.cli import main
main()
"""


LENGTHS = (30, 12, 45, 12, 1, 20)
"""Lengths of the episodes of `push_t_buffer`, in steps."""


@pytest.fixture(scope="session")
def push_t_buffer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay buffer of Push-T, chunked and compressed as the published one: at random the disc is sent to
    where the block is, or anywhere."""
    env, rng = push_t.PushT(push_t.spec), np.random.default_rng(0)
    states, actions = [], []
    for seed, length in enumerate(LENGTHS):
        env.reset(seed=seed)
        for step in range(length):
            agent, block = env.simulator.agent, env.simulator.block
            states.append((*agent.position, *block.position, block.angle % (2 * np.pi)))
            if step % 5 == 0:
                target = rng.choice((np.array(block.position), rng.uniform(0, 512, 2))).astype(np.float32)
            actions.append(target)
            env.step(target)
    path = tmp_path_factory.mktemp("push_t") / "replay.zarr"
    buffer = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in {
        "data/state": np.array(states, np.float32),
        "data/action": np.array(actions),
        "meta/episode_ends": np.cumsum(LENGTHS),
    }.items():
        chunks = (16, *rows.shape[1:])
        buffer.create_array(name, data=rows, chunks=chunks, compressors=Blosc("zstd", 5, Blosc.BITSHUFFLE))
    return path


class FullDisk:
    """A small disk of the test's own, which can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leaving: int = 0) -> None:
        """Use up the disk, except for this many bytes."""
        free = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as filler:
            filler.write(bytes(free.f_bavail * free.f_frsize - leaving))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[FullDisk]:
    """Mount a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield FullDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Longview:
    """The command line, run in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tag = uuid.uuid4().hex
        self.environment = {TAG: self.tag}
        """Marks every process that is ours."""
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command."""
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=self.folder,
            env=os.environ | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run a command to its end: exit code and output."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def processes(self, name: str = "") -> dict[int, str]:
        """All living processes that descend from our commands, and their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{TAG}={self.tag}".encode() in (folder / "environ").read_bytes() and name in command:
                    found[int(folder.name)] = command
        return found

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Poll until something is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds} s in vain")
            time.sleep(0.05)
        return value


@pytest.fixture
def longview(tmp_path: Path) -> Iterator[Longview]:
    """Run `longview`; whatever the test leaves behind is killed."""
    command = Longview(tmp_path)
    yield command
    for pid in command.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in command.started:
        process.communicate()
