"""Whether recorded data need memory, and how far back: `longview audit`."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from longview.cluster.commands.train import name_after, task_in
from longview.cluster.driver.recorded import open_recorded
from longview.cluster.roles.rank import whole
from longview.cluster.run.config import ConfigError, DataConfig, without_password
from longview.cluster.run.folder import write_atomically
from longview.cluster.views.terminal import console, show_account
from longview.monitoring.audit import audit_page
from longview.replay.config import StoreConfig, with_password
from longview.replay.datasets.source import Source
from longview.replay.episode import Episode, TaskSpec
from longview.replay.errors import DatasetError
from longview.replay.store import StoreAddress

MOST_EPISODES: Final = 400
"""Episodes that are looked at. More would hardly change the answer."""
SOURCES: Final = ("demo", "import", "human")
"""Sources of those episodes of a store that are looked at: no policy has acted in them."""


@dataclass(frozen=True)
class Data:
    """Recorded episodes of one task."""

    spec: TaskSpec
    lengths: Sequence[int]
    """Length of each chosen episode, in steps."""
    recorded: int
    """Number of episodes that there are."""
    episodes: Iterator[Episode]
    """Chosen episodes, read one after another; those that are damaged or invalid are left out."""
    sources: Sequence[Source] = ()
    """Data sets that they come from; none if they come from a store."""


def audit(
    datasets: Sequence[str],
    data: DataConfig,
    url: str | None,
    task: str | None,
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Find out whether recorded data need memory, say so, and write a report.

    Args:
        datasets: paths of data sets of one robot; with a URL, the namespace of episodes in that Redis.
        data: what to take of the data sets.
        url: a Redis that holds the episodes already; None: they are read from the paths.
        task: name of the task; None: after the data set.
        seed: seed of all randomness.
        report: the HTML file to write; None: named after the task, in this folder.
        as_json: print JSON, and nothing else to stdout.

    Raises:
        ConfigError: several namespaces are given, or the report has no folder to go to or is one.
        DatasetError: a data set cannot be read, or its episodes are too few or too short.
        StoreError: the store cannot be reached, or holds no such episodes.
    """
    from longview.learner.audit.answer import TooLittleData, find_out, plan

    if report is not None and not report.parent.is_dir():  # not after minutes of work
        raise ConfigError(f"--report {report}: there is no folder {report.parent}")
    if report is not None and report.is_dir():
        raise ConfigError(f"--report {report} is a folder: give the file to write, such as {report}/r.html")
    with ExitStack() as stack:
        if url is None:
            found = _in_files(datasets, data, task, seed)
        else:
            found = _in_store(datasets, url, task, seed, stack)
        try:
            planned = plan(found.lengths, found.spec.control_hz)
            if not as_json:
                _say_data(found, planned.stride)
            columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
            with Progress(*columns, console=console, transient=True, disable=as_json) as bar:
                reading = bar.add_task("reading", total=len(found.lengths))
                training = bar.add_task("looking for memory", total=planned.work)
                answer = find_out(
                    planned,
                    _counted(found.episodes, bar, reading),
                    found.spec,
                    seed,
                    threads=os.cpu_count() or 1,
                    progress=lambda: bar.advance(training),
                )
        except TooLittleData as error:
            raise DatasetError(str(error)) from None
    file = report or Path(f"{found.spec.name}-audit.html")
    result = asdict(answer) | {
        "task": found.spec.name,
        "control_hz": found.spec.control_hz,
        "command": _command(datasets, data, url, task, answer.T_o),
        "report": str(file),
    }
    write_atomically(file, audit_page(result))
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for source in found.sources:
        show_account(source.account, source.reader.notes)
    for line in (*answer.lines, f"train with it: {result['command']}", f"report: {file}"):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _in_files(datasets: Sequence[str], data: DataConfig, task: str | None, seed: int) -> Data:
    """Open data sets, and choose episodes of them at random where there are too many."""
    name, spec = task or name_after(Path(datasets[0])), None
    sources = list[Source]()
    for path in datasets:
        sources.append(open_recorded(Path(path), data, name, spec))
        spec = spec or sources[0].spec
    assert spec is not None
    places = [(source, index) for source in sources for index in source.indices]
    chosen = [places[place] for place in _chosen(len(places), seed)]
    lengths = [source.reader.length(index) for source, index in chosen]
    return Data(spec, lengths, len(places), _readable(chosen, data.skip_bad), sources)


def _readable(places: Sequence[tuple[Source, int]], skip_bad: bool) -> Iterator[Episode]:
    """Read episodes of data sets. What cannot be read is noted in the data set's account, or raises."""
    for source, index in places:
        try:
            episode = source.read(index)
        except DatasetError as error:
            if not skip_bad:
                raise
            source.account.bad.append(str(error))
            continue
        if episode.outcome != "invalid":
            yield episode


def _in_store(datasets: Sequence[str], url: str, task: str | None, seed: int, stack: ExitStack) -> Data:
    """Find the episodes of a namespace in which no policy acted."""
    if len(datasets) > 1:
        raise ConfigError(f"--url takes one namespace, not {', '.join(datasets)}")
    store = StoreAddress(with_password(url), datasets[0]).connect(StoreConfig())
    stack.callback(store.close)
    spec = store.spec(task_in(store, datasets[0], task))
    records = [
        record
        for record in store.records(task=spec.name)
        if record.meta.source in SOURCES and record.outcome != "invalid"
    ]
    chosen = [records[index] for index in _chosen(len(records), seed)]
    episodes = whole(store, [record.meta.id for record in chosen], spec.name)
    return Data(spec, [record.length for record in chosen], len(records), episodes)


def _chosen(count: int, seed: int) -> list[int]:
    """Choose at most `MOST_EPISODES` places at random, in ascending order."""
    most = min(count, MOST_EPISODES)
    return sorted(np.random.default_rng(seed).permutation(count)[:most].tolist())


def _counted(episodes: Iterator[Episode], bar: Progress, reading: Any) -> Iterator[Episode]:
    """Yield episodes, and move a bar after each."""
    for episode in episodes:
        yield episode
        bar.advance(reading)


def _command(
    datasets: Sequence[str], data: DataConfig, url: str | None, task: str | None, length: int
) -> str:
    """Write the command that trains with a context length on the same data."""
    given = {
        "--url": [] if url is None else [without_password(url)],
        "--task": [] if task is None else [task],
        "--filter": [] if data.filter is None else [data.filter],
        "--hz": [] if data.hz is None else [f"{data.hz:g}"],
        "--keys": [",".join(data.keys)] if data.keys else [],
        "--drop": data.drop,
        "--map": [f"{theirs}={ours}" for theirs, ours in data.map.items()],
    }
    options = [text for name, values in given.items() for value in values for text in (name, value)]
    options += ["--skip-bad"] if data.skip_bad else []
    return shlex.join(["longview", "train", *datasets, *options, f"learner.policy.context_length={length}"])


def _say_data(found: Data, stride: int) -> None:
    """Print what is looked at: one frame of so many steps."""
    sizes = f"{len(found.lengths):,} episodes, {sum(found.lengths):,} steps"
    lines = [f"{found.spec.name}: {sizes} at {found.spec.control_hz:g} Hz"]
    if len(found.lengths) < found.recorded:
        lines.append(f"these are chosen at random from {found.recorded:,} episodes")
    if stride > 1:
        lines.append(f"one of {stride} frames is looked at: episodes are long")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
