"""Copies of a run's results at a URL, made while the run is under way, and runs brought back from there.

<copy_to>/<name>/    laid out like the run's folder: results and checkpoints, without the episodes
"""

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from longview.cluster.run.config import ConfigError, RunConfig
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import HELD_OUT, ROOT, Run, RunError, open_run
from longview.learner.files import START, STATE, folders
from longview.replay.names import check_name

log = logging.getLogger(__name__)

FILES: Final = (
    *("origin.json", "config.yaml", "evaluations.jsonl", "series.jsonl", "scale.json", "collected.json"),
    *(HELD_OUT, "summary.json", "report.html", "*.png", "log.txt"),
    *("checkpoints/diverged-*.json", f"checkpoints/{START}", "mirrors.json", "tensorboard/*"),
)
"""Patterns of the files of a run's folder that are copied, besides its checkpoints."""
LOOK_SECONDS: Final = 30.0
"""Longest time between two looks for changed files."""
RETRY_SECONDS: Final = 1.0
"""Wait after a failure. It doubles with each further one, up to `LOOK_SECONDS`."""
END_SECONDS: Final = 60.0
"""Longest wait for the copy when the run has ended. Kubernetes' ends of a job and of a pod wait longer."""


class Copies:
    """A thread that copies what has changed in a run's folder to a URL, until `close`. No failure of it ends
    the run: each is logged, counted, and tried again."""

    def __init__(self, run: Run, url: str) -> None:
        """
        Args:
            run: the run's folder.
            url: folder of the copies of all runs.
        """
        self.failures = 0
        """Copies that failed and were tried again."""
        self._run, self._url = run, copy_of(url, run.name)
        self._copied: dict[str, tuple[int, int]] = {}
        """Time of change in nanoseconds and size of each file as copied, by its path in the folder."""
        self._kept = set[str]()
        """Checkpoints that the run had when those it had removed were last removed from the copy."""
        self._ours, self._complete = False, False
        self._ending, self._deadline = threading.Event(), float("inf")
        self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
        self._thread.start()

    def close(self, patience: float = END_SECONDS) -> None:
        """Copy what has changed last, and end the thread. A message names what could not be copied.

        Args:
            patience: longest wait in seconds.
        """
        self._deadline = time.monotonic() + patience
        self._ending.set()
        self._thread.join(patience)
        if not self._complete:
            missing = ", ".join(str(path.relative_to(self._run.path)) for path in self._changed())
            log.error("not copied to %s: %s", self._url, missing)
            print(f"longview: not copied to {self._url}: {missing}", file=sys.stderr)

    def _work(self) -> None:
        pause, retry = 0.0, RETRY_SECONDS
        while not self._complete and time.monotonic() < self._deadline:
            last = self._ending.wait(pause)
            try:
                self._copy()
            except Exception as error:  # every kind of file system has errors of its own
                self.failures += 1
                log.warning("copying to %s failed and is tried again: %s", self._url, error)
                if last:
                    time.sleep(RETRY_SECONDS)
                pause, retry = retry, min(2 * retry, LOOK_SECONDS)
            else:
                self._complete = last
                pause, retry = LOOK_SECONDS, RETRY_SECONDS

    def _copy(self) -> None:
        """Copy every changed file, then remove the copies of checkpoints that the run has removed."""
        system, target = _file_system(self._url)
        if not self._ours:
            self._refuse_anothers(system, target)
            self._ours = True
        for path in self._changed():
            name = path.relative_to(self._run.path).as_posix()
            try:
                state = _state(path)
                system.put_file(str(path), f"{target}/{name}")
            except FileNotFoundError:
                if path.exists():  # otherwise the run has removed an old checkpoint meanwhile
                    raise
                continue
            self._copied[name] = state
        kept = {folder.name for folder in folders(self._run.checkpoints)}
        if kept and kept != self._kept:
            for copied in _listed(system, f"{target}/checkpoints"):
                if (step := PurePosixPath(copied).name).startswith("step-") and step not in kept:
                    system.rm(copied, recursive=True)
            self._kept = kept

    def _changed(self) -> list[Path]:
        """List the files that have changed since they were copied. Of the checkpoints the newest comes first.
        The file that makes a checkpoint complete comes after its others."""
        files = [file for pattern in FILES for file in sorted(self._run.path.glob(pattern))]
        for folder in reversed(folders(self._run.checkpoints)):
            with suppress(FileNotFoundError):
                files += sorted(folder.iterdir(), key=lambda file: file.name == STATE)
        changed = []
        for file in files:
            with suppress(FileNotFoundError):
                if self._copied.get(file.relative_to(self._run.path).as_posix()) != _state(file):
                    changed.append(file)
        return changed

    def _refuse_anothers(self, system: Any, target: str) -> None:
        """Refuse a folder that holds the results of another run.

        Raises:
            RunError: it does.
        """
        try:
            origin = json.loads(system.cat_file(f"{target}/origin.json"))
        except FileNotFoundError:
            return
        if origin["owner"]["id"] != self._run.origin.owner.id:
            raise RunError("another run of this name has its results there: give another name or copy_to")


