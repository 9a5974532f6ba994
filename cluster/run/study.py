"""A study: many runs that differ in a few settings. Reads its YAML file and plans its cells; starts nothing.

settings      what all cells change in the settings that `longview demo` uses for their task
axes          values that are combined; each combination is a place in the grid
methods       named settings that are compared at every place
seeds         each method is trained once for every seed
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from longview.cluster.run.config import (
    AS_TYPED,
    ConfigError,
    RunConfig,
    every_key,
    plain,
    preset_file,
    read_config,
    read_yaml,
    task_of,
    unknown_key,
    validated,
)
from longview.cluster.run.folder import RunError, read_rows
from longview.cluster.run.preflight import resources_of_run
from longview.learner.config import PolicyConfig
from longview.monitoring.study import Results, StudyCell
from longview.replay.names import check_name

STUDIES = Path(__file__).parent / "studies"
"""Folder of the studies that `longview study` knows by name."""
DATA_SCALE = "data_scale"
"""Axis of the number of demonstrations, as a multiple of the task's own N."""
AGAIN = " (again)"
"""Ending of the control arm's name."""
OTHER_SEED = 1_000_000
"""Distance of the control arm's training seed from the seed of the method that it repeats."""
OPERATIONAL = (
    *("name", "copy_to", "replay.url", "inference", "monitoring", "placement"),
    *("actors.count", "evaluation.final_episodes"),
)
"""Settings that say where and how long a run works, and change nothing of what an episode shows."""
SPREAD_OF_LOOKS = 10
"""Most times that the last look's episodes may be the first's. Of looks further apart, the first would spend
next to nothing of the probability of a false claim."""
SECTIONS = {key for key, hint in every_key(RunConfig, PolicyConfig) if is_dataclass(hint)}
"""Keys that have keys below them, and no value of their own."""

STEP_SECONDS, CAMERA_FACTOR = 0.03, 8.0
"""Estimated time of a training step of 64 windows at size `tiny`; how much longer it is with cameras."""
ACTING_SECONDS = 0.002
"""Estimated time of an environment step in evaluation, the policy included."""
START_SECONDS = 30.0
"""Estimated time that a run takes to start and end."""


@dataclass(frozen=True)
class Method:
    """A method that is compared: settings under a name."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config values by dotted key."""
    trained: Literal["together", "each", "shortest", "longest"] = "together"
    """Context lengths T_o of the evaluation that one policy serves. `together`: all of them; `each`: one, so
    the method has a policy and a cell for every length; `shortest` and `longest`: that one alone."""


