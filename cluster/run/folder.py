"""Run folders. `runs/<name>/` holds everything of a run; its lock tells whether the run is under way.

config.yaml         as resolved       summary.json  what a script reads
origin.json         what the run was when it was made; stays when the folder is renamed
run.json            where it can be reached while under way     report.html  what a person reads
evaluations.jsonl   a line per version and context length       success.png
series.jsonl        throughput, staleness and losses over time
import.json         what was imported, of a run on recorded data
held_out.json       episodes that a run on recorded data validates on
collected.json      what collection has cost so far
checkpoints/        log.txt           redis/  the embedded store's data
tensorboard/        wandb/            curves over training steps, of a run with mirrors
mirrors.json        the last training step of each of these curves
"""

import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
from longview.cluster.run.ending import ending
from longview.cluster.run.services import redis_server
from longview.cluster.run.upgrade import is_old
from longview.monitoring.success import Evaluation
from longview.replay.config import StoreConfig, with_password
from longview.replay.names import check_name
from longview.replay.owner import Owner

if TYPE_CHECKING:
    from longview.replay.store import EpisodeStore, StoreAddress

ROOT = Path(os.environ.get("LONGVIEW_RUNS", "runs"))
"""Folder of all runs."""

IMPORT = "import.json"
"""File of a run on recorded data: what became of each part of its data sets."""

HELD_OUT = "held_out.json"
"""File of a run on recorded data: ids of the episodes that it validates on."""

LEASE_SECONDS = 300.0
"""Longest wait for the lock of an attempt that is gone. If its machine died, an NFS server frees the lock
only when its lease ends, after a minute or two."""
LOCK_LOOK_SECONDS = 0.5
"""Time between two looks at a lock."""


class RunError(Exception):
    """A request that the run's folder or state does not allow; the message says what to do."""


