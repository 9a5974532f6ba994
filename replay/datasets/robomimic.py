"""Reader and writer of robomimic's HDF5 files.

    data                attributes total (steps) and env_args (JSON: env_name, env_version, type, env_kwargs)
    data/demo_<i>       attributes num_samples and (robosuite) model_file; actions, rewards, dones, states
    data/demo_<i>       from Longview also controller, expert_actions and plan_step
    data/demo_<i>/obs   an array (T, ...) for every observation; next_obs: the observations after each action
    mask/<filter>       names of demonstrations

An array in a group below obs, `obs/a/b`, becomes the observation `a/b`. An import leaves out `states`,
`dones`, `model_file` and `next_obs`, because an episode has no field for them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import (
    EVERY,
    Column,
    DatasetReader,
    EpisodeInfo,
    decode_info,
    decode_spec_json,
    encode_info,
)
from longview.replay.episode import (
    ACTION,
    CONTROLLER,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    PLAN_STEP,
    REWARD,
    Array,
    Episode,
    TaskSpec,
)
from longview.replay.errors import DatasetError

HDF5: Final = b"\x89HDF\r\n\x1a\n"
"""First bytes of every HDF5 file."""
GYMNASIUM: Final = 2
"""robomimic's type number of Gymnasium environments; robosuite's is 1."""
LONGVIEW: Final = "longview"
"""Attribute that Longview adds, for facts that the format has no field for."""
ENV_ARGS, MASKS = "env_args", "masks"
"""Extras of an episode: the file's env_args, and the filters that list the episode."""

_ARRAYS: Final = {
    ACTION: "actions",
    REWARD: "rewards",
    CONTROLLER: CONTROLLER,
    EXPERT_ACTION: "expert_actions",
    PLAN_STEP: PLAN_STEP,
}
_UNUSED: Final = {
    "next_obs": "repeats the observations of the next step",
    "states": "an episode has no field for the simulator's state",
    "dones": "an episode ends with its last step",
}
_DEMO: Final = re.compile(r"demo_(\d+)")


