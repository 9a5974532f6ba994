"""Run folders. `runs/<name>/` holds everything of a run; its lock tells whether the run is under way.

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from longview.cluster.run.config import (
    ConfigError,
    MonitoringConfig,
    RunConfig,
    read_config,
    read_yaml,
    task_of,
    write_config,
)
from longview.cluster.run.services import redis_server
from longview.cluster.run.upgrade import is_old
from longview.monitoring.success import Evaluation
from longview.replay.config import StoreConfig

if TYPE_CHECKING:
    from longview.replay.store import EpisodeStore, StoreAddress

ROOT = Path(os.environ.get("LONGVIEW_RUNS", "runs"))
"""Folder of all runs."""


class RunError(Exception):
    """A request that the run's folder or state does not allow; the message says what to do."""


@dataclass
class Run:
    """A run's folder."""

    path: Path
    """The folder itself."""
    _lock: TextIO | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the run, and of its folder."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def config(self) -> RunConfig:
        """The config as it was resolved when the run was first launched."""
        return self.configured()

    def configured(self, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the config as it was resolved when the run was first launched, with `key=value` overrides.

        Raises:
            ConfigError: the config was written by Longview 0.1, or an override does not fit.
        """
        file = self.path / "config.yaml"
        if is_old(read_yaml(file)):
            raise ConfigError(
                f"run {self.name} is of Longview 0.1: `longview store migrate {self.name}` brings it over"
            )
        return read_config(file, overrides)

    def lock(self) -> None:
        """Take the run for this process, until `unlock` or until this process ends, however it ends.

        Raises:
            RunError: another process has it.
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
        """Leave the run to other processes."""
        if self._lock is not None:
            self._lock.close()

    def under_way(self) -> bool:
        """Whether a process has taken the run."""
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
        """Read what the run's process wrote down for others: its pid and host, where its metrics and store
        are. Empty if it has written nothing."""
        with suppress(FileNotFoundError, ValueError):
            state: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return state
        return {}

    def write_state(self, **news: Any) -> None:
        """Add to what `state` reads. What another process wrote is dropped. Never pass a URL with its
        password."""
        known, me = self.state(), {"pid": os.getpid(), "host": socket.gethostname()}
        mine = known if known.items() >= me.items() else me
        if mine | news != known:
            write_atomically(self.path / "run.json", json.dumps(mine | news, indent=2) + "\n")

    def evaluations(self) -> list[Evaluation]:
        """Read all finished evaluations, oldest first."""
        return [Evaluation.from_dict(line) for line in read_rows(self.path / "evaluations.jsonl")]

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write down a finished evaluation."""
        append_row(self.path / "evaluations.jsonl", evaluation.to_dict())

    @property
    def series(self) -> Path:
        """File of throughput, staleness and losses over time, kept by `longview.cluster.run.series`."""
        return self.path / "series.jsonl"


def create_run(config: RunConfig, root: Path = ROOT) -> Run:
    """Create a locked run folder with the config in it.

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
    """Find the run of the config's name; None if it was never launched.

    Raises:
        ConfigError: the config gives no name.
    """
    if config.name is None:
        raise ConfigError("--or-resume needs to know the run: give it a name, in the config or as name=NAME")
    run = Run(root / config.name)
    if not run.path.exists():
        return None
    if not (run.path / "config.yaml").exists():  # its first launch was killed right after it made the folder
        write_config(config, run.path / "config.yaml")
    return run


def find_run(name: str, root: Path = ROOT) -> Run | None:
    """Find an existing run by name or path; None if it does not exist."""
    for path in (root / name, Path(name)):
        if (path / "config.yaml").exists():
            return Run(path)
    return None


def open_run(name: str | None, root: Path = ROOT) -> Run:
    """Find an existing run by name or path, or the newest run.

    Raises:
        RunError: it does not exist; the message names the newest runs.
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
    """Find the Prometheus of the newest run; None unless that run is under way and has one."""
    with suppress(RunError):
        run = open_run(None, root)
        return run.state().get("prometheus") if run.under_way() else None
    return None


@contextmanager
def store_of(run: Run, config: StoreConfig) -> "Iterator[StoreAddress]":
    """Provide the store of a locked run. Without a URL in the config it is a Redis that lasts as long as the
    context."""
    from longview.replay.store import StoreAddress

    with ExitStack() as services:
        url = config.url or services.enter_context(redis_server(run.path / "redis", config.fsync))
        yield StoreAddress(url, run.name)


@contextmanager
def open_store(run: Run, url: str | None) -> "Iterator[EpisodeStore]":
    """Open a run's episode store. If the run is not under way and has its own store, a Redis is started on
    the run's data for as long as the context lasts.

    Args:
        run: the run.
        url: Redis to look in; by default the run's.

    Raises:
        RunError: the run is under way, and its store's address is not known yet.
        StoreError: Redis cannot be reached.
    """
    from longview.replay.store import EpisodeStore

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
    """Refuse a metrics port that cannot be listened on, before anything has started.

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
    """Read the lines of a file that `append_row` wrote; none if the file does not exist."""
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
    """Replace a file's content. A reader, or a crash, finds the old or the new content, never a half."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