@dataclass(frozen=True)
class Study:
    """A study, as its file describes it."""

    name: str
    """Name of the study and of its folder; by default that of the file."""
    methods: Mapping[str, Method]
    """Methods to compare, by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config values of all cells, by dotted key."""
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values by axis, all of which are combined: any dotted config key, such as `task`, or `data_scale`."""
    places: tuple[Mapping[str, Any], ...] = ()
    """Combinations to study, each with its value by axis, where not all are. It replaces `axes`."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs. Demonstrations, training and evaluation episodes follow from them."""
    baseline: str | None = None
    """Method that all others are compared with. None: the first."""
    control: str | None = None
    """Method that is trained once more, with another training seed, on the same demonstrations: it shows how
    much two policies of one method differ. None: no method."""
    looks: tuple[int, ...] = (200,)
    """Evaluation episodes of each cell and T_o, ascending. After each number, points whose comparisons are
    all decided are evaluated no further."""
    retries: int = 2
    """Times that a cell which failed is run again."""
    at_once: int | None = None
    """Most cells at work together. None: as many as there are CPUs and GPUs for."""

    def __post_init__(self) -> None:
        check_name(self.name, "study")
        if not self.methods:
            raise ValueError("methods must name at least one method")
        if self.axes and self.places:
            raise ValueError("axes and places exclude each other: places list what axes would combine")
        for key in ("baseline", "control"):
            if (name := getattr(self, key)) is not None and name not in self.methods:
                raise ValueError(f"{key} must be one of {', '.join(self.methods)}, not {name!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different numbers of 0 or more, not {list(self.seeds)}")
        if not self.looks or self.looks[0] < 1 or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks must ascend from 1 or more, not {list(self.looks)}")
        if SPREAD_OF_LOOKS * self.looks[0] < self.looks[-1]:
            raise ValueError(
                f"the first of looks {list(self.looks)} must be at least a tenth of the last: an earlier one "
                "could decide nothing"
            )
        if self.retries < 0 or (self.at_once or 1) < 1:
            raise ValueError(
                f"retries must be 0 or more and at_once 1 or more, not {self.retries} and {self.at_once}"
            )

    @property
    def reference(self) -> str:
        """Name of the method that all others are compared with."""
        return self.baseline or next(iter(self.methods))


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study: a method at a place in the grid, with one seed."""

    place: Mapping[str, Any]
    """Value by axis; the task is always one."""
    method: str
    """Name of the method."""
    length: int | None
    """T_o of a policy that serves this one alone, where its method has a policy for each; else None."""
    seed: int
    """Seed of the run."""
    settings: str
    """Hash of the settings that the results follow from."""
    config: RunConfig
    """Config of the run."""

    @property
    def name(self) -> str:
        """Name of the cell's run."""
        return f"{_slug(*self.place.values(), self.method, self.length or '')}-{self.seed}-{self.settings}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Context lengths T_o that the cell is evaluated at."""
        return self.config.context_lengths(task_of(self.config).spec)

    @property
    def facts(self) -> dict[str, Any]:
        """Describe the cell in plain values, for files."""
        return {**self.place, "method": self.method, "T_o": self.length, "seed": self.seed}

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.facts.items() if value is not None)


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations that cells share."""

    name: str
    """Name of the run that collects them, and of their namespace."""
    config: RunConfig
    """Config of that run."""


def read_study(name: str, overrides: Sequence[str] = ()) -> tuple[Study, Path]:
    """Read and check a study.

    Args:
        name: path of a YAML file, or name of a study in `STUDIES`.
        overrides: `key=value`: a key of the study such as `seeds`, an axis as `axes.task`, or any config key,
            which is then set in all cells.

    Returns:
        The study, and the file of its finished cells: beside the study's own file, or in the working folder.

    Raises:
        ConfigError: there is no such study, a key is unknown, or a value does not fit.
    """
    known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    file = STUDIES / f"{name}.yaml" if name in known else Path(name)
    if not file.exists():
        raise ConfigError(f"no study {name}: give a YAML file, or one of {', '.join(known)}")
    given = {key: value for key, value in read_yaml(file).items() if value is not None}
    tree: dict[str, Any] = {"name": file.stem, "settings": {}, "axes": {}, "methods": {}} | given
    if unknown := tree.keys() - (keys := _names(Study)):
        raise unknown_key(min(unknown), keys)
    _refuse_damaged(tree)
    for override in overrides:
        _override(tree, override)
    _refuse_damaged(tree)
    tree["methods"] = {method: body or {} for method, body in tree["methods"].items()}
    for method, body in tree["methods"].items():
        if isinstance(body, dict) and (unknown := body.keys() - (keys := _names(Method))):
            wrong = unknown_key(min(unknown), keys)
            raise ConfigError(f"methods.{method}: {wrong}; config keys belong below settings")
    study: Study = validated(Study, tree)
    _refuse_misplaced(study)
    return study, (Path() if name in known else file.parent) / f"{study.name}.jsonl"


def plan(study: Study) -> list[Cell]:
    """Plan the cells of a study, seed by seed, so that the first complete comparison comes early.

    Raises:
        ConfigError: a setting is unknown or does not fit; or two cells have the same settings.
    """
    places = study.places or [
        dict(zip(study.axes, values, strict=True)) for values in product(*study.axes.values())
    ]
    cells = [cell for seed in study.seeds for place in places for cell in _cells(study, place, seed)]
    first: dict[str, Cell] = {}
    for cell in cells:
        if (same := first.setdefault(cell.settings, cell)) is not cell:
            raise ConfigError(f"two cells have the same settings: ({same}) and ({cell})")
    return cells


def demonstrations_of(cells: Sequence[Cell]) -> dict[str, Demonstrations]:
    """Find the demonstrations that cells share, by the settings of each cell. Cells that import their own
    have none."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.config.demonstrations is None:
            config, actors = cell.config, cell.config.actors
            seen = [vars(config.environment), vars(actors.cameras), actors.oracle]
            key = _hashed([config.task, config.seed, actors.noise, *seen])
            groups.setdefault(key, []).append(cell)
    found: dict[str, Demonstrations] = {}
    for key, group in groups.items():
        largest = max(group, key=lambda cell: demonstration_count(cell.config)).config
        actors = replace(largest.actors, demonstrations=demonstration_count(largest))
        name = f"demonstrations-{_slug(largest.task)}-{largest.seed}-{key}"
        found |= dict.fromkeys(
            (cell.settings for cell in group),
            Demonstrations(name, replace(largest, name=name, actors=actors)),
        )
    return found


