"""RunConfig: each folder's own config, composed; read from YAML plus `key=value` overrides.

Nothing here imports torch, Ray or a simulator: a wrong config is an error in the first second.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from longview.actors.config import ActorsConfig, CollectConfig, EnvironmentConfig, EvaluationConfig
from longview.actors.control import fault
from longview.actors.task import RecordedTask, Task, load_task, task_file
from longview.cluster.run.upgrade import GONE
from longview.learner.config import LearnerConfig, PolicyConfig, policy_class, policy_names
from longview.monitoring.mirrors import MIRRORS
from longview.replay.config import PASSWORD_VARIABLE, StoreConfig, with_password
from longview.replay.episode import TaskSpec
from longview.replay.errors import ReplayError
from longview.replay.names import check_name

PRESETS, PIXELS = Path(__file__).parent / "presets", ".pixels.yaml"
AS_TYPED = ("name", "task", "demonstrations", "learner.start_from")
"""Keys whose value in `key=value` is not read as YAML, in which `my run #3` would be `my run`."""


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what was expected and what came."""


@dataclass(frozen=True)
class MonitoringConfig:
    """Where metrics are served and mirrored."""

    port: int = 0
    """Port of /metrics, 0 to 65535. 0 chooses a free one and writes it to the run's folder."""
    host: str = "127.0.0.1"
    """Address that /metrics listens on."""
    mirrors: tuple[str, ...] = ()
    """Where curves over training steps are written besides: `tensorboard`, `wandb` or both."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must lie in 0..65535, not {self.port}")
        if unknown := sorted(set(self.mirrors) - MIRRORS.keys()):
            raise ValueError(f"mirrors must be some of {', '.join(MIRRORS)}, not {', '.join(unknown)}")


@dataclass(frozen=True)
class InferenceConfig:
    """Servers that hold the policy for the actors. docs/performance.md says when they pay."""

    servers: int = 0
    """Number of servers, at most as many as actors, which they share out. 0: each actor holds the policy."""
    max_batch: int = 256
    """Largest number of simulators that a server decides for at once."""
    wait_ms: float = 2.0
    """Milliseconds, 0 to 1000, for which a server waits for more requests before it decides."""

    def __post_init__(self) -> None:
        if self.servers < 0:
            raise ValueError(f"servers must not be negative, not {self.servers}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {self.max_batch}")
        if not 0 <= self.wait_ms <= 1000:
            raise ValueError(f"wait_ms must lie in 0..1000, not {self.wait_ms}")


@dataclass(frozen=True)
class PlacementConfig:
    """Resources that the roles request from an existing Ray cluster, in addition to one CPU each.

    A run that starts its own Ray is on one machine and ignores this section.
    """

    actor: dict[str, float] = field(default_factory=dict)
    """Custom resources that a rollout actor takes, such as `{actor: 1}`. Nodes without them get no actors."""
    learner: dict[str, float] = field(default_factory=dict)
    """Custom resources that a learner rank takes."""
    learner_gpus: float | None = None
    """GPUs of a learner rank: a whole number, or a share of one such as 0.5 if there is only one rank. None:
    one, if there are enough for all ranks when training starts."""
    actor_gpus: float = 0.0
    """GPUs of a rollout actor that holds the policy: a whole number, or a share of one."""
    inference_gpus: float = 0.0
    """GPUs of an inference server: a whole number, or a share of one."""
    autoscaled: bool = False
    """Whether the cluster grows on request. Then a run may ask for more than the cluster has at the start."""

    def __post_init__(self) -> None:
        for role, resources in (("actor", self.actor), ("learner", self.learner)):
            for name, amount in resources.items():
                if amount <= 0:
                    raise ValueError(f"{role}.{name} must be positive, not {amount:g}")
        for name in ("learner_gpus", "actor_gpus", "inference_gpus"):
            gpus = getattr(self, name) or 0.0
            if gpus < 0:
                raise ValueError(f"{name} must not be negative, not {gpus:g}")
            if gpus > 1 and gpus % 1:
                raise ValueError(f"{name} must be a share of one GPU or a whole number, not {gpus:g}")


@dataclass(frozen=True)
class DataConfig:
    """Recorded data that a run learns from without a simulator. `longview train` sets this section."""

    paths: tuple[str, ...] = ()
    """Data sets of one robot, in any format that `longview store import` reads. Empty: the episodes are in
    the store already."""
    namespace: str | None = None
    """Namespace of the episodes in the Redis of `replay.url`, which is only read. None: the run's own, into
    which `paths` are imported."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Description of the data: arrays, control rate, longest episode, T_o grid. Empty: `task` names an
    installed task, which has a simulator."""
    filter: str | None = None
    """Named subset of the episodes of each data set. None: all episodes."""
    hz: float | None = None
    """Control steps per second, where the data do not say."""
    keys: tuple[str, ...] = ()
    """Observations to take. Empty: all that the format's rules take."""
    drop: tuple[str, ...] = ()
    """Arrays to leave out."""
    map: Mapping[str, str] = field(default_factory=dict)
    """New names of arrays, by their name in the data set."""
    size: tuple[int, int] | None = (96, 96)
    """Width and height that pictures are stored at. None: their own."""
    skip_bad: bool = False
    """Whether what cannot be read is left out and listed. Otherwise it ends the run."""

    def __post_init__(self) -> None:
        if self.hz is not None and not self.hz > 0:
            raise ValueError(f"hz must be positive, not {self.hz:g}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be two sides of at least 1 pixel, not {list(self.size)}")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of. A laptop and a cluster take the same file."""

    task: str = "return_point"
    """Name of the task to learn, module:attribute of a task of your own, `gym:ID` or `robosuite:NAME`."""
    seed: int = 0
    """Seed of the run, at least 0. Seeds of episodes, batches, weights and noise follow from it."""
    name: str | None = None
    """Name of the run and its folder; may hold spaces and any letters. None: the task and the time."""
    demonstrations: str | None = None
    """Path of human demonstrations to start from, in any format that `longview store import` reads. None: the
    task's expert demonstrates."""
    data: DataConfig = field(default_factory=DataConfig)
    """Recorded data of a run without a simulator."""
    copy_to: str | None = None
    """URL of a folder that the run's results are copied to while it is under way, into a folder of the run's
    name: `s3://bucket/runs`, `gs://bucket/runs` or `file:///path`. The environment gives credentials."""
    learners: int = 1
    """G: learner ranks, at least 1. They share out each batch. Each has its own GPU, if there are enough."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """Settings of a task `gym:ID` or `robosuite:NAME`."""
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    """Simulators, and the demonstrations to start with."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """What actors collect with the policy while it is trained."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Policy and training."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Episodes that measure success."""
    replay: StoreConfig = field(default_factory=StoreConfig)
    """The episode store."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Servers that hold the policy for the actors."""
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    """Where metrics are served and mirrored."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Resources of an existing Ray cluster."""

    def __post_init__(self) -> None:
        if self.learners < 1:
            raise ValueError(f"learners must be at least 1, not {self.learners}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.name is not None:
            check_name(self.name)
        if self.copy_to is not None and not re.fullmatch(r"(s3|gs|file)://[^@]+", self.copy_to):
            raise ValueError(
                "copy_to must be a URL that starts with s3://, gs:// or file:// and holds no credentials, "
                f"not {self.copy_to!r}"
            )

    @property
    def first_version(self) -> int:
        """Training step of the first version. Nobody can collect before, so it comes early where actors
        collect."""
        every = self.learner.publish_every
        return every if self.collect.source is None else min(every, max(1, self.learner.steps // 50))

    @property
    def rollout_actors(self) -> int:
        """Rollout actors that the run begins with; none on recorded data."""
        return 0 if self.data.spec else self.actors.count

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
        tree |= read_yaml(file)
    given = dict(_policy_of(tree))
    for override in overrides:
        _apply(tree, override)
    match tree:
        case {"collect": {"kind": False} as collect}:  # YAML reads an unquoted off as false
            collect["kind"] = "off"
    with _within("learner.policy"):
        policy_kind = _kind_of(_policy_of(tree), given)
    _refuse_unknown_keys(tree, RunConfig, policy_kind)
    if isinstance(tree.setdefault("learner", {}), dict):
        policy = tree["learner"].get("policy", {})
        tree["learner"]["policy"] = validated(policy_kind, policy, "learner.policy")
    config: RunConfig = validated(RunConfig, tree)
    _check(config)
    if config.replay.url is not None:
        config = replace(config, replay=replace(config.replay, url=with_password(config.replay.url)))
    return config


def task_of(config: RunConfig) -> Task:
    """The run's task, seen through its cameras; or the task that recorded data describe.

    Raises:
        UnknownTask: there is none of that name.
        ValueError: it has no such cameras, or the description is damaged.
    """
    if config.data.spec:
        try:
            return RecordedTask(TaskSpec.from_dict(config.data.spec))
        except (KeyError, TypeError, AttributeError, ReplayError) as error:
            raise ValueError(f"data.spec is damaged: {error}") from None
    return load_task(config.task, config.actors.cameras, config.environment, oracle=config.actors.oracle)


def environment_of(overrides: Sequence[str]) -> EnvironmentConfig:
    """Read the section `environment` of overrides alone.

    Raises:
        ConfigError: as `read_config`.
    """
    tree: dict[str, Any] = {"environment": {}}
    for override in overrides:
        if override.startswith("environment."):
            _apply(tree, override)
    return cast(EnvironmentConfig, validated(EnvironmentConfig, tree["environment"], "environment"))


def described(spec: TaskSpec) -> dict[str, Any]:
    """Describe a task for `data.spec`. Limits that are infinite are left out, because JSON has none."""
    plain_spec = spec.to_dict()
    for array in (plain_spec["action"], *plain_spec["observation"].values()):
        for side in ("low", "high"):
            if not math.isfinite(array[side]):
                del array[side]
    return cast(dict[str, Any], plain(plain_spec))


def preset_file(task: str) -> Path | None:
    """Return the settings that `longview demo` uses for a task: in `PRESETS`, or beside the task's module in
    a YAML file of the same name. None if there are neither."""
    module = task_file(task)
    beside = [] if module is None else [module.with_suffix(".yaml")]
    return next((file for file in (PRESETS / f"{task}.yaml", *beside) if file.exists()), None)


def pixels_file(task: str) -> Path:
    """Return the settings that `longview demo --pixels` uses for a task.

    Raises:
        ConfigError: there are none.
    """
    file = PRESETS / f"{task}{PIXELS}"
    if not file.exists():
        known = sorted(found.name.removesuffix(PIXELS) for found in PRESETS.glob(f"*{PIXELS}"))
        raise ConfigError(
            f"no settings to learn {task} from pixels, only {', '.join(known)}: leave out --pixels and set "
            "actors.cameras.names and actors.cameras.instead_of"
        )
    return file


def write_config(config: RunConfig, file: Path) -> None:
    """Write a config as resolved, without any password."""
    file.write_text(yaml.safe_dump(public_config(config), sort_keys=False))


def public_config(config: RunConfig) -> dict[str, Any]:
    """A config as plain types, without any password."""
    tree = cast(dict[str, Any], plain(asdict(config)))
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


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a config's tree of keys and values, unchecked.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
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
    value = yaml_value(text) if key not in AS_TYPED or text in ("", "null") else text
    *parents, last = key.split(".")
    if parents == ["learner", "mix"]:  # the other strata keep their weights
        learner = tree.setdefault("learner", {})
        if isinstance(learner, dict):
            learner.setdefault("mix", dict(LearnerConfig().mix))
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {parent} is a value, {below!r}, and has no keys")
        tree = below
    tree[last] = value


def yaml_value(text: str) -> Any:
    """Read the value of an override `key=value` as YAML. What is no YAML is a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _policy_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `learner.policy` of a config's tree; empty where it has none."""
    learner = tree.get("learner")
    policy = learner.get("policy") if isinstance(learner, dict) else None
    return policy if isinstance(policy, dict) else {}


def _kind_of(policy: dict[str, Any], given: Mapping[str, Any]) -> type[PolicyConfig]:
    """Find the config class of the policy's settings.

    Settings that came with a file and that only other kinds or architectures have are left out: an override
    may choose another policy than a preset was written for.

    Raises:
        ValueError: its kind or architecture is not installed.
    """
    unchanged = {key for key, value in given.items() if policy.get(key) == value}
    if policy.get("kind") != given.get("kind") and "architecture" in unchanged:
        del policy["architecture"]
    kind = policy_class(policy)
    known = {key for entry in policy_names().values() for key in _keys(entry.load())}
    for key in unchanged & policy.keys() & (known - set(_keys(kind))):
        del policy[key]
    return kind


def _refuse_unknown_keys(
    tree: Mapping[str, Any], kind: type, policy_kind: type[PolicyConfig], prefix: str = ""
) -> None:
    """Refuse a key that a config, or one below it, does not have; the message suggests the nearest one."""
    keys = _keys(kind)
    for key, value in tree.items():
        if key not in keys:
            if (instead := GONE.get(f"{prefix}{key}")) is not None:
                raise ConfigError(f"{prefix}{key} is no longer a key: {instead}")
            known = [name for name, _ in every_key(RunConfig, policy_kind)]
            raise unknown_key(f"{prefix}{key}", known, keys)
        below = policy_kind if keys[key] is PolicyConfig else keys[key]
        if is_dataclass(below) and isinstance(value, dict):
            _refuse_unknown_keys(value, cast(type, below), policy_kind, f"{prefix}{key}.")


def unknown_key(key: str, known: Iterable[str], listed: Iterable[str] | None = None) -> ConfigError:
    """Make the error of an unknown key, which suggests the nearest known one.

    Args:
        key: the unknown key.
        known: keys that may have been meant.
        listed: keys to list where none is near; by default all known ones.
    """
    near = get_close_matches(key, known := list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(listed or known)}"
    return ConfigError(f"unknown key {key}; {hint}")


def _keys(kind: type) -> dict[str, Any]:
    """Return the type of every key of a config."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def every_key(kind: type, policy_kind: type[PolicyConfig], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config and its type, those of the configs below it included."""
    for key, hint in _keys(kind).items():
        yield prefix + key, hint
        below = policy_kind if hint is PolicyConfig else hint
        if is_dataclass(below):
            yield from every_key(cast(type, below), policy_kind, f"{prefix}{key}.")


def validated(kind: type, tree: Any, prefix: str = "") -> Any:
    """Make a config of plain values.

    Raises:
        ConfigError: a value has the wrong type or does not fit the others. The message starts with its dotted
            key: a config's own errors start with the name of their field, the rest is added here.
    """
    try:
        return _adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, prefix))) from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Return the validator of a config class, which takes long to make."""
    return TypeAdapter(kind)


def _explain(error: ValidationError, prefix: str) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in (prefix, *problem["loc"]) if part != "")
        if problem["type"] == "value_error":
            yield f"{path}." * bool(path) + problem["msg"].removeprefix("Value error, ")
        else:
            yield f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"


@contextmanager
def _within(prefix: str) -> Iterator[None]:
    """Turn a config's own error into a ConfigError with the dotted key.

    Raises:
        ConfigError: what is inside raises ValueError.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}.{error}") from None


