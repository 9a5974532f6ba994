"""Reader of LeRobotDatasets of version 3, which keep many episodes in each table and each video, and of
version 2, which has a table and a video for each.

meta/info.json                         codebase_version, fps, features (dtype, shape, names), paths of the
files meta/episodes/chunk-*/file-*.parquet   one row per episode: its length, its tasks, the files that hold
it meta/tasks.parquet, meta/stats.json    the text of every task; statistics
data/chunk-*/file-*.parquet            one row per step
videos/<feature>/chunk-*/file-*.mp4    pictures as video; without them, the tables hold the pictures as bytes

Version 2 has meta/episodes.jsonl with a line for each episode, and info.json says where its files are.
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.convert import layout_of
from longview.replay.datasets.source import (
    EVERY,
    Column,
    DatasetReader,
    EpisodeInfo,
    decode_info,
    decode_spec_json,
)
from longview.replay.datasets.video import VideoReader
from longview.replay.episode import ACTION, CONTROLLER, OBSERVATION_PREFIX, OPTIONAL, REWARD, Array
from longview.replay.errors import DatasetError

VERSION: Final = "v3.0"
"""Version of the format that is written; any v3 and v2 are read."""
INFO: Final = "meta/info.json"
"""File with the version, the rate and the features."""
STATS: Final = "meta/stats.json"
"""File with the statistics of all features."""
TASKS: Final = "meta/tasks.parquet"
"""Table of the tasks' texts."""
EPISODES: Final = "meta/episodes"
"""Folder with the tables of episodes."""
LINES: Final = "meta/episodes.jsonl"
"""File with the episodes of a data set of version 2."""
SPEC: Final = "meta/longview.json"
"""File that Longview adds: the task's spec."""
LONGVIEW: Final = "longview"
"""Column that Longview adds to the tables of episodes, for facts that the format has no field for."""
NEXT_REWARD, NEXT_SUCCESS = "next.reward", "next.success"
"""Features with the reward after each step, and with whether the task succeeded."""
TEXTS, NAMES, ROBOT = "tasks", "names", "robot_type"
"""Extras of an episode: the texts of its tasks, the names of the features' dimensions, the robot."""

CELLS: Final = 16
"""Pictures of a table that are taken from it at once. pyarrow itself holds a page of the table twice,
compressed and not; a page has as many pictures as its row group, but no more than 1024."""
READ_BYTES: Final = 1 << 20
"""Bytes of a table that are read at once. Without a limit pyarrow reads the whole column of a row group."""

_PICTURES: Final = ("image", "video")
_NAMES: Final = {
    ACTION: ACTION,
    NEXT_REWARD: REWARD,
    CONTROLLER: CONTROLLER,
    **{name: name for name in OPTIONAL},
}
_UNUSED: Final = {
    **dict.fromkeys(
        ("timestamp", "frame_index", "episode_index", "index", "task_index"),
        "says which step and task a row is",
    ),
    NEXT_SUCCESS: "gives the episode's outcome",
    "next.done": "an episode ends with its last step",
}


