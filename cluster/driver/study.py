"""The cells of a study at work: each is a run in a process of its own, as many together as there is room for.

A killed study goes on from what it has written. A finished cell is a line of the study's file, and is not run
again. A cell that was under way is a run's folder, which its next process resumes.
"""

import fcntl
import itertools
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from longview.cluster.driver.launch import cluster_nodes
from longview.cluster.driver.training import THREADS_VARIABLE
from longview.cluster.run.config import RunConfig, task_of, without_password
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import (
    LEASE_SECONDS,
    ROOT,
    Run,
    RunError,
    append_row,
    create_run,
    read_rows,
    resumable_run,
)
from longview.cluster.run.services import redis_server, spawn
from longview.cluster.run.study import (
    Cell,
    Demonstrations,
    Study,
    asked_by,
    demonstration_count,
    demonstrations_of,
    estimated_core_hours,
    finished,
    operational_settings,
    results_of,
    this_machine,
    threads_of,
    trained_alike,
)
from longview.learner.files import folders, steps
from longview.monitoring.study import StudyCell, plan_of, wanted
from longview.replay.config import PASSWORD_VARIABLE
from longview.replay.episode import episode_id
from longview.replay.errors import ReplayError
from longview.replay.store import EpisodeStore, StoreAddress

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
"""Time between two looks at the processes."""
STOP_SECONDS = 120.0
"""Longest time that a cell gets to save and end."""
OUTPUT = "output.txt"
"""File in a run's folder: what its process printed."""
ATTEMPTS = "attempts.jsonl"
"""File in a run's folder: when its processes started and ended, since its results were last written down."""


@dataclass(frozen=True)
class Tally:
    """Progress of a study within one look, first with its demonstrations, then with its cells."""

    look: str
    """The look, such as `look 1 of 2, 50 episodes`."""
    later: float
    """Estimated work of all later looks, if they decide nothing, as a multiple of this look's."""
    what: Literal["demonstrations", "cells"]
    """Kind of the runs that are counted."""
    done: int
    """Runs that have finished."""
    failed: int
    """Runs that have failed for good."""
    running: tuple[str, ...]
    """Names of the runs under way."""
    left: int
    """Runs that wait."""
    seconds_left: float | None
    """Estimated time until this look is done, from the pace so far; None before the first run has ended."""
    elapsed: float
    """Seconds since the look's first run started."""

    @property
    def seconds_later(self) -> float | None:
        """Longest time that the later looks take after this one; None while nothing can be estimated."""
        return None if self.seconds_left is None else self.later * (self.elapsed + self.seconds_left)


Tell = Callable[[Tally], None]


@dataclass(frozen=True)
class Site:
    """Where the cells of a study work."""

    folder: Path
    """Folder of the study, which holds its runs."""
    url: str
    """Redis of the study, which all its runs use."""
    address: str | None
    """An existing Ray cluster; None: every cell starts its own on this machine."""
    room: Mapping[str, float]
    """Resources that the cells may take together, by Ray's name."""
    at_once: int | None
    """Most cells at work together."""
    retries: int
    """Times that a cell which failed is run again."""
    plan: Mapping[str, Any]
    """Looks and number of comparisons of the study, which its rows tell."""


@dataclass(frozen=True)
class Job:
    """One process of a study: a run that collects demonstrations, or a cell's."""

    run: str
    """Name of the run."""
    arguments: tuple[str, ...]
    """Arguments of `longview`."""
    asked: Mapping[str, float]
    """Resources that the run takes."""
    prepare: Callable[[], object]
    """Work in this process before the job starts; it may be repeated."""
    conclude: Callable[[], object] = lambda: None
    """Work in this process after the job has ended well. It may be repeated, and raises where the job has not
    done what it should."""
    after: str | None = None
    """Name of the run that has to end before this one starts, if it is a job, too."""
    threads: int = 1
    """CPU threads of the run's learner ranks together."""


