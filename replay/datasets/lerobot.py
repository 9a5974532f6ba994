"""Reader of LeRobotDatasets of version 3, which keep many episodes in each table and each video.

meta/info.json                         codebase_version, fps, features (dtype, shape, names), paths of the
files meta/episodes/chunk-*/file-*.parquet   one row per episode: its length, its tasks, the files that hold
it meta/tasks.parquet, meta/stats.json    the text of every task; statistics
data/chunk-*/file-*.parquet            one row per step
videos/<feature>/chunk-*/file-*.mp4    pictures as video; without them, the tables hold the pictures as bytes
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.source import EVERY, DatasetReader, EpisodeInfo, decode_info, decode_spec_json
from longview.replay.datasets.video import VideoReader
from longview.replay.episode import ACTION, CONTROLLER, EXPERT_ACTION, OBSERVATION_PREFIX, REWARD, Array
from longview.replay.errors import DatasetError

VERSION: Final = "v3.0"
"""Version of the format that is written; any v3 is read."""
INFO: Final = "meta/info.json"
"""File with the version, the rate and the features."""
STATS: Final = "meta/stats.json"
"""File with the statistics of all features."""
TASKS: Final = "meta/tasks.parquet"
"""Table of the tasks' texts."""
EPISODES: Final = "meta/episodes"
"""Folder with the tables of episodes."""
SPEC: Final = "meta/longview.json"
"""File that Longview adds: the task's spec."""
LONGVIEW: Final = "longview"
"""Column that Longview adds to the tables of episodes, for facts that the format has no field for."""
NEXT_REWARD, NEXT_SUCCESS = "next.reward", "next.success"
"""Features with the reward after each step, and with whether the task succeeded."""
TEXTS, NAMES, ROBOT = "tasks", "names", "robot_type"
"""Extras of an episode: the texts of its tasks, the names of the features' dimensions, the robot."""

CELLS: Final = 16
"""Pictures of a table that are taken from it at once. pyarrow itself holds a page of the table, up to 1024
pictures as they are stored."""

_PICTURES: Final = ("image", "video")
_FEATURES: Final = {
    ACTION: ACTION,
    REWARD: NEXT_REWARD,
    CONTROLLER: CONTROLLER,
    EXPERT_ACTION: EXPERT_ACTION,
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
        self._info = self._read_info()
        self._features: dict[str, Any] = self._info["features"]
        self.hz = self._hz = float(self._info["fps"])
        self._episodes = self._read_episodes()
        self.count = len(self._episodes)
        self.columns = {
            column: _shape_and_dtype(feature)
            for name, feature in self._features.items()
            if (column := _column(name)) is not None and feature["dtype"] != "string"
        }
        self.lossy = {name for name, feature in self._features.items() if feature["dtype"] == "video"}
        spec = path / SPEC
        self.spec = decode_spec_json(str(spec), spec.read_text()) if spec.exists() else None
        self._table: tuple[Path, Any, Any, Array] | None = None
        self._videos: dict[str, VideoReader] = {}
        self._cells: dict[str, Iterator[Any]] = {}
        """Pictures that follow the last one that was read from a table, by feature."""
        self._next_cell: dict[str, tuple[Any, int]] = {}
        """Opened file and row of the first of these pictures."""

    def location(self, index: int, column: str) -> str:
        return f"episode {self._episodes[index]['episode_index']}: {_feature(column)}"

    def length(self, index: int) -> int:
        return int(self._episodes[index]["length"])

    def rows(self, index: int, column: str, span: slice = EVERY) -> Array:
        name = _feature(column)
        steps = range(self.length(index))[span]
        try:
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
            if not str(version).startswith("v3."):
                raise DatasetError(
                    f"{file}: codebase_version is {version}, expected {VERSION}: LeRobot has a converter"
                )
            for name, feature in info["features"].items():
                _shape_and_dtype(feature)
                if "/" in name:
                    raise ValueError(f"a feature must not have a / in its name: {name!r}")
            float(info["fps"]), str(info["data_path"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(f"{file} is damaged: {error!r}") from None
        return dict(info)

    def _read_episodes(self) -> list[dict[str, Any]]:
        from pyarrow import parquet

        rows: list[dict[str, Any]] = []
        files = sorted((self.path / EPISODES).glob("*/*.parquet"))
        for file in files:
            try:
                names = parquet.read_schema(file).names
                wanted = [name for name in names if not name.startswith("stats/")]
                rows += parquet.read_table(file, columns=wanted).to_pylist()
            except (OSError, ValueError) as error:
                raise DatasetError(f"{file} is damaged or cut short: {error}") from None
        if not rows:
            raise DatasetError(f"{self.path}: there are no episodes in {EPISODES}")
        needed = {"episode_index", "length", "data/chunk_index", "data/file_index"}
        if missing := needed - rows[0].keys():
            raise DatasetError(f"{files[0]}: there is no column {sorted(missing)[0]}")
        return sorted(rows, key=lambda row: int(row["episode_index"]))

    def _check_times(self, index: int) -> None:
        """Check that all steps of an episode take the time that the data set's rate says.

        Raises:
            DatasetError: a step takes another time.
        """
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
            start = float(row[f"videos/{name}/from_timestamp"]) + steps.start / self._hz
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
            shape, _ = _shape_and_dtype(self._features[name])
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
        from PIL import Image

        if self._next_cell.get(name) != (parquet, first):
            self._cells[name] = _cells_from(parquet, name, first)
        pictures: list[Array] = []
        for row, cell in zip(range(first, first + steps), self._cells[name], strict=False):
            self._next_cell[name] = parquet, row + 1
            if not cell or cell.get("bytes") is None:
                raise DatasetError(f"there are no bytes of picture {len(pictures)} in its table")
            with Image.open(io.BytesIO(cell["bytes"])) as picture:
                pictures.append(np.asarray(picture))
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise DatasetError("its pictures differ in size")
        stacked = np.stack(pictures)
        return _checked(stacked if stacked.ndim == 4 else stacked[..., None], self._features[name])

    def _open(self, file: Path) -> tuple[Any, Any, Array]:
        """Open a data file; return it, its columns without pictures, and the episode index of each row."""
        import pyarrow as arrow
        from pyarrow import parquet

        if self._table is None or self._table[0] != file:
            try:
                opened = parquet.ParquetFile(file)
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


def _column(name: str) -> str | None:
    if name.startswith(OBSERVATION_PREFIX):
        return name
    return next((column for column, feature in _FEATURES.items() if feature == name), None)


def _feature(column: str) -> str:
    return _FEATURES.get(column, column)


def _shape_and_dtype(feature: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of one step. Pictures are (H, W, C), whatever the feature's order of axes."""
    shape = tuple(int(size) for size in feature["shape"])
    if feature["dtype"] not in _PICTURES:
        return shape, np.dtype(object if feature["dtype"] == "string" else feature["dtype"])
    if len(shape) != 3:
        raise ValueError(f"pictures must have three dimensions, not {list(shape)}")
    return ((*shape[1:], shape[0]) if _channels_first(feature) else shape), np.dtype(np.uint8)


def _channels_first(feature: Mapping[str, Any]) -> bool:
    names = feature.get("names") or [""]
    return str(names[0]).startswith("c")


def _checked(pictures: Array, feature: Mapping[str, Any]) -> Array:
    """Return pictures (T, H, W, C) unchanged if they have the shape that the feature says."""
    shape, _ = _shape_and_dtype(feature)
    if pictures.shape[1:] != shape:
        raise DatasetError(f"its pictures are {list(pictures.shape[1:])}, {INFO} has {list(shape)}")
    return pictures
