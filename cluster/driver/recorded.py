"""A run on recorded data: import, train, measure on held-out episodes. A single learner rank trains in this
process, without Ray."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.cluster.driver.conduct import conduct, ignore_interrupts
from longview.cluster.driver.totals import totals_of
from longview.cluster.roles.rank import Demonstrations, share_out_recorded, train_rank, whole
from longview.cluster.run.config import DataConfig, RunConfig, task_of, without_password
from longview.cluster.run.ending import RunFailed, ending
from longview.cluster.run.folder import HELD_OUT, IMPORT, Run, store_of, write_atomically
from longview.cluster.run.progress import RunProgress
from longview.cluster.run.sizing import device
from longview.cluster.views.terminal import console, show_account
from longview.monitoring.film import Film, moments, write_sheet
from longview.monitoring.hub import Hub, encode_report
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.source import Source
from longview.replay.episode import OBSERVATION_PREFIX, Episode, TaskSpec
from longview.replay.errors import StoreError
from longview.replay.store import EpisodeStore, StoreAddress

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
"""Time between two looks at the training."""
WINDOWS = 20
"""Windows of each held-out episode whose actions are compared: a multiple of `POSITIONS`."""
POSITIONS = 10
"""Parts of an episode by which the report tells errors apart."""
WORST = 4
"""Held-out episodes with the largest error that the report shows."""

Show = Callable[[RunProgress], None]


def needs_ray(config: RunConfig, cluster: str | None) -> bool:
    """Tell whether a run on recorded data trains through Ray: with several learner ranks, or on a cluster."""
    return config.learners > 1 or cluster is not None


def train_recorded(config: RunConfig, run: Run, cluster: str | None = None) -> int:
    """Train on recorded data, or resume such a run.

    Args:
        config: the run's config, with a description of the data.
        run: the run's folder, locked.
        cluster: address of an existing Ray cluster to train on; None trains on this machine.

    Returns:
        The exit code: 0 finished, 1 failed, 130 interrupted.
    """
    progress = RunProgress(run, config, task_of(config).spec)
    return conduct(progress, "train", lambda show: _run(progress, cluster, show))


def open_recorded(path: Path, data: DataConfig, task: str, spec: TaskSpec | None) -> Source:
    """Open one data set of a run.

    Args:
        path: file or folder.
        data: what to take of it.
        task: name of the task.
        spec: description of the data; None makes one.

    Raises:
        DatasetError: the format is unknown, the data set is damaged, or it does not fit the description.
    """
    choice = Choice(data.keys, data.drop, data.map, data.size, data.skip_bad)
    return open_source(path, task, spec, hz=data.hz, mask=data.filter, choice=choice)


def _run(progress: RunProgress, cluster: str | None, show: Show) -> None:
    config, run = progress.config, progress.run
    with ExitStack() as services:
        address = services.enter_context(store_of(run, config.replay))
        store = address.connect(config.replay)
        services.enter_context(ending(store.close))
        run.write_state(store=without_password(address.url))
        try:
            progress.enter("import")
            if config.data.namespace is None:
                store.claim(run.origin.owner)
                _import(progress, store, show)
            demonstrations = _share_out(progress, store)
            progress.enter("train")
            if needs_ray(config, cluster):
                from longview.cluster.driver.recorded_ranks import train_on_ray

                train_on_ray(progress, store, address, cluster, demonstrations, show)
            else:
                _train(progress, store, address, demonstrations, show)
            progress.enter("evaluate")
            show(progress)
            progress.held_out = _held_out(progress, store, demonstrations.held_out)
        finally:
            with suppress(StoreError):  # the error that ended the run matters more
                progress.stats = store.stats()


def _import(progress: RunProgress, store: EpisodeStore, show: Show) -> None:
    """Import the data sets, unless an earlier launch has imported them, and say what became of each part."""
    data, file = progress.config.data, progress.run.path / IMPORT
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if done is not None and len(store) >= done["episodes"]:
        progress.demonstrations = progress.wanted
        return
    accounts = []
    for path in data.paths:
        source = open_recorded(Path(path), data, progress.spec.name, progress.spec)
        new, unreadable = 0, len(source.account.bad)
        for added in bring_in(source, source.indices, store, data.skip_bad):
            new += added
            progress.demonstrations += 1
            show(progress)
        there = len(source.indices) - new - (len(source.account.bad) - unreadable)
        already = f": {there} episodes were there already" if there else ""
        console.print(f"imported {path}{already}", soft_wrap=True, markup=False)
        show_account(source.account, source.reader.notes)
        accounts.append({"path": path, "notes": list(source.reader.notes)} | asdict(source.account))
    write_atomically(file, json.dumps({"episodes": len(store), "data_sets": accounts}, indent=2) + "\n")


def _share_out(progress: RunProgress, store: EpisodeStore) -> Demonstrations:
    """Share out the episodes. Those that the run's first launch held out stay held out."""
    file, count = progress.run.path / HELD_OUT, progress.config.learner.validation_episodes
    if file.exists():
        ids = json.loads(file.read_text(encoding="utf-8"))["episodes"]
        return share_out_recorded(store, progress.spec, count, ids)
    demonstrations = share_out_recorded(store, progress.spec, count)
    write_atomically(file, json.dumps({"episodes": demonstrations.held_out}, indent=2) + "\n")
    return demonstrations