def run_study(
    study: Study, cells: Sequence[Cell], file: Path, address: str | None, tell: Tell
) -> dict[Cell, str]:
    """Run the cells of a study that its file does not hold, look by look.

    Args:
        study: the study.
        cells: its cells.
        file: file of the finished cells, to which lines are added.
        address: an existing Ray cluster; None starts one on this machine for each cell.
        tell: takes the progress, now and then.

    Returns:
        The cells that have failed, each with what went wrong.

    Raises:
        RunError: the study, or another one with this file, is under way in another process.
        OSError: the file cannot be written.
        ConfigError: the Ray cluster has no room for a cell.
        StoreError, ServiceError: the study's Redis cannot be started or reached.
    """
    folder, configured = (ROOT / study.name).absolute(), cells[0].config.replay.url
    failed: dict[Cell, str] = {}
    with ExitStack() as services:
        services.enter_context(_alone(folder, file))
        room = room_of(cells, address)
        url = configured or services.enter_context(redis_server(folder / "redis"))
        site = Site(
            folder, url, address, room, study.at_once, study.retries, plan_of(results_of(study, cells, {}))
        )
        shared, trained = demonstrations_of(cells), trained_alike(cells)
        for look, episodes in enumerate(study.looks):
            which = f"look {look + 1} of {len(study.looks)}, {episodes} episodes"
            results = results_of(study, cells, finished(file))
            lengths_of = wanted(results, look)
            todo = {
                cell.name: (cell, lengths)
                for cell, lengths in zip(cells, lengths_of, strict=True)
                if lengths and cell not in failed and not _taken(site, cell, episodes, lengths, file)
            }
            needed = {
                cell.name: shared[cell.settings] for cell, _ in todo.values() if cell.settings in shared
            }
            collecting = list(_collecting(site, {each.name: each for each in needed.values()}.values()))
            collected = _work(site, collecting, partial(Tally, which, 0.0, "demonstrations"), tell)
            lacking = {job.run: wrong for job, wrong in collected if wrong is not None}
            ready = {
                name: _job(site, cell, episodes, lengths, needed.get(name), file, trained.get(cell.settings))
                for name, (cell, lengths) in todo.items()
                if name not in needed or needed[name].name not in lacking
            }
            for name, (cell, _) in todo.items():
                if name not in ready:
                    failed[cell] = f"its demonstrations were not collected: {lacking[needed[name].name]}"
            later = _later(site, study, zip(cells, results.cells, strict=True), look, trained)
            for job, wrong in _work(site, ready.values(), partial(Tally, which, later, "cells"), tell):
                if wrong is not None:
                    failed[todo[job.run][0]] = wrong
    return failed


def room_of(cells: Sequence[Cell], address: str | None) -> dict[str, float]:
    """Return the resources that cells may take together: the CPUs of this machine, or all resources of a Ray
    cluster.

    Raises:
        ConfigError: the cluster has no room for a cell, or has nodes that cannot reach the study's Redis.
    """
    if address is None:
        return this_machine()
    together = Counter[str]()
    for node in cluster_nodes([cell.config for cell in cells], address):
        together.update(node)
    return dict(together)


def _later(
    site: Site,
    study: Study,
    cells: Iterable[tuple[Cell, StudyCell]],
    look: int,
    trained: Collection[str],
) -> float:
    """Estimate the work of all looks after one, if they decide nothing, as a multiple of that look's.

    Args:
        site: where the cells work.
        study: the study.
        cells: its cells, each with what is known of it.
        look: number of the look.
        trained: settings of the cells that take the policy of another one.
    """
    now = rest = 0.0
    for cell, found in cells:
        cpus = asked_by(cell.config, site.room, site.address)["CPU"]
        lacking = sum(max(0, study.looks[look] - found.rolled_out(length)) for length in cell.lengths)
        if lacking:
            taken = found.row is not None or cell.settings in trained
            now += estimated_core_hours(cell, lacking, cpus, trained=taken)
        for episodes, following in itertools.pairwise(study.looks[look:]):
            more = (following - episodes) * len(cell.lengths)
            rest += estimated_core_hours(cell, more, cpus, trained=True)
    return rest / now if now else 0.0


