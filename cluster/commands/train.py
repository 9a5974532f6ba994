"""A policy from recorded data alone: `longview train`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from longview.cluster.driver.recorded import needs_ray, open_recorded, train_recorded
from longview.cluster.roles.auth import choose_ray_auth
from longview.cluster.run.config import (
    ConfigError,
    DataConfig,
    PlacementConfig,
    RunConfig,
    described,
    plain,
    read_config,
    yaml_value,
)
from longview.cluster.run.copies import refuse_uncopyable
from longview.cluster.run.folder import HELD_OUT, Run, take_run
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
SIMULATED = ("actors", "collect", "demonstrations", "environment", "inference")
"""First parts of the keys that only runs with simulators have."""
ELSEWHERE = {"task": "--task", "data": "--hz, --keys, --drop, --map, --filter, --resize and --skip-bad"}
"""Options that set a key, or a section of keys, of a new run."""
AS_STORED = "episodes of a store are taken as they are"
"""Why no option beside `--url` changes what is read."""
ANONYMOUS = "recorded"
"""Name of a task whose data set has a name that no task may have."""


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell data sets from settings `key=value`. An existing path with such a name is a data set."""
    settings = [text for text in arguments if SETTING.match(text) and not Path(text).exists()]
    return [text for text in arguments if text not in settings], settings


def refuse_without_effect(option: str, why: str, given: Mapping[str, Any]) -> None:
    """Refuse options that have no effect beside another one.

    Args:
        option: the other option.
        why: why they have none.
        given: values of these options by name; those that are empty were not given.

    Raises:
        ConfigError: the message names the options.
    """
    if useless := [name for name, value in given.items() if value]:
        raise ConfigError(f"{', '.join(useless)} cannot be given with {option}: {why}")


def refuse_useless_settings(settings: Sequence[str], cluster: str | None) -> None:
    """Refuse settings that have no effect on a run on recorded data.

    Args:
        settings: what the person has set, `key=value`.
        cluster: address of an existing Ray cluster; None trains on this machine.

    Raises:
        ConfigError: the message names the first such setting.
    """
    for key in (text.partition("=")[0] for text in settings):
        section = key.partition(".")[0]
        if section in SIMULATED or (section == "evaluation" and key != "evaluation.context_lengths"):
            raise ConfigError(f"{key} has no effect: a run on recorded data has no simulators")
        if section == "placement" and cluster is None:
            raise ConfigError(f"{key} has no effect without a Ray cluster: give --address")


def refuse_fixed(settings: Sequence[str], run: Run) -> None:
    """Refuse settings that a run on recorded data keeps from its first launch.

    Args:
        settings: what the person has set, `key=value`.
        run: the run to go on with.

    Raises:
        ConfigError: the message names the first such setting.
    """
    for key in (text.partition("=")[0] for text in settings):
        shared_out = key == "learner.validation_episodes" and (run.path / HELD_OUT).exists()
        if key.partition(".")[0] == "data" or key == "evaluation.context_lengths" or shared_out:
            raise ConfigError(
                f"{key} cannot be changed by --resume: run {run.name} goes on with its data as they were "
                "described and shared out when it began. Begin another run to change it"
            )


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
    for key in (text.partition("=")[0] for text in settings):
        if (options := ELSEWHERE.get(key.partition(".")[0])) is not None:
            raise ConfigError(f"{key} cannot be set: give {options}")
        if url is not None and key == "replay.url":
            raise ConfigError("replay.url cannot be set beside --url, which says where the episodes are")
    given = {key: yaml_value(value) for key, _, value in (text.partition("=") for text in settings)}
    if url is None:
        places = [Path(path).resolve() for path in datasets]
        if twice := sorted({str(path) for path in places if places.count(path) > 1}):
            raise ConfigError(f"{', '.join(twice)} is given more than once: give each data set once")
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


def train(config: RunConfig, run: Run | None, cluster: str | None) -> int:
    """Train on recorded data.

    Args:
        config: the run's config.
        run: the run to go on with; None creates one.
        cluster: address of an existing Ray cluster to train on; None trains on this machine.

    Returns:
        The exit code: 0 finished, 1 failed, 130 interrupted.

    Raises:
        ConfigError: the run has a simulator, has no policy to begin from, or lacks a package.
        RunError: as for `take_run`.
    """
    if not config.data.spec:
        raise ConfigError("this run has a simulator: go on with it by `longview launch --resume RUN`")
    config = found_start(config, run)
    refuse_uncopyable(config)
    refuse_unmirrored(config)
    if needs_ray(config, cluster):
        choose_ray_auth(cluster)
        import_module("ray")  # without it this fails before a run's folder is made
    if cluster is None:
        config = replace(config, placement=PlacementConfig())
    return train_recorded(config, take_run(config, run), cluster)


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