def _train(
    progress: RunProgress,
    store: EpisodeStore,
    address: StoreAddress,
    demonstrations: Demonstrations,
    show: Show,
) -> None:
    """Train in a thread, and show it. Ctrl-C and SIGTERM end the training once it has saved.

    Raises:
        RunFailed: the training raised an error.
    """
    incarnation, stop = time.time_ns(), threading.Event()
    hub, monitoring = Hub(progress.run.name), progress.config.monitoring
    port = hub.serve(monitoring.port, monitoring.host)
    progress.run.write_state(metrics=f"http://{monitoring.host}:{port}/metrics")

    def published(version: int, _: object) -> None:
        progress.version = version

    def end() -> None:
        ignore_interrupts()
        stop.set()

    def look(*, ended: bool) -> None:
        totals = totals_of(progress, store.stats(), ended=ended)
        hub.report(encode_report("driver", "driver", incarnation, totals))
        progress.update(hub.snapshot())
        show(progress)

    with ending(hub.close), ThreadPoolExecutor(1, thread_name_prefix="learner") as thread:
        training = thread.submit(
            train_rank,
            progress.config,
            progress.run.checkpoints.absolute(),
            address,
            demonstrations,
            publish=published,
            send=hub.report,
            should_stop=stop.is_set,
            device=device(),
        )
        try:
            while wait([training], REPORT_SECONDS).not_done:
                look(ended=False)
        except BaseException:
            end()
            raise
        progress.version = _version(training)
        look(ended=True)


def _version(training: "Future[int]") -> int:
    """Return the last version of a training that has ended.

    Raises:
        RunFailed: it raised an error.
    """
    try:
        return training.result()
    except Exception as error:
        log.exception("training failed")
        raise RunFailed(f"training failed: {error}") from error


def _held_out(progress: RunProgress, store: EpisodeStore, ids: list[str]) -> dict[str, Any] | None:
    """Measure the newest policy's action error on held-out episodes, by T_o and by position in the episode,
    and draw the worst episodes. None if no held-out episode says what to do."""
    from longview.learner import checkpoint
    from longview.learner.policy import policy_from_bytes
    from longview.learner.validation import action_errors

    newest = checkpoint.latest(progress.run.checkpoints)
    if newest is None or not ids:
        return None
    policy = policy_from_bytes(newest.policy, device())
    lengths = [length for length in progress.spec.context_lengths if length <= policy.horizon.context]
    errors_of = {
        episode.meta.id: [
            action_errors(policy, episode, length, WINDOWS, progress.config.seed) for length in lengths
        ]
        for episode in whole(store, ids, progress.spec.name)
    }
    if (found := held_out_account(errors_of, lengths)) is None:
        return None
    films = [film for row in found["worst"] if (film := film_of_cameras(store.read(row["id"])))]
    if films:
        write_sheet(progress.run.path / "episodes.png", films, progress.spec.control_hz)
    return found


def held_out_account(
    errors_of: Mapping[str, Sequence[NDArray[np.float64]]], lengths: Sequence[int]
) -> dict[str, Any] | None:
    """Make the account of the action errors on held-out episodes, plain values for summary.json.

    Args:
        errors_of: error of each window at each context length, (context lengths, `WINDOWS`), by the episode's
            id; NaN where the window has no targets, because a policy acted.
        lengths: the context lengths.

    Returns:
        The account of the episodes with targets, and None instead of a number that no episode tells; None if
        no episode has targets.
    """
    from longview.learner.bootstrap import known_mean

    known = {id: np.array(rows) for id, rows in errors_of.items() if np.isfinite(rows).any()}
    if not known:
        return None
    errors = np.array(list(known.values()))  # (episodes, context lengths, WINDOWS)
    by_position = known_mean(errors.reshape(len(known), len(lengths), POSITIONS, -1), axis=3)
    mean_of = dict(zip(known, known_mean(errors, axis=(1, 2)).tolist(), strict=True))
    worst = sorted(mean_of, key=lambda id: -mean_of[id])[:WORST]
    return {
        "episodes": len(known),
        "action_error": dict(zip(map(str, lengths), _plain(known_mean(errors, axis=2)), strict=True)),
        "by_position": dict(zip(map(str, lengths), _plain(by_position), strict=True)),
        "worst": [{"id": id, "action_error": float(f"{mean_of[id]:.5g}")} for id in worst],
    }


def film_of_cameras(episode: Episode) -> Film:
    """Put the pictures of an episode's cameras side by side, (H, W, 3), at the moments that a sheet shows;
    None at other steps. Empty without cameras of a common height."""
    pictures = [
        array
        for name, array in sorted(episode.arrays.items())
        if name.startswith(OBSERVATION_PREFIX) and array.dtype == np.uint8 and array.ndim == 4
    ]
    if len({array.shape[1] for array in pictures}) != 1:
        return []
    shown = moments(episode.length)
    return [
        np.concatenate([array[step] for array in pictures], axis=1) if step in shown else None
        for step in range(episode.length)
    ]


def _plain(values: np.ndarray[Any, Any]) -> Any:
    """Return mean and interval over the first axis, the episodes, as nested lists of plain numbers; None for
    what no episode tells."""
    from longview.learner.bootstrap import mean_interval

    mean, low, high = mean_interval(values)
    found = np.stack((mean, low, high), axis=-1)

    def nested(part: Any) -> Any:
        if part.ndim > 1:
            return [nested(below) for below in part]
        plain = (float(f"{value:.5g}") if np.isfinite(value) else None for value in part)
        return dict(zip(("mean", "low", "high"), plain, strict=True))

    return nested(found)