class RobomimicReader(DatasetReader):
    """Reader of a robomimic file, which stays open; see `DatasetReader`."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            DatasetError: the file is not HDF5, is cut short, or is not robomimic's.
        """
        import h5py

        self.path = path
        try:
            self._file = h5py.File(path, "r")
            self._data = self._file["data"]
            self._names = sorted(filter(_DEMO.fullmatch, self._data), key=lambda name: int(name[5:]))
        except (OSError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is not a robomimic file: {error}") from None
        self.count = len(self._names)
        if not any("obs" in self._data[name] for name in self._names):
            raise DatasetError(
                f"{path}: no demonstration has obs; robomimic's dataset_states_to_obs.py adds them"
            )
        self.columns = self._columns()
        self.left_out = {
            **{name: "not `data` or `mask`" for name in self._file if name not in ("data", "mask")},
            **{f"data/{name}": "not named demo_<number>" for name in self._data if name not in self._names},
            **{f"data/demo_*/{name}": rule for name, rule in _UNUSED.items() if self._has(name)},
        }
        # An attribute may be null, in HDF5 or in JSON.
        env_args = self._data.attrs.get(ENV_ARGS)
        self._env_args = _text(env_args) if isinstance(env_args, str | bytes) else "{}"
        self.hz = self._control_freq()
        self.masks, self.mask_problems = self._masks()
        text = self._data.attrs.get(LONGVIEW)
        self.spec = None if text is None else decode_spec_json(f"{path}: data, attribute {LONGVIEW}", text)
        self._rewarded = any(self._succeeds(name) for name in self._names)

    def location(self, index: int, column: str) -> str:
        return f"{self._names[index]}: {self._place(column)}"

    def length(self, index: int) -> int:
        demo = self._data[self._names[index]]
        if (said := _samples(demo)) is not None:
            return said
        counts = Counter(array.shape[0] for _, array in _tree(demo) if array.shape)
        return int(counts.most_common(1)[0][0]) if counts else 0

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        demo, where = self._data[self._names[index]], f"{self.path}, {self.location(index, column)}"
        try:
            array, said = demo[self._place(column)], _samples(demo)
            steps, shape = self.length(index), self.columns[column].shape
            if array.shape[:1] != (steps,) or (said is not None and array.shape[1:] != shape):
                by = "most of its arrays" if said is None else "num_samples"
                raise DatasetError(f"{where} is {list(array.shape)}, expected {[steps, *shape]} (by {by})")
            rows: Array = array[span]
        except (KeyError, TypeError, AttributeError):
            raise DatasetError(f"{where} is missing") from None
        except (OSError, RuntimeError) as error:
            raise DatasetError(f"{where} cannot be read: {error}") from None
        return rows

    def info(self, index: int) -> EpisodeInfo:
        name = self._names[index]
        text = self._data[name].attrs.get(LONGVIEW)
        if text is not None:
            return decode_info(f"{self.path}, {name}: attribute {LONGVIEW}", text)
        masks = [mask for mask, indices in self.masks.items() if index in indices]
        # In a file with rewards, a demonstration without reward has failed. A file without any did not record
        # them.
        succeeded = self._succeeds(name) or not self._rewarded
        extras = {ENV_ARGS: self._env_args, **({MASKS: masks} if masks else {})}
        return EpisodeInfo(seed=index, outcome="success" if succeeded else "failure", extras=extras)

    def _place(self, column: str) -> str:
        return self.columns[column].place if column in self.columns else _name(column)

    def _columns(self) -> dict[str, Column]:
        """Find all arrays; shape and dtype of each are those of most demonstrations."""
        kinds: dict[str, Counter[Any]] = {}
        for name in self._names:
            for place, array in _tree(self._data[name]):
                kinds.setdefault(place, Counter())[array.shape, array.dtype] += 1
        columns = {}
        names = {place: name for name, place in _ARRAYS.items()}
        for place, counts in kinds.items():
            (shape, dtype), _ = counts.most_common(1)[0]
            name, rule, problem = names.get(place, place), "", ""
            if place.startswith("obs/"):
                name = OBSERVATION_PREFIX + place.removeprefix("obs/")
            elif place not in names:
                rule = "not an observation, action or reward by robomimic's rules"
            if dtype.kind in "OSU":
                rule = "text"
            elif len(shape) < 1:
                problem = "is a single value, not one row a step"
            elif (total := counts.total()) * 2 < self.count:
                problem = f"is in {total} of {self.count} demonstrations only"
            columns[name] = Column(place, tuple(shape[1:]), dtype, rule, problem)
        return columns

    def _has(self, name: str) -> bool:
        return any(name in self._data[demo] for demo in self._names)

    def _control_freq(self) -> float | None:
        try:
            found = ((json.loads(self._env_args) or {}).get("env_kwargs") or {}).get("control_freq")
            return None if found is None else float(found)
        except (ValueError, TypeError, AttributeError) as error:
            self.problems = [f"data, attribute {ENV_ARGS} is damaged: {error}"]
            return None

    def _masks(self) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
        """Read the filters: demonstrations by name or number, or one truth value for each demonstration."""
        indices = {name: index for index, name in enumerate(self._names)}
        masks: dict[str, list[int]] = {}
        problems: dict[str, list[str]] = {}
        for mask, array in _tree(self._file.get("mask") or {}):
            try:
                values = np.ravel(array[()])
            except (OSError, RuntimeError) as error:
                masks[mask], problems[mask] = [], [f"mask/{mask} cannot be read: {error}"]
                continue
            if values.dtype.kind == "b":
                names = [name for name, chosen in zip(self._names, values, strict=False) if chosen]
            elif values.dtype.kind in "iu":
                names = [f"demo_{value}" for value in values]
            else:
                names = [_text(value) for value in values]
            masks[mask] = sorted({indices[name] for name in names if name in indices})
            unknown = [name for name in names if name not in indices]
            problems[mask] = [f"mask/{mask} names {name}, which is not in the file" for name in unknown]
        return masks, problems

    def _succeeds(self, name: str) -> bool:
        try:
            return bool(np.any(self._data[name]["rewards"][()] > 0))
        except (KeyError, OSError, RuntimeError, TypeError):
            return False


def recognises(path: Path) -> bool:
    """Tell whether a path is an HDF5 file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HDF5)) == HDF5


def write(path: Path, spec: TaskSpec, episodes: Iterable[Episode], lossless: bool) -> None:
    """Write episodes as a robomimic file.

    `states` is empty, as the format requires outside robosuite. `next_obs` repeats the last observation at
    its end, because an episode does not hold the observation after its last action.

    Args:
        path: file to write.
        spec: spec of the episodes' task.
        episodes: the episodes.
        lossless: no effect; the format is always lossless.
    """
    import h5py

    total = 0
    masks: dict[str, list[str]] = {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for index, episode in enumerate(episodes):
            name, steps = f"demo_{index}", episode.length
            if index == 0:
                data.attrs["env_args"] = episode.extras.get(ENV_ARGS) or _env_args(spec)
            demo = data.create_group(name)
            demo.attrs["num_samples"] = steps
            demo.attrs[LONGVIEW] = encode_info(episode)
            for column, array in episode.arrays.items():
                demo[_name(column)] = array
                if column.startswith(OBSERVATION_PREFIX):
                    demo[f"next_{_name(column)}"] = np.concatenate([array[1:], array[-1:]])
            demo["dones"] = (np.arange(steps) == steps - 1).astype(np.int64)
            demo["states"] = np.zeros((steps, 0))
            for mask in episode.extras.get(MASKS, ()):
                masks.setdefault(mask, []).append(name)
            total += steps
        data.attrs["total"] = total
        data.attrs[LONGVIEW] = json.dumps(spec.to_dict())
        for mask, names in masks.items():
            file[f"mask/{mask}"] = np.array(names, "S")


def simulator_arguments(env_args: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the robosuite environment that a file was recorded in, and the arguments by which
    robosuite 1.5 makes it.

    A file from before 1.5 holds the controller of one arm under older keys, while 1.5 expects the controllers
    of a whole robot. Motions of the hand in such a file are in the world's frame.

    Args:
        env_args: the JSON text of the file's attribute.

    Raises:
        DatasetError: the text does not describe a robosuite environment.
    """
    try:
        args = json.loads(env_args)
        name, arguments = args["env_name"], dict(args["env_kwargs"])
        config = arguments.get("controller_configs")
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"env_args do not describe an environment: {error!r}") from None
    if config is not None:
        configs = config if isinstance(config, list) else [config]
        converted = [_controller(config) for config in configs]
        arguments["controller_configs"] = converted if isinstance(config, list) else converted[0]
    return name, arguments


