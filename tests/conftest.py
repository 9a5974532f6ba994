"""For tests of whole runs: real processes, found again by a tag in their environment."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
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

TAG = "LONGVIEW_TEST_TAG"

# Python ignores Ctrl-C where its parent does, as a test runner in the background may.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "longview"
from longview.cluster.cli import main
main()
"""

# A request on stdin is a line: folder, environment, file for the output, arguments. The answer is two lines:
# the number of the process, and its exit code.
FORKING = """
import gc, importlib, json, os, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from longview.cluster.cli import main
gc.freeze()  # so that forks neither visit nor copy what is imported
for request in sys.stdin:
    pid = os.fork()
    if pid == 0:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
folder, environment, output, arguments = json.loads(request)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for place, file, mode in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY)):
    os.dup2(os.open(file, mode), place)
os.dup2(1, 2)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["longview", *arguments]
main()
"""

# What every command imports that is given a config: nothing heavy, and nothing of an extra.
COMMON_IMPORTS = (
    *("longview.cluster.run.preflight", "longview.cluster.run.start", "longview.cluster.run.services"),
    *("longview.monitoring.grafana", "longview.replay.errors"),
)

# What commands import that collect or train: PyTorch loads its compiler with the first step of an optimizer.
SLOW_IMPORTS = (
    *("torch", "torch._dynamo", "matplotlib.figure", "zarr"),
    *("longview.cluster.commands.collect", "longview.cluster.commands.train", "longview.learner.train"),
)


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


class Forks:
    """Runs `longview` in forks of one process, which has imported what the command needs already.

    A fork is a process of its own: it differs from one that Python starts in taking no second of imports, and
    in that variables which are read at the start of Python have no effect.
    """

    def __init__(self, imports: Iterable[str], before: str = "") -> None:
        """Start the process that forks.

        Args:
            imports: modules to import.
            before: Python to run before that.
        """
        self._server = subprocess.Popen(
            [sys.executable, "-c", before + FORKING, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[int, str]:
        """Run a command to its end: exit code and output."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with NamedTemporaryFile("r") as output:
            request = str(folder), dict(os.environ | environment), output.name, arguments
            print(json.dumps(request), file=self._server.stdin, flush=True)
            pid = int(self._server.stdout.readline())
            try:
                code = self._server.stdout.readline()
            except BaseException:  # the test takes too long
                os.kill(pid, signal.SIGKILL)
                self._server.stdout.readline()
                raise
            return int(code), output.read()

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported what `collect` and `train` need."""
    with closing(Forks(SLOW_IMPORTS)) as made:
        yield made


Forked = Callable[..., tuple[int, str]]
"""Runs a command, given its arguments and variables of its environment: exit code and output."""


@pytest.fixture
def forked(longview: Longview, forks: Forks) -> Forked:
    """Run `longview` as the fixture of that name does, without the seconds that imports take.

    Where the start of the process matters, as for Ray, signals and `LD_LIBRARY_PATH`, take `longview`.
    """

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        return forks.run(longview.folder, arguments, longview.environment | environment)

    return run
