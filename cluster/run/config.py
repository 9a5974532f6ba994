"""RunConfig: each folder's own config, composed; read from YAML plus `key=value` overrides.

Nothing here imports torch, Ray or a simulator: a wrong config is an error in the first second.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_type_hints
from urllib.parse import quote, urlsplit, urlunsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from longview.actors.config import ActorsConfig, EvaluationConfig
from longview.actors.task import Task, load_task, task_file
from longview.learner.config import LearnerConfig
from longview.replay.config import StoreConfig
from longview.replay.episode import TaskSpec

PRESETS = Path(__file__).parent / "presets"
PASSWORD_VARIABLE = "LONGVIEW_REDIS_PASSWORD"


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what was expected and what came."""


@dataclass(frozen=True)
class MonitoringConfig:
    """Where metrics are served."""

    port: int = 0
    """Port of /metrics; 0 chooses a free one, which the run's folder then tells."""
    host: str = "127.0.0.1"
    """Address to listen on."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"monitoring.port must lie in 0..65535, not {self.port}")


@dataclass(frozen=True)
class PlacementConfig:
    """What the roles ask of an existing Ray cluster, beside a CPU each. A cluster of the run's own is one
    machine, where nothing of this applies."""

    actor: dict[str, float] = field(default_factory=dict)
    """Custom resources that a rollout actor takes, such as `{actor: 1}`: nodes without them get no actors."""
    learner: dict[str, float] = field(default_factory=dict)
    """Custom resources that a learner rank takes."""
    learner_gpus: int | None = None
    """GPUs of a learner rank; by default one, if there are enough for all when training starts."""
    autoscaled: bool = False
    """The cluster grows when more is asked for: what it has when a run is launched is no limit."""

    def __post_init__(self) -> None:
        for role, resources in (("actor", self.actor), ("learner", self.learner)):
            for name, amount in resources.items():
                if amount <= 0:
                    raise ValueError(f"placement.{role}.{name} must be positive, not {amount:g}")
        if self.learner_gpus is not None and self.learner_gpus < 0:
            raise ValueError(f"placement.learner_gpus must not be negative, not {self.learner_gpus}")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of. The same file serves a laptop and a cluster."""

    task: str = "return_point"
    seed: int = 0
    """Seeds of episodes, batches, weights and noise all follow from it."""
    name: str | None = None
    """Name of the run's folder; by default the task and the time."""
    demonstrations: str | None = None
    """Human demonstrations to start from, in any format that `longview store import` reads; without them the
    task's expert demonstrates."""
    learners: int = 1
    """G: learner ranks, each on a GPU of its own where there are enough."""
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    replay: StoreConfig = field(default_factory=StoreConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    def __post_init__(self) -> None:
        if self.learners < 1:
            raise ValueError(f"learners must be at least 1, not {self.learners}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.name is not None and (not self.name or self.name != Path(self.name).name):
            raise ValueError(f"name must be a plain folder name, not {self.name!r}")

    def context_lengths(self, spec: TaskSpec) -> tuple[int, ...]:
        """Context lengths to evaluate."""
        return self.evaluation.context_lengths or spec.context_lengths

    def demonstration_count(self, spec: TaskSpec) -> int:
        """Demonstrations to train on, if there are so many."""
        return self.actors.demonstrations or spec.demonstrations


def read_config(file: Path | None, overrides: Sequence[str] = (), **preset: Any) -> RunConfig:
    """Read, override and check a config.

    Args:
        file: YAML; None starts from the defaults.
        overrides: `key=value` with dotted keys; the value is YAML.
        preset: top-level values that come before both.

    Raises:
        ConfigError: file or override cannot be read, a key is unknown, a value has the wrong type or does
            not fit the others.
    """
    tree: dict[str, Any] = dict(preset)
    if file is not None:
        tree |= _read_yaml(file)
    for override in overrides:
        _apply(tree, override)
    _refuse_unknown_keys(tree, RunConfig)
    try:
        config = TypeAdapter(RunConfig).validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None
    return _with_password(_checked(config))


def task_of(config: RunConfig) -> Task:
    """The run's task, seen through its cameras.

    Raises:
        UnknownTask: there is none of that name.
        ValueError: it has no such cameras.
    """
    return load_task(config.task, config.actors.cameras)


def preset_file(task: str) -> Path | None:
    """Return the settings that `longview demo` uses for a task: in `PRESETS`, or beside the task's module in
    a YAML file of the same name. None if there are neither."""
    module = task_file(task)
    beside = [] if module is None else [module.with_suffix(".yaml")]
    return next((file for file in (PRESETS / f"{task}.yaml", *beside) if file.exists()), None)


def write_config(config: RunConfig, file: Path) -> None:
    """Write a config as resolved, without any password."""
    file.write_text(yaml.safe_dump(public_config(config), sort_keys=False))


def public_config(config: RunConfig) -> dict[str, Any]:
    """A config as plain types, without any password."""
    tree = cast(dict[str, Any], _plain(asdict(config)))
    if config.replay.url is not None:
        tree["replay"]["url"] = without_password(config.replay.url)
    return tree


def without_password(url: str) -> str:
    """A URL that may be written down, and works again once the environment gives the password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=user + parts.netloc.rpartition("@")[2]))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{file} must hold keys and values, not a {type(tree).__name__}")
    return tree or {}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected key=value, not {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {parent} is a value, {below!r}, and has no keys")
        tree = below
    tree[last] = value


def _refuse_unknown_keys(tree: Mapping[str, Any], kind: type, prefix: str = "") -> None:
    known = dict(_keys(RunConfig))
    hints = get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            near = get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(hints)}"
            raise ConfigError(f"unknown key {prefix}{key}{hint}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown_keys(value, cast(type, hints[key]), f"{prefix}{key}.")


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, hint in get_type_hints(kind).items():
        yield prefix + key, hint
        if is_dataclass(hint):
            yield from _keys(cast(type, hint), f"{prefix}{key}.")


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "value_error":  # ours, and it names its key itself
            yield problem["msg"].removeprefix("Value error, ")
        else:
            yield f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"


def _checked(config: RunConfig) -> RunConfig:
    if config.replay.url is not None and "password=" in config.replay.url:
        raise ConfigError(
            "replay.url: give a password as redis://user:password@host, percent-encoded, or in the "
            f"environment as {PASSWORD_VARIABLE}; not as a parameter"
        )
    try:
        spec = task_of(config).spec
        longest = config.learner.policy.horizon(spec).context
        config.learner.policy.normalization(spec)
        config.learner.policy.crops(spec)
        config.learner.curriculum.check(longest)
        config.learner.windows(spec)
    except ValueError as error:  # UnknownTask is one
        raise ConfigError(str(error)) from None
    too_long = [length for length in config.context_lengths(spec) if length > longest]
    if too_long:
        raise ConfigError(
            f"evaluation.context_lengths {too_long} are longer than the longest that is trained, "
            f"learner.policy.context_length {longest}"
        )
    return config


def _with_password(config: RunConfig) -> RunConfig:
    """A password that the environment holds joins the URL that does not."""
    url, password = config.replay.url, os.environ.get(PASSWORD_VARIABLE)
    if url is None or not password or urlsplit(url).password is not None:
        return config
    parts = urlsplit(url)
    netloc = f"{parts.username or ''}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return replace(config, replay=replace(config.replay, url=urlunsplit(parts._replace(netloc=netloc))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(below) for below in value]
    return value
