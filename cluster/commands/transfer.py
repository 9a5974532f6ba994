"""Episodes into a store and out of it: `longview store import`, `export` and `list`."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from longview.actors.task import columns_of, load_task, task_names
from longview.cluster.run.config import ConfigError, preset_file, read_config, task_of
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import ROOT, RunError, any_store, create_run, find_run, open_run
from longview.cluster.views.terminal import console
from longview.replay.codec import Record
from longview.replay.datasets.formats import WRITERS, open_source, recognise
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.source import Columns
from longview.replay.episode import EXPERT_ACTION, OUTCOMES, SOURCES, Episode, TaskSpec, unknown_sources
from longview.replay.errors import DatasetError, StoreError, UnknownEpisode
from longview.replay.store import EpisodeStore

LISTED = 100
"""Most episodes that the table shows; JSON has all."""


def import_path(
    path: Path,
    task: str,
    run: str | None,
    url: str | None,
    mask: str | None,
    hz: float | None,
    skip_bad: bool,
) -> None:
    """Add a data set's episodes to a store, and print how many are new.

    Args:
        path: a data set of a format that `recognise` knows.
        task: name of its task, installed or not.
        run: name of the run whose store it is, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own.
        mask: name of a subset of the episodes; by default all.
        hz: control steps per second, where the data does not say.
        skip_bad: leave out episodes that cannot be read; else the first one raises DatasetError.

    Raises:
        DatasetError: the data set cannot be read, or does not fit the task.
        RunError: the run does not exist, and cannot be made for this task.
    """
    format = recognise(path)
    if url is None and run is not None and find_run(run) is None:
        _new_run(run, task)
    left_out: list[str] = []
    with any_store(run, url) as store:
        spec, columns = _known(task, run, store)
        source = open_source(path, task, spec, columns, hz=hz, mask=mask)
        store.register(source.spec)
        brought = bring_in(source, source.indices, store, left_out if skip_bad else None)
        total = len(source.indices)
        new = sum(track(brought, "importing", total=total, console=console, transient=True))
    there = total - new - len(left_out)
    console.print(f"{format} data set, task {task}: {new} new episodes, {there} were there", soft_wrap=True)
    if left_out:
        console.print(f"left out {len(left_out)}:")
        for problem in left_out:
            console.print(f"  {problem}", soft_wrap=True, markup=False)


def export_path(
    path: Path,
    format: str,
    run: str | None,
    url: str | None,
    chosen: Mapping[str, str | None],
    lossless: bool,
) -> None:
    """Write a store's episodes as a data set. If it is interrupted, nothing is left at the path.

    Args:
        path: the data set to make; must not exist.
        format: one of `WRITERS`.
        run, url: as for `import_path`.
        chosen: source, task and outcome of the episodes; None means any.
        lossless: keep pictures exactly, where the format would compress them as video.

    Raises:
        ConfigError: the format, source or outcome is unknown.
        DatasetError: the path exists, or the episodes do not fit into one data set.
    """
    if format not in WRITERS:
        raise ConfigError(f"--format is one of {', '.join(WRITERS)}, not {format}")
    _check_chosen(chosen)
    if path.exists():
        raise DatasetError(f"{path} exists: choose another path, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with any_store(run, url) as store:
        records = list(store.records(**chosen))
        spec = store.spec(_only_task(records, chosen))
        episodes = _read(store, [record.meta.id for record in records])
        with ending(lambda: _remove(draft)):
            shown = track(episodes, "exporting", total=len(records), console=console, transient=True)
            WRITERS[format](draft, spec, shown, lossless)
            draft.rename(path)
    console.print(f"{path}: {len(records)} episodes of {spec.name}", soft_wrap=True)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    draft.unlink(missing_ok=True)


def list_episodes(run: str | None, url: str | None, chosen: Mapping[str, str | None], as_json: bool) -> None:
    """Print a store's episodes: a table of the first ones, or as JSON a line for each.

    Args:
        run, url: as for `import_path`.
        chosen: as for `export_path`.
        as_json: print JSON.
    """
    import json

    _check_chosen(chosen)
    with any_store(run, url) as store:
        if as_json:
            for record in store.records(**chosen):
                print(json.dumps(_plain(record)))
            return
        records = list(store.records(**chosen))
    table = Table(title=f"{len(records):,} episodes")
    columns = ("id", "source", "task", "outcome", "seed", "steps", "MB")
    for column in columns:
        right = column in ("seed", "steps", "MB")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for record in records[:LISTED]:
        plain = _plain(record) | {"MB": f"{record.bytes / 1e6:.2f}"}
        table.add_row(*(str(plain[column]) for column in columns))
    console.print(table)
    if len(records) > LISTED:
        console.print(f"and {len(records) - LISTED:,} more; --json shows all")


def _new_run(name: str, task: str) -> None:
    if task not in task_names():
        raise RunError(
            f"there is no run {name!r} in {ROOT}/, and none can be made for {task}, which is no installed "
            "task: import into an existing run, or into a Redis of your own by --url, where RUN is any name"
        )
    create_run(read_config(preset_file(task), task=task, name=name)).unlock()


def _known(task: str, run: str | None, store: EpisodeStore) -> tuple[TaskSpec | None, Mapping[str, Columns]]:
    """Find the task's spec in the store or an installed task, and its arrays' names in data sets."""
    spec = store.spec(task) if task in store.tasks() else None
    columns: Mapping[str, Columns] = {}
    if task in task_names():
        installed = load_task(task)
        its_run = open_run(None) if run is None else find_run(run)
        if its_run is not None and its_run.config.task == task:
            installed = task_of(its_run.config)  # through its cameras
        spec, columns = spec or installed.spec, columns_of(installed)
    return spec, columns


def _check_chosen(chosen: Mapping[str, str | None]) -> None:
    source, outcome = chosen["source"], chosen["outcome"]
    if source is not None and source not in SOURCES:
        raise ConfigError(f"--source: {unknown_sources([source])}")
    if outcome is not None and outcome not in OUTCOMES:
        raise ConfigError(f"--outcome is one of {', '.join(OUTCOMES)}, not {outcome}")


def _only_task(records: Sequence[Record], chosen: Mapping[str, str | None]) -> str:
    tasks = sorted({record.meta.task for record in records})
    if not tasks:
        asked = ", ".join(f"{name} {value}" for name, value in chosen.items() if value is not None)
        raise StoreError(f"the store has no episodes{' of ' + asked if asked else ''}")
    if len(tasks) > 1:
        raise DatasetError(f"the episodes are of the tasks {', '.join(tasks)}: choose one by --task")
    return tasks[0]


def _read(store: EpisodeStore, ids: Sequence[str]) -> Iterator[Episode]:
    labelled: bool | None = None
    for id in ids:
        try:
            episode = store.read(id)
        except UnknownEpisode as error:  # it was removed meanwhile, or is damaged
            raise StoreError(f"{error}: start the export again, without it") from None
        if labelled is None:
            labelled = EXPERT_ACTION in episode.arrays
        elif labelled != (EXPERT_ACTION in episode.arrays):
            raise DatasetError(
                f"episode {id} {'has no' if labelled else 'has'} {EXPERT_ACTION}, unlike {ids[0]}: export "
                "one source at a time, by --source"
            )
        yield episode


def _plain(record: Record) -> dict[str, Any]:
    meta = asdict(record.meta)
    sizes = {"steps": record.length, "learnable": record.learnable, "bytes": record.bytes}
    return meta | {"outcome": record.outcome} | sizes