class LerobotReader(DatasetReader):
    """Reader of a LeRobotDataset; see `DatasetReader`.

    It keeps in memory the table of episodes without the statistics, and the columns of one data file without
    pictures.
    """

    def __init__(self, path: Path) -> None:
        """Open a data set.

        Raises:
            DatasetError: the data set is damaged, or of another version.
        """
        self.path = path
        self.problems: list[str] = []
        self._info = self._read_info()
        self._old = str(self._info["codebase_version"]).startswith("v2.")
        self._features: dict[str, Any] = self._info["features"]
        self.hz = self._hz = float(self._info["fps"])
        self._episodes = self._read_lines() if self._old else self._read_episodes()
        self.count = len(self._episodes)
        spec = path / SPEC
        self.spec = decode_spec_json(str(spec), spec.read_text()) if spec.exists() else None
        self._table: tuple[Path, Any, Any, Array] | None = None
        self._videos: dict[str, VideoReader] = {}
        self._cells: dict[str, Iterator[Any]] = {}
        """Pictures that follow the last one that was read from a table, by feature."""
        self._next_cell: dict[str, tuple[Any, int]] = {}
        """Opened file and row of the first of these pictures."""
        self.columns = self._columns()

    def location(self, index: int, column: str) -> str:
        return f"episode {self._episodes[index]['episode_index']}: {self._feature(column)}"

    def length(self, index: int) -> int:
        return int(self._episodes[index]["length"])

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        name = self._feature(column)
        steps = range(self.length(index))[span]
        try:
            if problem := self.columns[column].problem:
                raise DatasetError(problem)
            self._check_times(index)
            if self._features[name]["dtype"] == "video":
                return self._video_rows(index, name, steps)
            return self._table_rows(index, name, steps)
        except DatasetError as error:
            raise DatasetError(f"{self.path}, {self.location(index, column)}: {error}") from None

    def info(self, index: int) -> EpisodeInfo:
        row = self._episodes[index]
        where = f"{self.path}, episode {row['episode_index']}"
        if row.get(LONGVIEW) is not None:
            return decode_info(f"{where}: {LONGVIEW}", row[LONGVIEW])
        succeeded = True
        if NEXT_SUCCESS in self._features:
            try:
                succeeded = bool(self._table_rows(index, NEXT_SUCCESS, range(self.length(index))).any())
            except DatasetError as error:
                raise DatasetError(f"{where}: {NEXT_SUCCESS}: {error}") from None
        names = {name: feature["names"] for name, feature in self._features.items() if feature.get("names")}
        extras = {TEXTS: row.get("tasks"), NAMES: names, ROBOT: self._info.get("robot_type")}
        return EpisodeInfo(
            seed=int(row["episode_index"]),
            outcome="success" if succeeded else "failure",
            extras={name: value for name, value in extras.items() if value},
        )

    def _read_info(self) -> dict[str, Any]:
        file = self.path / INFO
        try:
            info = json.loads(file.read_text())
            version = info["codebase_version"]
            if not str(version).startswith(("v2.", "v3.")):
                raise DatasetError(
                    f"{file}: codebase_version is {version}, but v2 and v3 are read; of LeRobot 0.3.3, "
                    f"convert_dataset_v1_to_v2.py converts v1"
                )
            float(info["fps"]), str(info["data_path"]), info["features"].items()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(f"{file} is damaged: {error!r}") from None
        return dict(info)

    def _read_episodes(self) -> list[dict[str, Any]]:
        """Read the tables of episodes, without the statistics."""
        from pyarrow import parquet

        rows: list[dict[str, Any]] = []
        files = sorted((self.path / EPISODES).glob("*/*.parquet"))
        for file in files:
            try:
                names = parquet.read_schema(file).names
                wanted = [name for name in names if not name.startswith("stats/")]
                rows += parquet.read_table(file, columns=wanted).to_pylist()
            except (OSError, ValueError) as error:
                self.problems.append(f"{file.relative_to(self.path)} is damaged or cut short: {error}")
        if not rows:
            raise DatasetError(f"{self.path}: " + (*self.problems, f"there are no episodes in {EPISODES}")[0])
        needed = {"episode_index", "length", "data/chunk_index", "data/file_index"}
        if missing := needed - rows[0].keys():
            raise DatasetError(f"{files[0]}: there is no column {sorted(missing)[0]}")
        return sorted(rows, key=lambda row: int(row["episode_index"]))

    def _read_lines(self) -> list[dict[str, Any]]:
        """Read the episodes of a data set of version 2."""
        file, rows = self.path / LINES, []
        try:
            lines = file.read_text().splitlines()
        except OSError as error:
            raise DatasetError(f"{file} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append({**row, "episode_index": int(row["episode_index"]), "length": int(row["length"])})
            except (ValueError, TypeError, KeyError) as error:
                self.problems.append(f"{LINES}, line {number} is damaged: {error!r}")
        if not rows:
            raise DatasetError(f"{self.path}: " + (*self.problems, f"there are no episodes in {LINES}")[0])
        return sorted(rows, key=lambda row: int(row["episode_index"]))

    def _columns(self) -> dict[str, Column]:
        """Describe all features. What is wrong with one feature leaves the others as they are."""
        # Data sets for openpi call the actions `actions`, and their observations have no prefix.
        plain = not any(name.startswith(OBSERVATION_PREFIX) for name in self._features)
        names = dict(_NAMES) if ACTION in self._features else {**_NAMES, "actions": ACTION}
        slashed = [OBSERVATION_PREFIX + key for key in (self.spec.observation if self.spec else ())]
        names |= {feature_name(name): name for name in slashed}
        columns = {}
        for place, feature in self._features.items():
            name, rule = names.get(place, place), _UNUSED.get(place, "")
            if plain and name == place and not rule and place not in names:
                name = OBSERVATION_PREFIX + place.removeprefix("observation/")
            elif place not in names and not place.startswith(OBSERVATION_PREFIX) and not rule:
                rule = "not an observation, action or reward by LeRobot's rules"
            try:
                shape, dtype = self._shape_and_dtype(place, feature)
                problem = "is a depth map, of which 8 bits cannot hold enough" if _is_depth(feature) else ""
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                shape, dtype, problem = (), np.dtype(object), f"is damaged in {INFO}: {error!r}"
            if dtype.kind in "OSU" and not problem:
                rule = "text"
            lossy = not problem and feature["dtype"] == "video"
            columns[name] = Column(place, shape, dtype, rule, problem, lossy)
        return columns

    def _shape_and_dtype(
        self, name: str, feature: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and dtype of one step. Pictures are (H, W, C), whatever the feature's order of axes.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: the feature's description is damaged.
        """
        if feature["dtype"] in _PICTURES:
            sides = _sides(feature)
            picture = self._first_picture(name) if feature["dtype"] == "image" else None
            return ((*sides, 3), np.dtype(np.uint8)) if picture is None else (picture.shape, picture.dtype)
        shape = tuple(int(size) for size in feature["shape"])
        return shape, np.dtype(object if feature["dtype"] == "string" else feature["dtype"])

    def _first_picture(self, name: str) -> Array | None:
        """Read the first picture of a feature that the tables hold; None if it cannot be read."""
        import pyarrow as arrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(self._file("data_path", self._episodes[0], "data"))
            batch = next(file.iter_batches(batch_size=1, columns=[name]))
            return _picture(batch.column(0)[0].as_py()["bytes"])
        except (arrow.ArrowException, OSError, ValueError, TypeError, KeyError, StopIteration):
            return None  # reading the episode tells what is wrong

    def _feature(self, column: str) -> str:
        return self.columns[column].place if column in self.columns else column

    def _check_times(self, index: int) -> None:
        """Check that all steps of an episode take the time that the data set's rate says.

        Raises:
            DatasetError: a step takes another time.
        """
        if "timestamp" not in self._features:
            return
        times = self._table_rows(index, "timestamp", range(self.length(index)))
        wrong = np.flatnonzero(np.abs(np.diff(times) * self._hz - 1) > 0.1)
        if wrong.size:
            step = int(wrong[0])
            raise DatasetError(
                f"step {step} took {times[step + 1] - times[step]:.4f} s by its timestamp, "
                f"{INFO} has fps {self._hz:g}"
            )

    def _video_rows(self, index: int, name: str, steps: range) -> Array:
        row = self._episodes[index]
        try:
            file = self._file("video_path", row, f"videos/{name}", video_key=name)
            start = 0.0 if self._old else float(row[f"videos/{name}/from_timestamp"])
            start += steps.start / self._hz
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"its row in {EPISODES} does not say where its video is: {error!r}") from None
        if name not in self._videos or self._videos[name].file != file:
            if name in self._videos:
                self._videos.pop(name).close()
            self._videos[name] = VideoReader(file)
        return _checked(self._videos[name].read(start, len(steps), self._hz), self._features[name])

    def _table_rows(self, index: int, name: str, steps: range) -> Array:
        import pyarrow as arrow

        row = self._episodes[index]
        file = self._file("data_path", row, "data")
        parquet, table, episodes = self._open(file)
        mine = np.flatnonzero(episodes == row["episode_index"])
        length = self.length(index)
        if len(mine) != length or (length and mine[-1] - mine[0] != length - 1):
            raise DatasetError(f"{file} has {len(mine)} of its {length} steps in consecutive rows")
        if name not in parquet.schema_arrow.names:
            raise DatasetError(f"{file} has no such column")
        try:
            if self._features[name]["dtype"] == "image":
                return self._pictures(parquet, int(mine[steps.start]), len(steps), name)
            column = table[name].slice(int(mine[steps.start]), len(steps)).combine_chunks()
            if column.null_count:
                raise DatasetError(f"{file} has no value in {column.null_count} of its steps")
            depth = 0
            while arrow.types.is_list(column.type) or arrow.types.is_fixed_size_list(column.type):
                column, depth = column.flatten(), depth + 1
            values: Array = column.to_numpy(zero_copy_only=False)
            shape = [int(size) for size in self._features[name]["shape"]]
            return values.reshape((len(steps), *shape) if depth else (len(steps),))
        except (arrow.ArrowException, OSError, ValueError, TypeError) as error:
            raise DatasetError(f"{file} cannot be read: {error}") from None

    def _pictures(self, parquet: Any, first: int, steps: int, name: str) -> Array:
        """Read pictures (steps, H, W, C) from the row groups that hold them.

        Args:
            parquet: the opened file.
            first: row of the first picture in the file.
            steps: number of pictures.
            name: the feature.
        """
        if self._next_cell.get(name) != (parquet, first):
            self._cells[name] = _cells_from(parquet, name, first)
        pictures: list[Array] = []
        for row, cell in zip(range(first, first + steps), self._cells[name], strict=False):
            self._next_cell[name] = parquet, row + 1
            if not cell or cell.get("bytes") is None:
                raise DatasetError(f"there are no bytes of picture {len(pictures)} in its table")
            pictures.append(_picture(cell["bytes"]))
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise DatasetError("its pictures differ in size")
        return _checked(np.stack(pictures), self._features[name])

    def _open(self, file: Path) -> tuple[Any, Any, Array]:
        """Open a data file; return it, its columns without pictures, and the episode index of each row."""
        import pyarrow as arrow
        from pyarrow import parquet

        if self._table is None or self._table[0] != file:
            try:
                opened = parquet.ParquetFile(file, pre_buffer=False, buffer_size=READ_BYTES)
                plain = [
                    name
                    for name in opened.schema_arrow.names
                    if self._features.get(name, {"dtype": "image"})["dtype"] != "image"
                ]
                table = opened.read(plain)
                self._table = (file, opened, table, table["episode_index"].to_numpy())
            except FileNotFoundError:
                raise DatasetError(f"there is no file {file}") from None
            except (arrow.ArrowException, OSError, ValueError, KeyError) as error:
                raise DatasetError(f"{file} is damaged or cut short: {error}") from None
        return self._table[1:]

    def _file(self, template: str, row: Mapping[str, Any], prefix: str, **names: str) -> Path:
        if self._old:
            index = int(row["episode_index"])
            chunk = index // int(self._info.get("chunks_size") or 1000)
            template = str(self._info[template])
            return self.path / template.format(episode_chunk=chunk, episode_index=index, **names)
        numbers = {kind: int(row[f"{prefix}/{kind}"]) for kind in ("chunk_index", "file_index")}
        return self.path / str(self._info[template]).format(**numbers, **names)


def _cells_from(parquet: Any, name: str, first: int) -> Iterator[Any]:
    """Yield the cells of a column from a row on."""
    at = 0
    for number in range(parquet.num_row_groups):
        end = at + parquet.metadata.row_group(number).num_rows
        if first < end:
            for batch in parquet.iter_batches(CELLS, [number], [name]):
                yield from batch[name].slice(max(first - at, 0)).to_pylist()
                at += len(batch)
        at = end


def recognises(path: Path) -> bool:
    """Tell whether a path is the folder of a LeRobotDataset."""
    return (path / INFO).is_file()


def feature_name(name: str) -> str:
    """Return the name that an export gives to an episode's array: LeRobot allows no / in it."""
    return name.replace("/", ".")


def _sides(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of a feature's pictures, by the names of its axes, else by its shape."""
    shape, names = [int(size) for size in feature["shape"]], feature.get("names") or []
    if isinstance(names, Mapping):
        names = names.get("axes") or []
    axes = [str(name) for name in names]
    if "height" in axes and "width" in axes:
        return shape[axes.index("height")], shape[axes.index("width")]
    if len(shape) not in (2, 3):
        raise ValueError(f"pictures must have two or three dimensions, not {shape}")
    height, width = shape[1:] if layout_of(shape, np.dtype(np.uint8)) == "CHW" else shape[:2]
    return height, width


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("video.is_depth_map"))


def _picture(encoded: bytes) -> Array:
    """Decode a picture, (H, W, C), in the bits that its file has.

    Raises:
        OSError, ValueError, TypeError: these are not the bytes of a picture.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as picture:
        pixels = np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _checked(pictures: Array, feature: Mapping[str, Any]) -> Array:
    """Return pictures (T, H, W, ...) unchanged if they have the size that the feature says."""
    sides = _sides(feature)
    if pictures.shape[1:3] != sides:
        raise DatasetError(
            f"its pictures are {list(pictures.shape[1:])}, {INFO} has {[*sides, *pictures.shape[3:]]}"
        )
    return pictures