def _controller(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a controller's configuration to robosuite 1.5."""
    if "body_parts" in config:
        # robosuite's own files list arms below `arms`; its simulator expects them beside the other parts.
        parts = dict(config["body_parts"])
        return {**config, "body_parts": {**parts.pop("arms", {}), **parts}}
    arm = {**config, "gripper": {"type": "GRIP"}}
    if config["type"].startswith("OSC"):
        for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
            if old in arm:
                arm.setdefault(new, arm.pop(old))
        arm["input_type"] = "delta" if arm.pop("control_delta", True) else "absolute"
        arm["input_ref_frame"] = "world"
    return {"type": "BASIC", "body_parts": {"right": arm}}


def _name(column: str) -> str:
    return _ARRAYS.get(column) or "obs/" + column.removeprefix(OBSERVATION_PREFIX)


def _tree(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a group and of all groups below it, by path; those of `_UNUSED` are passed over."""
    for name, item in group.items():
        if prefix or name not in _UNUSED:
            if hasattr(item, "items"):
                yield from _tree(item, f"{prefix}{name}/")
            elif item is not None:  # a link to nothing
                yield prefix + name, item


def _samples(demo: Any) -> int | None:
    """Return the number of steps that a demonstration's attribute says; None if it says none."""
    try:
        return int(demo.attrs["num_samples"])
    except (KeyError, TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _env_args(spec: TaskSpec) -> str:
    kwargs = {"control_freq": spec.control_hz}
    return json.dumps({"env_name": spec.name, "env_version": "", "type": GYMNASIUM, "env_kwargs": kwargs})
