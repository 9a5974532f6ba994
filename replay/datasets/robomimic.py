"""Reader and writer of robomimic's HDF5 files.

    data                attributes total (steps) and env_args (JSON: env_name, env_version, type, env_kwargs)
    data/demo_<i>       attributes num_samples and (robosuite) model_file; actions, rewards, dones, states
    data/demo_<i>       from Longview also controller and expert_actions
    data/demo_<i>/obs   an array (T, ...) for every observation; next_obs: the observations after each action
    mask/<filter>       names of demonstrations

An import drops `states`, `model_file` and `next_obs`, because an episode has no field for them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import (
    EVERY,
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
    REWARD,
    Array,
    Episode,
    TaskSpec,
)
from longview.replay.errors import DatasetError

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
}
_DEMO: Final = re.compile(r"demo_(\d+)")


class RobomimicReader(DatasetReader):
    """Reader of a robomimic file, which stays open; see `DatasetReader`."""

    action_range = (-1.0, 1.0)

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
        except (OSError, KeyError) as error:
            raise DatasetError(f"{path} is not a robomimic file: {error}") from None
        self.count = len(self._names)
        self.columns: dict[str, Any] = {}
        for name in self._names:
            for column, array in self._arrays_of(name).items():
                self.columns.setdefault(column, (array.shape[1:], array.dtype))
        if not any(column.startswith(OBSERVATION_PREFIX) for column in self.columns):
            raise DatasetError(
                f"{path}: no demonstration has obs; robomimic's dataset_states_to_obs.py adds them"
            )
        self._env_args = _text(self._data.attrs.get("env_args", "{}"))
        self.hz = self._control_freq()
        self.masks = self._masks()
        text = self._data.attrs.get(LONGVIEW)
        self.spec = None if text is None else decode_spec_json(f"{path}: data, attribute {LONGVIEW}", text)
        self._rewarded = any(self._succeeds(name) for name in self._names)

    def location(self, index: int, column: str) -> str:
        return f"{self._names[index]}: {_name(column)}"

    def length(self, index: int) -> int:
        return int(self._data[self._names[index]].attrs.get("num_samples", -1))

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        demo, where = self._data[self._names[index]], f"{self.path}, {self.location(index, column)}"
        try:
            array = demo[_name(column)]
            found, expected = array.shape, (self.length(index), *self.columns[column][0])
            if found != expected:
                raise DatasetError(f"{where} is {list(found)}, expected {list(expected)} (by num_samples)")
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

    def _arrays_of(self, name: str) -> dict[str, Any]:
        demo = self._data[name]
        found = {column: demo.get(place) for column, place in _ARRAYS.items()}
        found |= {OBSERVATION_PREFIX + key: array for key, array in (demo.get("obs") or {}).items()}
        return {column: array for column, array in found.items() if getattr(array, "shape", ())}

    def _control_freq(self) -> float | None:
        try:
            found = json.loads(self._env_args).get("env_kwargs", {}).get("control_freq")
            return None if found is None else float(found)
        except (ValueError, TypeError, AttributeError) as error:
            raise DatasetError(f"{self.path}: data, attribute env_args is damaged: {error}") from None

    def _masks(self) -> dict[str, list[int]]:
        indices = {name: index for index, name in enumerate(self._names)}
        masks = {}
        for mask, names in (self._file.get("mask") or {}).items():
            named = [_text(name) for name in names[()]]
            if unknown := sorted(set(named) - indices.keys()):
                raise DatasetError(f"{self.path}: mask/{mask} names {unknown[0]}, which is not in the file")
            masks[mask] = sorted(indices[name] for name in named)
        return masks

    def _succeeds(self, name: str) -> bool:
        try:
            return bool(np.any(self._data[name]["rewards"][()] > 0))
        except (KeyError, OSError, RuntimeError, TypeError):
            return False


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


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _env_args(spec: TaskSpec) -> str:
    kwargs = {"control_freq": spec.control_hz}
    return json.dumps({"env_name": spec.name, "env_version": "", "type": GYMNASIUM, "env_kwargs": kwargs})
