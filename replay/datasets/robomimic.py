"""Demonstrations as robomimic stores them: one HDF5 file.

    data                attributes total (steps) and env_args (JSON: env_name, env_version, type, env_kwargs)
    data/demo_<i>       attributes num_samples and (robosuite) model_file; actions, rewards, dones, states
    data/demo_<i>/obs   an array (T, ...) for every observation; next_obs: those after each action
    mask/<filter>       names of demonstrations

Not kept by an import, for want of a place in an episode: `states`, `model_file`, `next_obs`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import About, DatasetReader, decode_about, decode_spec_of, encode_about
from longview.replay.episode import (
    ACTION,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    Array,
    Episode,
    TaskSpec,
)
from longview.replay.errors import DatasetError

GYMNASIUM: Final = 2
"""robomimic's type of environments that are not robosuite's (1)."""
ABOUT: Final = "longview"
"""Attribute for what the format has no place for."""
ENV_ARGS, MASKS = "env_args", "masks"
"""Among an episode's extras: the file's env_args, and the filters that it is in."""

_ARRAYS: Final = {ACTION: "actions", REWARD: "rewards", EXPERT_ACTION: "expert_actions"}
_DEMO: Final = re.compile(r"demo_(\d+)")


class RobomimicReader(DatasetReader):
    """See `longview.replay.datasets.source.DatasetReader`; the file stays open."""

    action_range = (-1.0, 1.0)

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            DatasetError: it is no HDF5 file, cut short, or not robomimic's.
        """
        import h5py

        self.path = path
        try:
            self._file = h5py.File(path, "r")
            self._data = self._file["data"]
            self._names = sorted(filter(_DEMO.fullmatch, self._data), key=lambda name: int(name[5:]))
        except (OSError, KeyError) as error:
            raise DatasetError(f"{path} is no file of robomimic's: {error}") from None
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
        text = self._data.attrs.get(ABOUT)
        self.spec = None if text is None else decode_spec_of(f"{path}: data, attribute {ABOUT}", text)
        self._rewarded = any(self._succeeds(name) for name in self._names)

    def place(self, index: int, column: str) -> str:
        return f"{self._names[index]}: {_name(column)}"

    def rows(self, index: int, column: str) -> Array:
        demo, where = self._data[self._names[index]], f"{self.path}, {self.place(index, column)}"
        try:
            rows: Array = demo[_name(column)][()]
        except (KeyError, TypeError, AttributeError):
            raise DatasetError(f"{where} is missing") from None
        except (OSError, RuntimeError) as error:
            raise DatasetError(f"{where} cannot be read: {error}") from None
        steps, shape = int(demo.attrs.get("num_samples", -1)), self.columns[column][0]
        if rows.shape != (steps, *shape):
            raise DatasetError(f"{where} is {list(rows.shape)}, expected {[steps, *shape]} (by num_samples)")
        return rows

    def about(self, index: int) -> About:
        name = self._names[index]
        text = self._data[name].attrs.get(ABOUT)
        if text is not None:
            return decode_about(f"{self.path}, {name}: attribute {ABOUT}", text)
        masks = [mask for mask, indices in self.masks.items() if index in indices]
        # Where any demonstration is rewarded, one without reward has failed; else reward was not recorded.
        succeeded = self._succeeds(name) or not self._rewarded
        extras = {ENV_ARGS: self._env_args, **({MASKS: masks} if masks else {})}
        return About(seed=index, outcome="success" if succeeded else "failure", extras=extras)

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
                raise DatasetError(f"{self.path}: mask/{mask} names {unknown[0]}, which is not there")
            masks[mask] = sorted(indices[name] for name in named)
        return masks

    def _succeeds(self, name: str) -> bool:
        try:
            return bool(np.any(self._data[name]["rewards"][()] > 0))
        except (KeyError, OSError, RuntimeError, TypeError):
            return False


def write(path: Path, spec: TaskSpec, episodes: Iterable[Episode], lossless: bool) -> None:
    """Write a file of robomimic's. `states` stay empty, as its format has it for what is not robosuite's own;
    the observation after the last action, which no episode holds, is the last one again.

    Args:
        path: where it goes.
        spec: the task's.
        episodes: one at a time.
        lossless: of no effect, everything here is exact.
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
            demo.attrs[ABOUT] = encode_about(episode)
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
        data.attrs[ABOUT] = json.dumps(spec.to_dict())
        for mask, names in masks.items():
            file[f"mask/{mask}"] = np.array(names, "S")


def simulator_arguments(env_args: str) -> tuple[str, dict[str, Any]]:
    """The name of robosuite's environment that a file was recorded in, and the arguments by which robosuite
    1.5 makes it. Files from before 1.5 hold the configuration of one arm's controller, by keys of their
    time, where 1.5 wants that of a whole robot; in those, hand motions are in the world's frame.

    Raises:
        DatasetError: this does not tell of an environment of robosuite's.
    """
    try:
        args = json.loads(env_args)
        name, arguments = args["env_name"], dict(args["env_kwargs"])
        config = arguments.get("controller_configs")
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"env_args tell of no environment: {error!r}") from None
    if config is not None:
        configs = config if isinstance(config, list) else [config]
        converted = [_controller(config) for config in configs]
        arguments["controller_configs"] = converted if isinstance(config, list) else converted[0]
    return name, arguments


def _controller(config: Mapping[str, Any]) -> dict[str, Any]:
    if "body_parts" in config:
        # In a file of robosuite's own an arm is below `arms`; its simulator wants it beside the other parts.
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
