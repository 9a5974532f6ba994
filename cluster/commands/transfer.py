"""Episodes into a store and out of it: `longview store import`, `export`, `list` and `forget`."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from longview.actors.task import columns_of, is_task, load_task
from longview.cluster.commands.common import new_names
from longview.cluster.run.config import ConfigError, preset_file, read_config, task_of
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import ROOT, RunError, any_store, create_run, find_run, open_run
from longview.cluster.views.terminal import console, show_account
from longview.replay.codec import Record
from longview.replay.datasets.formats import open_source, recognise, writers
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.source import Columns
from longview.replay.episode import OPTIONAL, OUTCOMES, SOURCES, Episode, TaskSpec, unknown_sources
from longview.replay.errors import DatasetError, StoreError, UnknownEpisode
from longview.replay.store import EpisodeStore

LISTED = 100
"""Most episodes that the table shows; JSON has all."""


def choice_of(
    keys: str | None, drop: Sequence[str], map: Sequence[str], resize: str | None, skip_bad: bool
) -> Choice:
    """Make a choice from what a person typed.

    Raises:
        ConfigError: a name or a size is not written as it should be.
    """
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", resize or "1x1")
    if sides is None:
        raise ConfigError(f"--resize takes WIDTHxHEIGHT, such as 96x96, not {resize}")
    return Choice(
        keys=[key for key in (keys or "").split(",") if key],
        drop=drop,
        map=new_names(map),
        size=None if resize is None else (int(sides[1]), int(sides[2])),
        skip_bad=skip_bad,
    )


def import_path(
    path: Path,
    task: str,
    run: str | None,
    url: str | None,
    mask: str | None,
    hz: float | None,
    choice: Choice,
    as_json: bool,
) -> None:
    """Add a data set's episodes to a store, and print how many are new and what became of each part.

    Args:
        path: a data set of a format that `recognise` knows.
        task: name of its task, installed or not.
        run: name of the run whose store it is, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own.
        mask: name of a subset of the episodes; by default all.
        hz: control steps per second, where the data does not say.
        choice: what to take of the data set.
        as_json: print JSON.

    Raises:
        DatasetError: the data set cannot be read, or does not fit the task.
        RunError: the run does not exist, and cannot be made for this task.
    """
    format = recognise(path)
    if url is None and run is not None and find_run(run) is None:
        _new_run(run, task)
    with any_store(run, url) as store:
        spec, columns = _known(task, run, store)
        source = open_source(path, task, spec, columns, hz=hz, mask=mask, choice=choice)
        parts = len(source.account.bad)
        brought: Iterable[bool] = bring_in(source, source.indices, store, choice.skip_bad)
        total = len(source.indices)
        if not as_json:
            brought = track(brought, "importing", total=total, console=console, transient=True)
        new = sum(brought)
    account = source.account
    unreadable = len(account.bad) - parts
    counts = {"new": new, "there": total - new - unreadable, "unreadable": unreadable}
    if as_json:
        notes = {"notes": list(source.reader.notes)}
        print(json.dumps({"format": format, "task": task, "episodes": counts, **asdict(account), **notes}))
        return
    said = f"{format} data set, task {task}: {new} new episodes, {counts['there']} were there"
    console.print(said, soft_wrap=True, markup=False)
    show_account(account, source.reader.notes)


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
        format: one of `writers`.
        run, url: as for `import_path`.
        chosen: source, task and outcome of the episodes; None means any.
        lossless: keep pictures exactly, where the format would compress them as video.

    Raises:
        ConfigError: the format, source or outcome is unknown.
        DatasetError: the path exists, or the episodes do not fit into one data set.
    """
    known = writers()
    if format not in known:
        raise ConfigError(f"--format is one of {', '.join(known)}, not {format}")
    check_chosen(chosen)
    if path.exists():
        raise DatasetError(f"{path} exists: choose another path, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with any_store(run, url) as store:
        records = list(store.records(**chosen))
        spec = store.spec(only_task(records, chosen))
        episodes = _read(store, [record.meta.id for record in records])
        with ending(lambda: _remove(draft)):
            shown = track(episodes, "exporting", total=len(records), console=console, transient=True)
            known[format](draft, spec, shown, lossless)
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
    check_chosen(chosen)
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


def forget_task(
    task: str, run: str | None, url: str | None, with_episodes: bool, confirm: Callable[[str], bool]
) -> None:
    """Remove a task's registration from a store, and say what was removed.

    Args:
        task: name of the task.
        run, url: as for `import_path`.
        with_episodes: whether to delete the task's episodes for good.
        confirm: asked before episodes are deleted, with what it is about; False: nothing is removed.

    Raises:
        StoreError: the task is not registered, or has episodes and they must stay.
    """
    with any_store(run, url) as store:
        store.spec(task)
        count = sum(1 for _ in store.records(task=task))
        if count and not with_episodes:
            raise StoreError(
                f"the store holds {count} episodes of task {task}: --with-episodes deletes them, too"
            )
        if count and not confirm(f"delete {count} episodes of task {task} for good?"):
            console.print("nothing was removed")
            return
        deleted = store.forget(task, with_episodes)
    console.print(
        f"removed the registration of task {task}, and {deleted} episodes", soft_wrap=True, markup=False
    )


def _new_run(name: str, task: str) -> None:
    if not is_task(task):
        raise RunError(
            f"there is no run {name!r} in {ROOT}/, and none can be made for {task}, which is no installed "
            "task: import into an existing run, or into a Redis of your own by --url, where RUN is any name"
        )
    create_run(read_config(preset_file(task), task=task, name=name)).unlock()


def _known(task: str, run: str | None, store: EpisodeStore) -> tuple[TaskSpec | None, Mapping[str, Columns]]:
    """Find the task's spec in the store or an installed task, and its arrays' names in data sets."""
    spec = store.spec(task) if task in store.tasks() else None
    columns: Mapping[str, Columns] = {}
    if is_task(task):
        its_run = open_run(None) if run is None else find_run(run)
        if its_run is not None and its_run.config.task == task:
            installed = task_of(its_run.config)  # through its cameras, and made with its settings
        else:
            installed = load_task(task)
        spec, columns = spec or installed.spec, columns_of(installed)
    return spec, columns


def check_chosen(chosen: Mapping[str, str | None]) -> None:
    """Refuse a source or an outcome that does not exist.

    Raises:
        ConfigError: it is unknown; the message names the known ones.
    """
    source, outcome = chosen["source"], chosen["outcome"]
    if source is not None and source not in SOURCES:
        raise ConfigError(f"--source: {unknown_sources([source])}")
    if outcome is not None and outcome not in OUTCOMES:
        raise ConfigError(f"--outcome is one of {', '.join(OUTCOMES)}, not {outcome}")


def only_task(records: Sequence[Record], chosen: Mapping[str, str | None]) -> str:
    """Return the task of episodes.

    Args:
        records: the episodes.
        chosen: what they were chosen by, for the message.

    Raises:
        StoreError: there are none.
        DatasetError: they are of several tasks.
    """
    tasks = sorted({record.meta.task for record in records})
    if not tasks:
        asked = ", ".join(f"{name} {value}" for name, value in chosen.items() if value is not None)
        raise StoreError(f"the store has no episodes{' of ' + asked if asked else ''}")
    if len(tasks) > 1:
        raise DatasetError(f"the episodes are of the tasks {', '.join(tasks)}: choose one by --task")
    return tasks[0]


def _read(store: EpisodeStore, ids: Sequence[str]) -> Iterator[Episode]:
    first: set[str] | None = None
    for id in ids:
        try:
            episode = store.read(id)
        except UnknownEpisode as error:  # it was removed meanwhile, or is damaged
            raise StoreError(f"{error}: start the export again, without it") from None
        held = {name for name in OPTIONAL if name in episode.arrays}
        first = held if first is None else first
        for name in sorted(held ^ first):
            raise DatasetError(
                f"episode {id} {'has' if name in held else 'has no'} {name}, unlike {ids[0]}: export "
                "one source at a time, by --source"
            )
        yield episode


def _plain(record: Record) -> dict[str, Any]:
    meta = asdict(record.meta)
    sizes = {"steps": record.length, "learnable": record.learnable, "bytes": record.bytes}
    return meta | {"outcome": record.outcome} | sizes
