"""Run folders: `runs/<name>/` holds everything of a run, and a lock tells whether it is under way.

config.yaml         as resolved       summary.json  what a script reads
run.json            where it can be reached while under way     report.html  what a person reads
evaluations.jsonl   a line per version and context length       success.png
series.jsonl        throughput, staleness and losses over time
checkpoints/        log.txt           redis/  the embedded store's data
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from longview.cluster.run.config import (
    ConfigError,
    MonitoringConfig,
    RunConfig,
    read_config,
    task_of,
    write_config,
)
from longview.cluster.run.services import redis_server
from longview.replay.store import EpisodeStore

ROOT = Path(os.environ.get("LONGVIEW_RUNS", "runs"))
POLICY = "policy.safetensors"


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what to do."""


@dataclass
class Run:
    """A run's folder."""

    path: Path
    _lock: TextIO | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> RunConfig:
        """As it was resolved when the run was first launched."""
        return read_config(self.path / "config.yaml")

    def lock(self) -> None:
        """Become the one process that runs it, until `unlock`, or until this process ends, however it ends.

        Raises:
            RunError: another process is.
        """
        lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(
                f"run {self.name} is under way (process {self.state().get('pid')}): "
                f"`longview status {self.name}` shows it, `longview stop {self.name}` ends it"
            ) from None
        self._lock = lock

    def unlock(self) -> None:
        """Let others run it."""
        if self._lock is not None:
            self._lock.close()

    def under_way(self) -> bool:
        """Whether a process holds the lock."""
        try:
            lock = (self.path / "lock").open("r")
        except FileNotFoundError:
            return False
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def state(self) -> dict[str, Any]:
        """What the process that runs it wrote down for others: its pid and host, where its metrics and store
        are."""
        with suppress(FileNotFoundError, ValueError):
            state: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return state
        return {}

    def write_state(self, **news: Any) -> None:
        """Add to what `state` reads, of this process. Never pass a URL with its password."""
        known, me = self.state(), {"pid": os.getpid(), "host": socket.gethostname()}
        mine = known if known.items() >= me.items() else me
        if mine | news != known:
            write_atomically(self.path / "run.json", json.dumps(mine | news, indent=2) + "\n")

    def evaluations(self) -> list[dict[str, Any]]:
        """Every finished evaluation of a version at a context length, oldest first."""
        return read_rows(self.path / "evaluations.jsonl")

    def add_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Append one."""
        append_row(self.path / "evaluations.jsonl", evaluation)

    @property
    def series(self) -> Path:
        """How throughput, staleness and losses went: lines for `longview.cluster.run.series`."""
        return self.path / "series.jsonl"


def create_run(config: RunConfig, root: Path = ROOT) -> Run:
    """A new, locked run folder with the config in it.

    Raises:
        RunError: a run of this name exists.
    """
    name = config.name or f"{task_of(config).spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = root / name
    for attempt in range(1, 100):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if config.name is not None:
                raise RunError(
                    f"{path} exists: choose another name, or go on with it by --resume {name}"
                ) from None
            path = root / f"{name}-{attempt + 1}"
    run = Run(path)
    run.lock()
    write_config(config, path / "config.yaml")
    return run


def resumable_run(config: RunConfig, root: Path = ROOT) -> Run | None:
    """The run of the config's name, if it has been launched before.

    Raises:
        ConfigError: the config gives no name.
    """
    if config.name is None:
        raise ConfigError("--or-resume needs to know the run: give it a name, in the config or as name=NAME")
    run = Run(root / config.name)
    if not run.path.exists():
        return None
    if not (run.path / "config.yaml").exists():  # its first launch was killed at once
        write_config(config, run.path / "config.yaml")
    return run


def find_run(name: str, root: Path = ROOT) -> Run | None:
    """An existing run by name or path, if there is one."""
    for path in (root / name, Path(name)):
        if (path / "config.yaml").exists():
            return Run(path)
    return None


def open_run(name: str | None, root: Path = ROOT) -> Run:
    """An existing run: by name, by path, or the newest.

    Raises:
        RunError: there is none.
    """
    if name is not None and (found := find_run(name, root)):
        return found
    runs = sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    if name is None and runs:
        return Run(runs[-1].parent)
    known = ", ".join(file.parent.name for file in runs[-5:]) or "none yet"
    asked = f"no run {name!r}" if name is not None else "no run"
    raise RunError(f"{asked} in {root}/ (newest: {known})")


def prometheus_under_way(root: Path = ROOT) -> str | None:
    """The address of the Prometheus of the newest run, if that is under way and has one."""
    with suppress(RunError):
        run = open_run(None, root)
        return run.state().get("prometheus") if run.under_way() else None
    return None


def find_policy(path: Path) -> Path:
    """The weights that a path means: the file itself, that of a checkpoint, or a run's newest.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file():
        return path
    for found in (path / POLICY, *sorted(path.glob(f"checkpoints/step-*/{POLICY}"), reverse=True)):
        if found.exists():
            return found
    raise ConfigError(
        f"{path} is no checkpoint: expected {POLICY}, or a folder that holds it, or a run's folder"
    )


@contextmanager
def open_store(run: Run, url: str | None) -> Iterator[EpisodeStore]:
    """A run's episode store: at that URL, or where the run has it; a store of its own is started on its
    data if the run is not under way."""
    with ExitStack() as services:
        config = run.config.replay
        url = url or config.url or (run.state().get("store") if run.under_way() else None)
        if url is None:
            run.lock()
            services.callback(run.unlock)
            url = services.enter_context(redis_server(run.path / "redis", config.fsync))
        store = EpisodeStore.connect(url, run.name, config)
        services.callback(store.close)
        yield store


def refuse_port_in_use(config: MonitoringConfig) -> None:
    """Fail now rather than after everything has started.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"monitoring.port {config.port} on monitoring.host {config.host} cannot be used "
                f"({error.strerror}): choose another, or 0 for any that is free"
            ) from None


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that `append_row` wrote; none where there is no file."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):  # a crash may have cut a line short; it counts as not written
            rows.append(json.loads(line))
    return rows


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON."""
    with file.open("ab+") as lines:
        if lines.tell() > 0:
            lines.seek(-1, os.SEEK_END)
            if lines.read(1) != b"\n":
                lines.write(b"\n")
        lines.write(json.dumps(row).encode() + b"\n")


def write_atomically(file: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old or the new one, never half of it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