@contextmanager
def copying(run: Run, url: str | None) -> Iterator[Copies | None]:
    """Copy a run's results to a URL until the context ends; the newest are there by then.

    Args:
        run: the run's folder.
        url: folder of the copies of all runs; None copies nothing.
    """
    if url is None:
        yield None
        return
    copies = Copies(run, url)
    with ending(copies.close):
        yield copies


def refuse_uncopyable(config: RunConfig) -> None:
    """Refuse a URL of copies whose kind is unknown, or needs a package that is not installed.

    Raises:
        ConfigError: it does; the message says what to do.
    """
    if config.copy_to is None:
        return
    try:
        _file_system(config.copy_to)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"copy_to {config.copy_to}: {error} (pip install 'longview[copies]')") from None


def copy_of(url: str, name: str) -> str:
    """Return the URL of a run's copy, in the folder of all copies."""
    return f"{url.rstrip('/')}/{name}"


def has_copy(url: str) -> bool:
    """Tell whether a URL holds the copy of a run.

    Raises:
        RunError: the URL cannot be read.
    """
    system, source = _file_system(url)
    try:
        system.info(f"{source}/config.yaml")
    except FileNotFoundError:
        return False
    except Exception as error:  # every kind of file system has errors of its own
        raise RunError(f"{url} cannot be read: {error}") from error
    return True


def bring_back(url: str, root: Path = ROOT) -> Run:
    """Make a run's folder from its copy. Checkpoints that were not copied completely are left out.

    Args:
        url: URL of the run's copy, which ends in the run's name.
        root: folder of all runs.

    Raises:
        RunError: the URL cannot be read or holds no run, or the run's folder exists.
        OSError: the folder cannot be written.
    """
    system, source = _file_system(url)
    name = PurePosixPath(source).name
    try:
        check_name(name)
    except ValueError as error:
        raise RunError(f"{url}: {error}") from None
    run = Run(root / name)
    if run.path.exists():
        raise RunError(f"{run.path} exists: go on with it by --resume {run.typed}, or move it away")
    if not has_copy(url):
        raise RunError(f"{url} holds no copy of a run: it has no config.yaml")
    system.invalidate_cache()
    found = [path.removeprefix(f"{source}/") for path in system.find(source)]
    parents = {path: PurePosixPath(path).parent for path in found}
    complete = {parents[path] for path in found if PurePosixPath(path).name == STATE}
    draft = root / f".{name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    for path in found:
        if not parents[path].name.startswith("step-") or parents[path] in complete:
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{source}/{path}", str(draft / path))
    draft.rename(run.path)
    return run


def resumed(name: str) -> Run:
    """Find the run to go on with by its name or path, or bring it back from the URL of its copy.

    Raises:
        RunError: there is none, or it cannot be brought back.
    """
    return bring_back(name) if "://" in name else open_run(name)


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        ImportError: it needs a package that is not installed.
        ValueError: no such file system is known.
    """
    from fsspec.core import url_to_fs

    options = {"auto_mkdir": True} if url.startswith("file://") else {}  # object stores have no folders
    system, path = url_to_fs(url, **options)
    return system, path.rstrip("/")


def _listed(system: Any, folder: str) -> list[str]:
    """List the paths in a folder; none if it does not exist."""
    system.invalidate_cache()
    try:
        return list(system.ls(folder, detail=False))
    except FileNotFoundError:
        return []


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