def _check(config: RunConfig) -> None:
    """Refuse values that do not fit the task, or each other.

    Raises:
        ConfigError: the message starts with the dotted key.
    """
    if config.replay.url is not None and _hides_password(config.replay.url):
        raise ConfigError(
            "replay.url: give a password as redis://user:password@host, percent-encoded, or in the "
            f"environment as {PASSWORD_VARIABLE}; not as a parameter"
        )
    try:
        task = task_of(config)
    except ValueError as error:  # UnknownTask is one
        raise ConfigError(str(error)) from None
    spec = task.spec
    with _within("learner.policy"):
        longest = config.learner.policy.horizon(spec).context
        config.learner.policy.normalization(spec)
        config.learner.policy.crops(spec)
    with _within("learner.curriculum"):
        config.learner.curriculum.check(longest)
    with _within("learner"):
        config.learner.windows(spec, config.learners)
    lengths = {"evaluation": config.context_lengths(spec), "collect": config.collect.context_lengths}
    for section, wanted in lengths.items():
        if too_long := [length for length in wanted if length > longest]:
            raise ConfigError(
                f"{section}.context_lengths {too_long} are longer than the longest that is trained, "
                f"learner.policy.context_length {longest}"
            )
    delay, execute = config.evaluation.delay, config.learner.policy.execute
    if 2 * delay > execute:
        raise ConfigError(f"evaluation.delay {delay} exceeds half of learner.policy.execute {execute}")
    if wrong := fault(task, config.collect):
        raise ConfigError(wrong)
    _check_history(config)
    servers, placement = config.inference.servers, config.placement
    if servers > config.actors.count:
        raise ConfigError(
            f"inference.servers {servers} are more than actors.count {config.actors.count}: a server without "
            "actors has nothing to do"
        )
    if config.learners > 1 and (placement.learner_gpus or 0) % 1:
        raise ConfigError(
            f"placement.learner_gpus {placement.learner_gpus:g} with learners {config.learners}: ranks that "
            "share a GPU cannot average their gradients; give each a whole one"
        )
    if placement.inference_gpus and not servers:
        raise ConfigError(
            f"placement.inference_gpus {placement.inference_gpus:g} needs servers: set inference.servers, or "
            "placement.actor_gpus for actors that hold the policy themselves"
        )
    if placement.actor_gpus and servers:
        raise ConfigError(
            f"placement.actor_gpus {placement.actor_gpus:g}: no actor holds a policy with inference.servers "
            f"{servers}; set placement.inference_gpus"
        )
    _check_collection(config)


