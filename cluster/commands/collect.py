"""Demonstrations by a task's expert, in this process, without Ray: `longview collect`."""

import shlex
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from longview.actors.task import Task
from longview.actors.worker import Order, Worker
from longview.cluster.run.config import ConfigError, RunConfig, task_of, without_password
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import Run, store_of, take_run
from longview.cluster.run.progress import RunProgress
from longview.cluster.views import summary
from longview.cluster.views.episodes import film_of, stage
from longview.cluster.views.terminal import console, store_table
from longview.monitoring.film import write_sheet, write_video
from longview.replay.errors import StoreError
from longview.replay.store import EpisodeStore

SHOWN = 8
"""Episodes that a video or sheet shows: the first ones."""


def collect(config: RunConfig, run: Run | None, video: Path | None, sheet: Path | None) -> None:
    """Collect the demonstrations that a run's store still lacks, and show the first ones.

    Args:
        config: the run's config.
        run: the run's folder; None creates one.
        video: an mp4 to write; None writes none.
        sheet: a contact sheet to write, a PNG; None writes none.

    Raises:
        ConfigError: the task has no expert; or it draws no pictures, and a video or sheet is asked for.
        RunError: as for `take_run`.
        SimulatorError: this machine lacks something that the task needs.
    """
    task = task_of(config)
    if task.expert is None:
        raise ConfigError(f"task {config.task} has no expert to demonstrate it")
    scene = stage(task) if video or sheet else None
    for file in (video, sheet):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    run = take_run(config, run)
    progress = RunProgress(run, config, task.spec, history=run.evaluations())
    try:
        with summary.concluding(progress), ExitStack() as services:
            address = services.enter_context(store_of(run, config.replay))
            store = address.connect(config.replay)
            services.enter_context(ending(store.close))
            store.claim(run.origin.owner)
            store.register(task.spec)
            run.write_state(store=without_password(address.url))
            _demonstrate(progress, task, store)
            if scene is not None:
                films = [film_of(scene, store.read(id)) for id in store.ids("demo")[:SHOWN]]
                if video:
                    write_video(video, films, task.spec.control_hz)
                if sheet:
                    write_sheet(sheet, films, task.spec.control_hz)
    except KeyboardInterrupt:
        resume = f"longview collect {shlex.quote(config.task)} --resume {run.typed}"
        print(f"go on with it by: {resume}", file=sys.stderr)
        raise


def _demonstrate(progress: RunProgress, task: Task, store: EpisodeStore) -> None:
    config, outcomes = progress.config, Counter[str]()
    # One simulator, since more of them in a process do not make more steps.
    actors = replace(config.actors, simulators=1)
    worker = Worker(task, actors, config.seed, "collect", store, lambda _: None)
    wanted = config.demonstration_count(task.spec)
    progress.enter("collect")
    try:
        for index in track(range(wanted), "collecting", console=console, transient=True):
            outcomes.update(worker.work(Order("demo", index, 1), None).outcomes)
    finally:
        with suppress(StoreError):  # the error that ended it matters more
            progress.stats = store.stats()
    new = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "none, all were there"
    console.print(f"new demonstrations: {new}")
    console.print(store_table(store.stats()))
    console.print(str(progress.run.path), soft_wrap=True)