@contextmanager
def _alone(folder: Path, file: Path) -> Iterator[None]:
    """Hold the locks of a study's folder and of the file of its finished cells, until this process ends,
    however it ends. Both are made if there are none.

    Raises:
        RunError: another process has one of them.
        OSError: one of them cannot be written.
    """
    wrong = {
        folder / "lock": f"study {folder.name} is under way in another process, in {folder}",
        file: f"another study adds its cells to {file} now: wait for it, or name another file by --cells",
    }
    with ExitStack() as locks:
        for part, why in wrong.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            lock = locks.enter_context(part.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(why) from None
        yield


def _collecting(site: Site, needed: Iterable[Demonstrations]) -> Iterator[Job]:
    """Yield a job for all demonstrations that the study's Redis lacks."""
    for each in needed:
        config = each.config
        with _store(site, each.name, config) as store:
            missing = store.missing(_demonstration_ids(config, config.actors.demonstrations or 0))
        if missing:
            arguments = ("collect", config.task, "--resume", each.name, *_at_store(site))
            count = f"actors.demonstrations={config.actors.demonstrations}"
            yield Job(each.name, (*arguments, count), {"CPU": 1.0}, partial(_folder_of, site, config))


def _job(
    site: Site,
    cell: Cell,
    episodes: int,
    lengths: Sequence[int],
    shared: Demonstrations | None,
    file: Path,
    trained: Cell | None = None,
) -> Job:
    """Make the job of a cell.

    Args:
        site: where it works.
        cell: the cell.
        episodes: evaluation episodes at each context length.
        lengths: context lengths to evaluate.
        shared: demonstrations to start from; None: the run has its own.
        file: file of the finished cells.
        trained: cell whose policy this one can take; None: it trains its own.
    """
    config = replace(cell.config, name=cell.name)
    extent = f"evaluation.final_episodes={episodes}", f"evaluation.context_lengths={list(lengths)}"
    where = () if site.address is None else ("--address", site.address)
    # A run that was begun earlier has the settings of then.
    now = operational_settings(config)
    asked = asked_by(config, site.room, site.address)

    def prepare() -> None:
        _folder_of(site, config)
        if shared is not None:
            _hand_out(site, shared, config)
        if trained is not None:
            _hand_policy(site, trained, cell)

    return Job(
        cell.name,
        ("launch", "--resume", cell.name, *where, *now, *extent, *_at_store(site)),
        asked,
        prepare,
        partial(_take, site, cell, episodes, lengths, file),
        None if trained is None else trained.name,
        threads_of(config, asked, site.address),
    )


def _at_store(site: Site) -> tuple[str, ...]:
    """Return the settings with which a run finds the study's Redis; the password comes in the environment."""
    return (f"replay.url={without_password(site.url)}",)


def _folder_of(site: Site, config: RunConfig) -> None:
    """Make the folder of a run, if it has none. Wait until a process that a killed study has left behind has
    left the run."""
    run = resumable_run(config, site.folder)
    if run is None:
        # Another folder of this study, or another study, has the same cell, and may go on with its episodes.
        run = create_run(config, site.folder, owner=sha256(f"cell {config.name}".encode()).hexdigest()[:32])
    else:
        run.lock(LEASE_SECONDS)
    run.unlock()


@contextmanager
def _store(site: Site, namespace: str, config: RunConfig) -> Iterator[EpisodeStore]:
    store = StoreAddress(site.url, namespace).connect(config.replay)
    with ending(store.close):
        yield store


def _demonstration_ids(config: RunConfig, count: int) -> list[str]:
    task = task_of(config).spec.name
    return [episode_id("demo", task, index) for index in range(count)]


def _hand_out(site: Site, shared: Demonstrations, config: RunConfig) -> None:
    """Copy the demonstrations that a run needs into its namespace, as far as it lacks them."""
    with _store(site, shared.name, config) as source, _store(site, str(config.name), config) as store:
        store.register(task_of(config).spec)
        for id in store.missing(_demonstration_ids(config, demonstration_count(config))):
            store.add(source.read(id))


def _hand_policy(site: Site, trained: Cell, cell: Cell) -> None:
    """Copy the last checkpoint of a cell's run, if it has ended its training, into the run of a cell that has
    none. Without it that run trains."""
    here, there = (Run(site.folder / each.name).checkpoints for each in (cell, trained))
    if not folders(here) and steps(there)[-1:] == [trained.config.learner.steps]:
        last = folders(there)[-1]
        unfinished = here / "handed"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(last, unfinished)
        if (policy := cell.config.learner.policy) != trained.config.learner.policy:
            # Imported here because it imports torch, which most studies need in their cells alone.
            from longview.learner.checkpoint import reconfigure

            try:
                reconfigure(unfinished, policy)
            except (OSError, ValueError, KeyError) as error:
                log.warning("%s trains by itself: %s is damaged: %s", cell.name, last, error)
                shutil.rmtree(unfinished)
                return
        unfinished.rename(here / last.name)


def _work(
    site: Site, jobs: Iterable[Job], tally: Callable[..., Tally], tell: Tell
) -> Iterator[tuple[Job, str | None]]:
    """Do jobs, as many together as there is room for. A job that fails is done again, `retries` times.

    Args:
        site: where they work.
        jobs: the jobs.
        tally: makes a tally of its fields from `done` on.
        tell: takes the tally, now and then.

    Yields:
        Every job, and what went wrong; None if it has succeeded.
    """
    waiting, running = deque(jobs), dict[subprocess.Popen[bytes], Job]()
    attempts, started, done, failed = Counter[str](), time.monotonic(), 0, 0
    try:
        while waiting or running:
            over = list[tuple[Job, str | None]]()
            while (job := _next(site, waiting, running.values())) is not None:
                waiting.remove(job)
                attempts[job.run] += 1
                if (wrong := _fault(partial(_begin, site, job, running))) is not None:
                    over.append((job, wrong))
            for process in [process for process in running if process.poll() is not None]:
                job, code = running.pop(process), process.returncode
                _note(site, job, "ended")
                exited = f"exit code {code}, see {site.folder / job.run / OUTPUT}"
                over.append((job, exited if code else _fault(job.conclude)))
            for job, wrong in over:
                if wrong is not None:
                    again = attempts[job.run] <= site.retries
                    log.warning("%s failed%s: %s", job.run, ", and is run again" if again else "", wrong)
                    if again:
                        waiting.append(job)
                        continue
                done, failed = done + (wrong is None), failed + (wrong is not None)
                yield job, wrong
            ended, left, elapsed = done + failed, len(waiting) + len(running), time.monotonic() - started
            pace = elapsed / ended * left if ended else None
            tell(tally(done, failed, tuple(job.run for job in running.values()), len(waiting), pace, elapsed))
            time.sleep(TICK_SECONDS)
    finally:
        _stop(site, running)


def _fault(work: Callable[[], object]) -> str | None:
    """Do a job's work in this process, and return what went wrong; None if nothing did."""
    try:
        work()
    except (RunError, ReplayError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def _next(site: Site, waiting: Sequence[Job], running: Collection[Job]) -> Job | None:
    """Return the first waiting job that waits for no other one and that there is room for now."""
    under_way = {job.run for job in (*waiting, *running)}
    return next((job for job in waiting if job.after not in under_way and _fits(site, job, running)), None)


def _fits(site: Site, job: Job, running: Iterable[Job]) -> bool:
    """Whether there is room for a job beside those that are running. A job alone always fits."""
    running = list(running)
    if not running:
        return True
    taken = Counter[str]()
    for each in (job, *running):
        taken.update(each.asked)
    at_once = site.at_once or len(running) + 1
    return len(running) < at_once and all(amount <= site.room.get(name, 0) for name, amount in taken.items())


def _begin(site: Site, job: Job, running: dict[subprocess.Popen[bytes], Job]) -> None:
    """Prepare a job and start its process, which is then among those that are running."""
    job.prepare()
    running[_start(site, job)] = job


def _start(site: Site, job: Job) -> subprocess.Popen[bytes]:
    environment = {THREADS_VARIABLE: str(job.threads)} | os.environ | {"LONGVIEW_RUNS": str(site.folder)}
    if password := urlsplit(site.url).password:
        environment[PASSWORD_VARIABLE] = unquote(password)
    command = [sys.executable, "-m", "longview.cluster.cli", *job.arguments]
    with (site.folder / job.run / OUTPUT).open("ab") as output:
        process = spawn(command, output, environment=environment)
    _note(site, job, "started")
    return process


def _note(site: Site, job: Job, what: Literal["started", "ended"]) -> None:
    """Write down that a job's process has started or ended. On a full disk that is lost; the job goes on."""
    with suppress(OSError):
        append_row(site.folder / job.run / ATTEMPTS, {what: time.time()})


def _earlier(run: Run) -> tuple[bool, float]:
    """Tell whether a run has had attempts before its last one, and the seconds of those that were seen to
    end. An attempt that ended with the study's own process counts no seconds."""
    rows, seconds = read_rows(run.path / ATTEMPTS), list[float]()
    for row, following in itertools.pairwise([*rows, {}]):
        if "started" in row:
            seconds.append(following.get("ended", row["started"]) - row["started"])
    return len(seconds) > 1, sum(seconds[:-1])


def _stop(site: Site, running: Mapping[subprocess.Popen[bytes], Job]) -> None:
    """End processes: they save, and can be resumed."""
    for process in running:
        process.terminate()
    for process, job in running.items():
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        _note(site, job, "ended")


def _taken(site: Site, cell: Cell, episodes: int, lengths: Sequence[int], file: Path) -> bool:
    """Write down the results of a cell whose run an earlier process has finished; false if there are none."""
    return _fault(partial(_take, site, cell, episodes, lengths, file)) is None


def _take(site: Site, cell: Cell, episodes: int, lengths: Sequence[int], file: Path) -> None:
    """Write down the results of a cell whose run has finished, and free its episodes in the study's Redis.

    Raises:
        RunError: the run has not finished, or lacks episodes at one of these context lengths.
    """
    run = Run(site.folder / cell.name)
    summary = json.loads(_text(run.path / "summary.json") or "{}")
    version = summary.get("policy_version")
    found = {each.context_length: each for each in run.evaluations() if each.version == version}
    if (status := summary.get("status", "not begun")) != "finished":
        raise RunError(f"expected a finished run, but run {cell.name} is {status}: see its {OUTPUT}")
    lacking = [at for at in lengths if at not in found or found[at].rolled_out < episodes]
    if lacking:
        raise RunError(
            f"run {cell.name} has fewer than {episodes} episodes at T_o {lacking}: see its {OUTPUT}"
        )
    before = finished(file).get(cell.settings, {"success": {}, "endings": {}, "minutes": {}})
    known = before["endings"]
    # A run whose folder was lost has been trained again.
    if others := [at for at in lengths if not found[at].letters.startswith(known.get(str(at), ""))]:
        raise RunError(
            f"the policy of run {cell.name} is not the one that was evaluated before: its episodes at T_o "
            f"{others} end otherwise. Remove the cell's line from {file}, and these are taken instead"
        )
    resumed, earlier = _earlier(run)
    minutes = Counter[str](before["minutes"])
    if earlier:
        minutes.update({"earlier attempts": earlier / 60})
    minutes.update({phase: seconds / 60 for phase, seconds in summary["phases"].items()})
    row = {
        "cell": cell.facts,
        "settings": cell.settings,
        "success": before["success"] | {str(at): asdict(each.counts) for at, each in sorted(found.items())},
        "endings": before["endings"] | {str(at): each.letters for at, each in sorted(found.items())},
        "training_steps": cell.config.learner.steps,
        "minutes": {phase: round(spent, 2) for phase, spent in minutes.items()},
        "cores": asked_by(cell.config, site.room, site.address)["CPU"],
        "machine": machine(site),
        "resumed": before.get("resumed", False) or resumed,
        "plans": [*(plan for plan in before.get("plans", []) if plan != site.plan), site.plan],
    }
    append_row(file, row, sync=True)
    (run.path / ATTEMPTS).unlink(missing_ok=True)
    # The results are safe: what goes wrong now is no reason to run the cell again.
    if (wrong := _fault(partial(_free, site, cell))) is not None:
        log.warning("%s: its episodes stay in the study's Redis: %s", cell.name, wrong)


def _free(site: Site, cell: Cell) -> None:
    """Remove a cell's episodes from the study's Redis."""
    with _store(site, cell.name, cell.config) as store:
        for task in store.tasks():
            store.forget(task, with_episodes=True)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def machine(site: Site) -> dict[str, Any]:
    """Describe where cells work: this machine, or the CPUs and GPUs of a Ray cluster; and the software."""
    models = [line for line in _text(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
    here = {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
    }
    return {
        **(here if site.address is None else {name: site.room.get(name, 0) for name in ("CPU", "GPU")}),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray")},
    }