def _check_collection(config: RunConfig) -> None:
    """Refuse limits of collection that somebody would wait for in vain, or that nothing could reach.

    Raises:
        ConfigError: as the message says.
    """
    collect, publish_every = config.collect, config.learner.publish_every
    if collect.max_staleness is not None and collect.max_staleness < publish_every:
        raise ConfigError(
            f"collect.max_staleness {collect.max_staleness} is less than learner.publish_every "
            f"{publish_every}: actors would wait for versions that do not come"
        )
    for name in ("samples_per_insert", "minimum_steps"):
        if collect.expert_steps is not None and (limit := getattr(config.replay, name)):
            raise ConfigError(
                f"collect.expert_steps {collect.expert_steps} ends the collection, and after that the "
                f"learner would wait for more at replay.{name} {limit:g}: give one of them"
            )
    if collect.expert_steps is not None and collect.kind in ("rollout", "human"):
        raise ConfigError(
            f"collect.expert_steps limits nothing: no expert acts with collect.kind {collect.kind}"
        )


def _check_history(config: RunConfig) -> None:
    """Refuse to show policies another history where that does more than control an evaluation.

    Raises:
        ConfigError: as the message says.
    """
    collect, inference, policy = config.collect, config.inference, config.learner.policy
    reasons = [
        (collect.source, f"collect.kind {collect.kind}: actors would collect with it"),
        (inference.servers, f"inference.servers {inference.servers}: they show each policy its own"),
        (policy.kind == "recurrent", "learner.policy.kind recurrent: its state holds the history"),
    ]
    for holds, reason in reasons:
        if holds and config.evaluation.history != "own":
            raise ConfigError(f"evaluation.history {config.evaluation.history} does not go with {reason}")


def _hides_password(url: str) -> bool:
    """Tell whether a URL has a password where `without_password` would leave it: as a parameter, or with an
    unescaped / ? or #, which moves the rest of the password behind the host."""
    parts = urlsplit(url)
    behind = parts.path + parts.query + parts.fragment
    return "password=" in url or (parts.scheme != "unix" and "@" in behind)


def plain(value: Any) -> Any:
    """Return a config's value as plain types: mappings as dicts, sequences as lists."""
    if isinstance(value, Mapping):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, tuple | list):
        return [plain(below) for below in value]
    return value