def trained_alike(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Find the cells that need no training of their own, by the settings of each: they differ from another
    cell only in how the policy acts, or in the history that the evaluation shows and its length. Each gets
    the cell whose policy it can take."""
    alike = dict[str, list[Cell]]()
    for cell in cells:
        settings, config = plain(asdict(cell.config)), cell.config
        del settings["evaluation"]["history"]
        # What a policy collects follows from how and where it acts, and adapters are files of their own.
        if config.collect.source is None and not config.learner.adapters.rank:
            del settings["evaluation"]["context_lengths"]
            for name in config.learner.policy.acting:
                del settings["learner"]["policy"][name]
        alike.setdefault(_hashed(settings), []).append(cell)
    found = dict[str, Cell]()
    for group in alike.values():
        trained, *others = sorted(group, key=_acting)
        found |= {cell.settings: trained for cell in others}
    return found


def _acting(cell: Cell) -> tuple[Any, ...]:
    """Return how a cell's policy acts. Of cells that train alike, the least trains."""
    policy = cell.config.learner.policy
    shown = cell.config.evaluation.history != "own"
    return shown, -max(cell.lengths), *(getattr(policy, name) for name in sorted(policy.acting))


def demonstration_count(config: RunConfig) -> int:
    """Count the demonstrations that a run needs of an expert, those to validate on included."""
    return config.demonstration_count(task_of(config).spec) + config.learner.validation_episodes


def this_machine() -> dict[str, float]:
    """Return the resources that cells on this machine share, by Ray's name."""
    return {"CPU": float(os.cpu_count() or 1)}


def asked_by(config: RunConfig, room: Mapping[str, float], address: str | None) -> dict[str, float]:
    """Return the resources that a run takes.

    Args:
        config: the run's.
        room: all resources that there are.
        address: an existing Ray cluster, where every role reserves what it takes. None: the run is on this
            machine, where it takes no more CPUs than there are, and shares GPUs with others.
    """
    if address is not None:
        return resources_of_run(config, room.get("GPU", 0.0))
    cpus = resources_of_run(config, 0.0)["CPU"]
    if _by_turns(config):
        cpus = max(config.learners, cpus - config.learners)
    return {"CPU": min(room["CPU"], cpus)}


def threads_of(config: RunConfig, asked: Mapping[str, float], address: str | None) -> int:
    """Return how many threads the learner ranks of a run may have together: one each, or all CPUs that the
    run takes on this machine while its actors have nothing to do.

    Args:
        config: the run's.
        asked: resources that the run takes.
        address: an existing Ray cluster, or None.
    """
    return int(asked["CPU"]) if address is None and _by_turns(config) else config.learners


def _by_turns(config: RunConfig) -> bool:
    """Whether a run first trains and then acts, so that its roles take turns on the CPUs."""
    return config.collect.source is None and not config.evaluation.episodes


def operational_settings(config: RunConfig) -> list[str]:
    """Return the settings of a config that no result follows from, as `key=value`, without those that a study
    gives each run: a resumed cell takes them as they are now."""
    given = ("name", "replay.url", "evaluation.final_episodes")
    settings = dict(_flat(plain(asdict(config))))
    wanted = settings.keys() - _without(settings, OPERATIONAL).keys() - set(given)
    return [_typed(key, settings[key]) for key in sorted(wanted)]


def estimated_core_hours(cell: Cell, episodes: int, cores: float, *, trained: bool = False) -> float:
    """Estimate the core-hours of a cell before any is measured. The estimate is rough, and only holds for
    networks of size `tiny` on CPUs.

    Args:
        cell: the cell.
        episodes: evaluation episodes at all context lengths together.
        cores: CPUs that the cell takes.
        trained: whether its policy is trained already.
    """
    config, spec = cell.config, task_of(cell.config).spec
    cameras = CAMERA_FACTOR if config.actors.cameras.names else 1.0
    training = STEP_SECONDS * config.learner.steps * config.learner.batch_size / 64 * cameras * (not trained)
    acting = ACTING_SECONDS * episodes * spec.max_steps * cameras / min(config.actors.count, max(1.0, cores))
    return (START_SECONDS + training + acting) * cores / 3600


def core_hours(row: Mapping[str, Any]) -> float:
    """Return the core-hours of a cell so far: the time of its run, times the CPUs that it had."""
    return float(sum(row["minutes"].values()) * row["cores"] / 60)


def finished(file: Path) -> dict[str, dict[str, Any]]:
    """Read the finished cells of a study by the hash of their settings. A later line of a cell holds what an
    earlier one does; a last line that was cut off counts as not written.

    Raises:
        RunError: the file has other lines.
    """
    rows = read_rows(file)
    if not all(isinstance(row, dict) and {"settings", "success"} <= row.keys() for row in rows):
        raise RunError(f"{file} has lines that are no finished cells of a study: name another file")
    return {row["settings"]: row for row in rows}


def results_of(study: Study, cells: Sequence[Cell], rows: Mapping[str, Mapping[str, Any]]) -> Results:
    """Join the cells of a study to their lines in the file of finished cells."""
    axes = {axis for cell in cells for axis in cell.place}
    several = {axis for axis in axes if len({str(cell.place.get(axis)) for cell in cells}) > 1}
    return Results(
        name=study.name,
        cells=[
            StudyCell(
                place=", ".join(_value(axis, cell.place[axis]) for axis in cell.place if axis in several),
                method=cell.method,
                seed=cell.seed,
                lengths=cell.lengths,
                row=rows.get(cell.settings),
            )
            for cell in cells
        ],
        baseline=study.reference,
        control=study.control,
        again=f"{study.control}{AGAIN}",
        looks=study.looks,
    )


def _cells(study: Study, place: Mapping[str, Any], seed: int) -> Iterator[Cell]:
    """Make the cells of all methods at a place of the grid, with one seed."""
    given = {**study.settings, **place, "seed": seed}
    task, scale = given.pop("task", RunConfig.task), given.pop(DATA_SCALE, None)
    where = ", ".join(f"{key}={value}" for key, value in place.items()) or "settings"
    if scale is not None and (not isinstance(scale, int | float) or not 0 < scale < math.inf):
        raise ConfigError(f"{where}: {DATA_SCALE} must be a number above 0, not {scale!r}")
    base = _config(task, given, where)
    spec, preset = task_of(base).spec, _preset(task)
    if scale is not None:
        count = given.get("actors.demonstrations") or spec.demonstrations
        given["actors.demonstrations"] = max(1, round(scale * count))
    for name, method, other in _arms(study, seed):
        for lengths in _lengths(method, base.context_lengths(spec)):
            at = {
                "learner.policy.context_length": lengths[-1],
                "evaluation.context_lengths": list(lengths),
                "evaluation.episodes": 0,  # of earlier versions
            }
            settings = {**given, **at, **method.settings, **other}
            config = _config(task, settings, f"methods.{name}")
            config = replace(config, evaluation=replace(config.evaluation, final_episodes=study.looks[-1]))
            yield Cell(
                place={"task": task, **place},
                method=name,
                length=lengths[0] if method.trained == "each" else None,
                seed=seed,
                settings=_hashed({"task": task, **preset, **_placeless(_without(settings, OPERATIONAL))}),
                config=config,
            )


def _placeless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the name of the demonstrations alone: on another machine they lie elsewhere."""
    return {
        key: Path(value).name if key == "demonstrations" and value else value
        for key, value in settings.items()
    }


def _arms(study: Study, seed: int) -> Iterator[tuple[str, Method, dict[str, Any]]]:
    """Yield name and method of every arm, and the settings that tell the control arm from its method."""
    for name, method in study.methods.items():
        yield name, method, {}
        if name == study.control:
            yield name + AGAIN, method, {"learner.seed": seed + OTHER_SEED}


def _lengths(method: Method, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the context lengths of each policy of a method."""
    match method.trained:
        case "together":
            return [grid]
        case "each":
            return [(length,) for length in grid]
        case "shortest":
            return [grid[:1]]
        case "longest":
            return [grid[-1:]]


def _config(task: str, settings: Mapping[str, Any], where: str) -> RunConfig:
    """Read the config of a cell.

    Raises:
        ConfigError: a setting does not fit; the message says where the settings come from.
    """
    try:
        return read_config(preset_file(task), [_typed(*item) for item in settings.items()], task=task)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _preset(task: str) -> dict[str, Any]:
    """Return the settings that a task's own file gives, by dotted key."""
    file = preset_file(task)
    return _without(dict(_flat(read_yaml(file) if file else {})), OPERATIONAL)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a config's tree, and its value."""
    for key, value in tree.items():
        if f"{prefix}{key}" in SECTIONS and isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Leave out these keys, and all keys below them."""
    return {
        key: value
        for key, value in settings.items()
        if not any(key == out or key.startswith(f"{out}.") for out in keys)
    }


def _typed(key: str, value: Any) -> str:
    """Write a value as one types it in `key=value`. JSON is YAML."""
    return f"{key}={value if key in AS_TYPED and isinstance(value, str) else json.dumps(value)}"


def _hashed(value: Any) -> str:
    """Return eight hexadecimal digits that follow from a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _slug(*parts: Any) -> str:
    """Join values to a part of a name that needs no quotes in a shell, of at most 80 characters."""
    joined = "-".join(str(part) for part in parts if part != "")
    return re.sub(r"[^a-zA-Z0-9_.]+", "-", joined)[:80].strip("-")


def _names(kind: type) -> list[str]:
    """Return the names of a dataclass' fields."""
    return [each.name for each in fields(kind)]


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply a `key=value` to the tree of a study."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected key=value, not {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    part, _, axis = key.partition(".")
    if part == "axes" and axis:
        if axis not in tree["axes"]:
            raise unknown_key(key, [f"axes.{name}" for name in tree["axes"]])
        tree["axes"][axis] = value
    elif key == "methods":
        known = list(tree["methods"])
        if not isinstance(value, list) or not value:
            raise ConfigError(
                f"expected a list of names, as in methods=[{', '.join(known[:2])}], not {text!r}"
            )
        if unknown := [name for name in value if name not in known]:
            raise unknown_key(f"methods.{unknown[0]}", [f"methods.{name}" for name in known])
        tree["methods"] = {name: body for name, body in tree["methods"].items() if name in value}
    elif key in ("seeds", "baseline", "control", "looks", "retries", "at_once"):
        tree[key] = value
    elif key in tree["axes"]:
        raise ConfigError(f"{key} is an axis of this study: choose its values by axes.{key}=[...]")
    else:
        tree["settings"][key] = value


def _refuse_damaged(tree: Mapping[str, Any]) -> None:
    """Refuse what YAML reads as something else than a study's parts, before anybody relies on them.

    Raises:
        ConfigError: a part that has names is none, an axis has no list of values, or a value is a date or
            another type that no config has.
    """
    for key in ("settings", "axes", "methods"):
        if not isinstance(tree[key], dict):
            raise ConfigError(f"{key} must be names and what belongs to each, not {tree[key]!r}")
    for axis, values in tree["axes"].items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"axes.{axis} must be a list of at least one value, not {values!r}")
    for where, value in _leaves(tree, ""):
        if not isinstance(value, str | int | float | None):
            raise ConfigError(f"{where}: YAML reads {value} as a {type(value).__name__}: write it in quotes")


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield every value below names and lists, and where it is."""
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(below, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def _refuse_misplaced(study: Study) -> None:
    """Refuse settings that would replace a whole section of a task's own settings, that the study makes, or
    that no cell would use.

    Raises:
        ConfigError: a key has keys below it, the study has a key of its own in its place, or the same key
            comes again later.
    """
    own = {"seed": "seeds", "name": "name", "evaluation.final_episodes": "looks"}
    overruled = {
        "evaluation.episodes": "cells are evaluated once, at their end; looks says by how many episodes",
        "learner.policy.context_length": "it follows from evaluation.context_lengths and what a method's "
        "trained says, or is given in a method's settings",
    }
    methods = {f"methods.{name}.settings": method.settings for name, method in study.methods.items()}
    places = {f"places.{index}": place for index, place in enumerate(study.places)}
    for where, settings in {"settings": study.settings, "axes": study.axes, **places, **methods}.items():
        for key in settings:
            if key in SECTIONS:
                raise ConfigError(f"{where}: {key} is a section: write its keys with dots, as in {key}.KEY")
            if key in own:
                raise ConfigError(f"{where}: {key} follows from the study's own key {own[key]}")
            if key in overruled and where not in methods:
                raise ConfigError(f"{where}: {key} has no effect: {overruled[key]}")
            if key == "task" and where in methods:
                raise ConfigError(f"{where}: task is no setting of a method: give it in settings or axes")
    for key in study.settings:
        if all(key in place for place in study.places or [study.axes]):
            raise ConfigError(f"settings: {key} has no effect: every place gives its own")
        if all(key in settings for settings in methods.values()):
            raise ConfigError(f"settings: {key} has no effect: every method gives its own")


def _value(axis: str, value: Any) -> str:
    """Name a place on an axis: a task by its name alone, any other value after the last part of its key."""
    return str(value) if axis == "task" else f"{axis.rpartition('.')[2]} {value}"