@dataclass(frozen=True)
class Origin:
    """Facts from a run's beginning. They stay when its folder is renamed, moved or copied."""

    namespace: str
    """Namespace of the run's episodes in Redis: the run's first name."""
    owner: Owner
    """Owner of the namespace: the run's id, task and seed."""
    folder: str
    """Absolute path of the run's folder when the run was last under way."""


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
    def typed(self) -> str:
        """Name of the run as one types it in a shell."""
        return shlex.quote(self.name)

    @property
    def origin(self) -> Origin:
        """Facts from the run's beginning; made from its config if version 0.1 began it without them."""
        try:
            found = json.loads((self.path / "origin.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            config = self.config
            return _origin_of(config, config.name or self.name, self.path)
        return Origin(**found | {"owner": Owner(**found["owner"])})

    @property
    def namespace(self) -> str:
        """Namespace of the episodes that the run works on: another's, where it only reads a store."""
        return self.config.data.namespace or self.origin.namespace

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
                f"run {self.name} is of Longview 0.1: `longview store migrate {self.typed}` brings it over"
            )
        return read_config(file, overrides)

    def lock(self, patience: float = 0.0) -> None:
        """Take the run for this process, until `unlock` or until this process ends, however it ends.

        Args:
            patience: seconds to wait for another process to leave the run.

        Raises:
            RunError: another process has it.
        """
        deadline, said = time.monotonic() + patience, False
        lock = (self.path / "lock").open("w")
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    lock.close()
                    raise RunError(
                        f"run {self.name} is under way (process {self.state().get('pid')}): "
                        f"`longview status {self.typed}` shows it, `longview stop {self.typed}` ends it"
                    ) from None
            if not said:
                print(f"longview: waiting up to {patience:g} s until {self.name} is free", file=sys.stderr)
                said = True
            time.sleep(LOCK_LOOK_SECONDS)
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

    def expert_steps(self) -> int | None:
        """Read the steps that the expert has made for what was collected; None if nothing says it."""
        with suppress(FileNotFoundError):
            return int(json.loads((self.path / "collected.json").read_text())["expert_steps"])
        return None

    def write_expert_steps(self, steps: int) -> None:
        """Write down the steps that the expert has made for what was collected."""
        write_atomically(self.path / "collected.json", json.dumps({"expert_steps": steps}) + "\n")

    @property
    def series(self) -> Path:
        """File of throughput, staleness and losses over time, kept by `longview.cluster.run.series`."""
        return self.path / "series.jsonl"


def take_run(config: RunConfig, run: Run | None, root: Path = ROOT, patience: float = 0.0) -> Run:
    """Lock a run for this process.

    Args:
        config: the run's config.
        run: the run to go on with; None creates one.
        root: folder of all runs.
        patience: seconds to wait for another process to leave the run.

    Raises:
        RunError: the run cannot be created, is under way, was made for another task or with another seed, or
            is a copy that would write into the store of the original.
    """
    if run is None:
        return create_run(config, root)
    origin, here = run.origin, str(run.path.absolute())
    now = Owner(origin.owner.id, task_of(config).spec.name, config.seed)
    for key in ("task", "seed"):
        made_with, asked = getattr(origin.owner, key), getattr(now, key)
        if made_with != asked:
            raise RunError(
                f"run {run.name} was made with {key} {made_with}, not {asked}: its episodes, checkpoints and "
                f"results are of that {key}. Go on with it without {key}={asked}, or launch another run"
            )
    if config.replay.url is not None and _is_copy(run, origin):
        raise RunError(
            f"{run.path} is a copy of {origin.folder}, and both would write into namespace "
            f"{origin.namespace} of the same Redis: go on with the original, or launch another run"
        )
    run.lock(patience)
    _write_origin(run, replace(origin, folder=here))
    return run


def _is_copy(run: Run, origin: Origin) -> bool:
    """Whether the folder that the run was last under way in is another one, and still the run's."""
    original = find_run(origin.folder)
    return (
        original is not None
        and not original.path.samefile(run.path)
        and original.origin.owner.id == origin.owner.id
    )


def create_run(config: RunConfig, root: Path = ROOT, owner: str | None = None) -> Run:
    """Create a locked run folder with the config in it.

    Args:
        config: the run's config.
        root: folder of all runs.
        owner: id of the owner of the run's namespace; None: a random one.

    Raises:
        RunError: a run of this name exists, or the run needs a shorter name.
        OSError: the folder cannot be written; nothing is left of it.
    """
    name = config.name or f"{task_of(config).spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        check_name(name)
    except ValueError as error:
        raise RunError(f"{error}; give another by name=NAME") from None
    path = root / name
    for attempt in range(1, 100):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if config.name is not None:
                raise RunError(
                    f"{path} exists: choose another name, or go on with it by --resume {Run(path).typed}"
                ) from None
            path = root / f"{name}-{attempt + 1}"
    run = Run(path)
    try:
        run.lock()
        _begin(run, config, owner)
    except BaseException:
        run.unlock()
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def _begin(run: Run, config: RunConfig, owner: str | None = None) -> None:
    """Write the files of a run that has not begun. The config comes last, because it makes the folder a
    run."""
    _write_origin(run, _origin_of(config, run.name, run.path, owner))
    with naming(run.path / "config.yaml") as file:
        write_config(config, file)


def _origin_of(config: RunConfig, namespace: str, folder: Path, owner: str | None = None) -> Origin:
    """Make the origin of a new run."""
    id = owner or secrets.token_hex(16)
    return Origin(namespace, Owner(id, task_of(config).spec.name, config.seed), str(folder.absolute()))


def _write_origin(run: Run, origin: Origin) -> None:
    write_atomically(run.path / "origin.json", json.dumps(asdict(origin), indent=2) + "\n")


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
        _begin(run, config)
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
        yield StoreAddress(url, run.namespace)


@contextmanager
def any_store(name: str | None, url: str | None) -> "Iterator[EpisodeStore]":
    """Open the store that a command names: a run's, or with a URL also a namespace that belongs to no run
    here.

    Args:
        name: name of a run, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own. The environment may hold its password.

    Raises:
        RunError: as for `open_run` and `open_store`, or the namespace breaks the rule of `check_name`.
        StoreError: Redis cannot be reached.
    """
    from longview.replay.store import StoreAddress

    if url is None or name is None or find_run(name):
        with open_store(open_run(name), url) as store:
            yield store
        return
    try:
        check_name(name, "namespace")
    except ValueError as error:
        raise RunError(str(error)) from None
    store = StoreAddress(with_password(url), name).connect(StoreConfig())
    with ending(store.close):
        yield store


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
    from longview.replay.store import StoreAddress

    with ExitStack() as services:
        config = run.config.replay
        if url is not None:
            url = with_password(url)
        else:
            url = config.url or (run.state().get("store") if run.under_way() else None)
        if url is None:
            run.lock()
            services.callback(run.unlock)
            url = services.enter_context(redis_server(run.path / "redis", config.fsync))
        store = StoreAddress(url, run.namespace).connect(config)
        services.enter_context(ending(store.close))
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
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):  # a crash may have cut a line short; it counts as not written
            rows.append(json.loads(line))
    return rows


def append_row(file: Path, row: dict[str, Any], *, sync: bool = False) -> None:
    """Append a line of JSON; with `sync` it is on the disk afterwards."""
    with naming(file), file.open("ab+") as lines:
        if lines.tell() > 0:
            lines.seek(-1, os.SEEK_END)
            if lines.read(1) != b"\n":
                lines.write(b"\n")
        lines.write(json.dumps(row).encode() + b"\n")
        if sync:
            lines.flush()
            os.fsync(lines.fileno())


def write_atomically(file: Path, text: str) -> None:
    """Replace a file's content. A reader, or a crash, finds the old or the new content, never a half."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with naming(file), ending(lambda: draft.unlink(missing_ok=True)):
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)


@contextmanager
def naming(file: Path) -> Iterator[Path]:
    """Let an OSError inside the context name the file. An error of opening names it anyway, but one of
    writing, such as on a full disk, does not."""
    try:
        yield file
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
