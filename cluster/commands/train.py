"""A policy from recorded data alone: `longview train`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from longview.cluster.driver.recorded import open_recorded, train_recorded
from longview.cluster.run.config import ConfigError, DataConfig, RunConfig, described, plain, read_config
from longview.cluster.run.copies import refuse_uncopyable
from longview.cluster.run.folder import Run, take_run
from longview.cluster.run.preflight import refuse_unmirrored
from longview.cluster.run.sizing import FEWEST, Facts, Setting, device, settings_for
from longview.cluster.run.start import found_start
from longview.cluster.views.terminal import console
from longview.replay.config import StoreConfig, with_password
from longview.replay.datasets.plan import Choice
from longview.replay.episode import TaskSpec
from longview.replay.errors import DatasetError, StoreError
from longview.replay.names import check_name
from longview.replay.store import EpisodeStore, StoreAddress

SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")
"""Beginning of an argument that is a setting rather than a path."""
ANONYMOUS = "recorded"
"""Name of a task whose data set has a name that no task may have."""


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell data sets from settings `key=value`. An existing path with such a name is a data set."""
    settings = [text for text in arguments if SETTING.match(text) and not Path(text).exists()]
    return [text for text in arguments if text not in settings], settings


def data_of(choice: Choice, filter: str | None, hz: float | None) -> DataConfig:
    """Make the config's section of the data from what a person typed."""
    return DataConfig(
        filter=filter,
        hz=hz,
        keys=tuple(choice.keys),
        drop=tuple(choice.drop),
        map=choice.map,
        size=choice.size,
        skip_bad=choice.skip_bad,
    )


def new_config(
    datasets: Sequence[str], settings: Sequence[str], data: DataConfig, url: str | None, task: str | None
) -> RunConfig:
    """Make the config of a new run, and say what was chosen and why.

    Args:
        datasets: paths of data sets; with a URL, the namespace of episodes in that Redis.
        settings: what the person has set, `key=value`.
        data: what to take of the data sets.
        url: a Redis that holds the episodes already; None: they are imported.
        task: name of the task; None: after the data set.

    Raises:
        ConfigError: no data set is given, or a setting does not fit.
        DatasetError: a data set cannot be read, does not fit the first one, or has too few episodes.
        StoreError: the store cannot be reached, or holds no such episodes.
    """
    if not datasets:
        raise ConfigError("give a data set, or --resume RUN")
    given = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in settings)}
    if url is None:
        data = replace(data, paths=tuple(str(Path(path).absolute()) for path in datasets))
        spec, lengths = _look_at_files(data, task)
    else:
        if len(datasets) > 1:
            raise ConfigError(f"--url takes one namespace, not {', '.join(datasets)}")
        data = replace(data, namespace=datasets[0])
        spec, lengths = _look_at_store(StoreAddress(with_password(url), datasets[0]), task)
    if len(lengths) < FEWEST and "learner.validation_episodes" not in given:
        raise DatasetError(
            f"{len(lengths)} episodes are too few: training and held-out validation need at least {FEWEST}; "
            "or set learner.validation_episodes=0"
        )
    cameras = [key for key, array in spec.observation.items() if array.is_image]
    step_bytes = sum(array.bytes for array in spec.arrays().values())
    facts = Facts(spec.control_hz, lengths, len(cameras), step_bytes, gpu=device() == "cuda")
    chosen = settings_for(facts, given)
    tree: dict[str, Any] = {"replay": {} if url is None else {"url": url}}
    if data.size is None and cameras:
        tree["replay"]["pictures"] = "jpeg"
    for setting in chosen:
        _set(tree, setting.key, setting.value)
    values = given | {setting.key: setting.value for setting in chosen}
    spec = replace(
        spec,
        context_lengths=tuple(sorted(set(values["evaluation.context_lengths"]))),
        max_steps=max(lengths),
        demonstrations=len(lengths),
    )
    tree["data"] = plain(asdict(data)) | {"spec": described(spec)}
    config = read_config(None, settings, task=spec.name, **tree)
    _say(spec, lengths, data, chosen)
    return config


def train(config: RunConfig, run: Run | None) -> int:
    """Train on recorded data.

    Args:
        config: the run's config.
        run: the run to go on with; None creates one.

    Returns:
        The exit code: 0 finished, 1 failed, 130 interrupted.

    Raises:
        ConfigError: the run has a simulator, wants several learner ranks, or has no policy to begin from.
        RunError: as for `take_run`.
    """
    if not config.data.spec:
        raise ConfigError("this run has a simulator: go on with it by `longview launch --resume RUN`")
    if config.learners > 1:
        raise ConfigError(f"learners {config.learners}: `longview train` trains in one process")
    config = found_start(config, run)
    refuse_uncopyable(config)
    refuse_unmirrored(config)
    return train_recorded(config, take_run(config, run))


def _look_at_files(data: DataConfig, task: str | None) -> tuple[TaskSpec, list[int]]:
    """Describe data sets, and list the lengths of their episodes."""
    name, spec, lengths = task or name_after(Path(data.paths[0])), None, []
    for path in data.paths:
        source = open_recorded(Path(path), data, name, spec)
        spec = spec or source.spec
        lengths += [source.reader.length(index) for index in source.indices]
    assert spec is not None
    return spec, lengths


def _look_at_store(address: StoreAddress, task: str | None) -> tuple[TaskSpec, list[int]]:
    """Describe the episodes of a namespace, and list their lengths.

    Raises:
        StoreError: the namespace has no episodes, or episodes of several tasks and none is named.
    """
    store = address.connect(StoreConfig())
    try:
        spec = store.spec(task_in(store, address.namespace, task))
        return spec, [record.length for record in store.records(task=spec.name)]
    finally:
        store.close()


def task_in(store: EpisodeStore, namespace: str, task: str | None) -> str:
    """Return the task that a person has named, or else the only one of a namespace.

    Raises:
        StoreError: the namespace has no task or several, and none is named.
    """
    tasks = store.tasks()
    if task is None and len(tasks) != 1:
        known = ", ".join(tasks) or "none"
        raise StoreError(f"namespace {namespace} has tasks {known}: choose one by --task")
    return task or tasks[0]


def name_after(path: Path) -> str:
    """Name a task after its data set."""
    try:
        check_name(path.stem)
    except ValueError:
        return ANONYMOUS
    return path.stem


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _say(spec: TaskSpec, lengths: Sequence[int], data: DataConfig, chosen: Sequence[Setting]) -> None:
    """Print what was found and chosen, a line each."""
    arrays: Mapping[str, Any] = {**spec.observation, "action": spec.action}
    held = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    lines = [
        f"{spec.name}: {len(lengths):,} episodes, {sum(lengths):,} steps at {spec.control_hz:g} Hz; {held}"
    ]
    if data.namespace is None and any(array.is_image for array in spec.observation.values()):
        if data.size is None:
            lines.append("pictures keep their size, and are stored as JPEG")
        else:
            width, height = data.size
            lines.append(f"pictures are stored at {width}x{height}: --resize WxH or none changes that")
    lines += [f"{setting.key}={_typed(setting.value)}: {setting.reason}" for setting in chosen]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _typed(value: Any) -> str:
    """Write a value as one types it in `key=value`."""
    return str(value).replace(" ", "")
