"""Writer of LeRobotDatasets of version 3; `longview.replay.datasets.lerobot` lists the files."""

import io
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from longview.replay.datasets.lerobot import (
    EPISODES,
    INFO,
    LONGVIEW,
    NAMES,
    NEXT_REWARD,
    NEXT_SUCCESS,
    ROBOT,
    SPEC,
    STATS,
    TASKS,
    TEXTS,
    VERSION,
    feature_name,
)
from longview.replay.datasets.source import encode_info
from longview.replay.datasets.video import VideoWriter
from longview.replay.episode import ACTION, REWARD, Array, Episode, TaskSpec

CHUNK: Final = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH: Final = f"data/{CHUNK}.parquet"
VIDEO_PATH: Final = f"videos/{{video_key}}/{CHUNK}.mp4"
EPISODES_PATH: Final = f"{EPISODES}/{CHUNK}.parquet"
"""Templates of the paths of all files, filled with `chunk_index`, `file_index` and for videos `video_key`."""
FILES_PER_CHUNK: Final = 1000
"""Number of files per folder."""
DATA_MEGABYTES, VIDEO_MEGABYTES = 100, 200
"""Sizes in MiB above which a file gets no further episode."""
GROUP_STEPS: Final = 100
"""Steps of a row group, as in Hugging Face's own writer of pictures: a reader holds a whole group of them."""
AXES: Final = ["height", "width", "channels"]
"""Names of a picture's axes."""

Feature = dict[str, Any]
"""Description of a feature in meta/info.json: dtype, shape, names."""
Stats = dict[str, dict[str, Array]]
"""Statistics by feature and kind (min, max, mean, std, count)."""

_COUNTED: Final[dict[str, Feature]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}
"""Features that every data set has."""


def write(path: Path, spec: TaskSpec, episodes: Iterable[Episode], lossless: bool) -> None:
    """Write episodes as a LeRobotDataset.

    Args:
        path: folder to write.
        spec: spec of the episodes' task.
        episodes: at least one episode. All hold arrays of the same names.
        lossless: whether to store pictures as PNG, which is exact and large, instead of video.
    """
    import pyarrow as arrow

    coming = iter(episodes)
    first = next(coming)
    features = _features(spec, first, lossless)
    files = _Files(path, features, spec.control_hz)
    rows: list[dict[str, Any]] = []
    texts: dict[str, int] = {}
    total: Stats = {}
    for index, episode in enumerate(chain([first], coming)):
        tasks = [str(text) for text in episode.extras.get(TEXTS) or [spec.name]]
        for text in tasks:
            texts.setdefault(text, len(texts))
        columns = _columns(episode, spec.control_hz, index, files.steps, texts[tasks[0]])
        where = files.add(columns)
        stats = {name: _stats(columns[name], feature) for name, feature in features.items()}
        rows.append(_row(episode, index, tasks, where, stats))
        total = _merged(total, stats) if total else stats
    files.close()
    _write_table(path / EPISODES_PATH.format(chunk_index=0, file_index=0), arrow.Table.from_pylist(rows))
    _write_table(path / TASKS, _tasks_table(list(texts)))
    _write_json(path / STATS, {name: _plain(found) for name, found in total.items()})
    _write_json(path / SPEC, spec.to_dict())
    counts = {"episodes": len(rows), "frames": files.steps, "tasks": len(texts)}
    robot, videos = first.extras.get(ROBOT), bool(files.videos)
    _write_json(path / INFO, _info(spec, features, counts, robot, videos))


def _row(
    episode: Episode, index: int, tasks: list[str], where: Mapping[str, Any], stats: Stats
) -> dict[str, Any]:
    """Make an episode's row in the table of episodes."""
    described = {
        f"stats/{name}/{kind}": value
        for name, found in stats.items()
        for kind, value in _plain(found).items()
    }
    return {
        "episode_index": index,
        "tasks": tasks,
        "length": episode.length,
        **where,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **described,
        LONGVIEW: encode_info(episode),
    }


def _info(
    spec: TaskSpec, features: Mapping[str, Feature], counts: Mapping[str, int], robot: Any, videos: bool
) -> dict[str, Any]:
    """Make the content of meta/info.json, which readers open first."""
    return {
        "codebase_version": VERSION,
        "robot_type": robot,
        **{f"total_{name}": count for name, count in counts.items()},
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_MEGABYTES,
        "video_files_size_in_mb": VIDEO_MEGABYTES,
        "fps": int(spec.control_hz) if spec.control_hz == int(spec.control_hz) else spec.control_hz,
        "splits": {"train": f"0:{counts['episodes']}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if videos else None,
        "features": features,
    }


class _Files:
    """Data files and videos of a data set while it is written."""

    def __init__(self, path: Path, features: Mapping[str, Feature], hz: float) -> None:
        self._path, self._features, self._hz = path, features, hz
        self.videos: dict[str, VideoWriter] = {}
        """Open videos by feature."""
        self._numbers = dict.fromkeys(["data", *_named(features, "video")], -1)
        """Number of the current data file, and of each feature's current video."""
        self._table: Any = None
        self._file = path
        self.steps = 0
        """Steps written so far."""

    def add(self, columns: Mapping[str, Array]) -> dict[str, Any]:
        """Append an episode; return its place in the files, as columns of the table of episodes."""
        import pyarrow as arrow
        from pyarrow import parquet

        schema = _schema(self._features)
        if self._table is None or self._file.stat().st_size > DATA_MEGABYTES << 20:
            if self._table is not None:
                self._table.close()
            self._file = self._next_file("data", DATA_PATH)
            self._table = parquet.ParquetWriter(self._file, schema)
        cells = [_cells(columns[name], self._features[name]) for name in schema.names]
        self._table.write_table(
            arrow.Table.from_arrays(
                [arrow.array(cell, type) for cell, type in zip(cells, schema.types, strict=True)],
                schema=schema,
            ),
            row_group_size=GROUP_STEPS,
        )
        steps = len(columns[ACTION])
        where = self._where("data") | {
            "dataset_from_index": self.steps,
            "dataset_to_index": self.steps + steps,
        }
        for name in _named(self._features, "video"):
            where |= self._add_video(name, columns[name])
        self.steps += steps
        return where

    def close(self) -> None:
        """Complete all files."""
        self._table.close()
        for video in self.videos.values():
            video.close()

    def _add_video(self, name: str, pictures: Array) -> dict[str, Any]:
        """Append an episode's pictures (T, H, W, 3) to the feature's video; return their place in it."""
        video = self.videos.get(name)
        if video is None or video.bytes > VIDEO_MEGABYTES << 20:
            if video is not None:
                video.close()
            height, width, _ = pictures.shape[1:]
            file = self._next_file(name, VIDEO_PATH)
            video = self.videos[name] = VideoWriter(file, height, width, self._hz)
            self._features[name]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": video.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": round(self._hz),
                "video.channels": 3,
                "has_audio": False,
            }
        start = video.frames / self._hz
        video.add(pictures)
        return {
            **self._where(name),
            f"videos/{name}/from_timestamp": start,
            f"videos/{name}/to_timestamp": video.frames / self._hz,
        }

    def _next_file(self, name: str, template: str) -> Path:
        """Return the path of a new data file or video."""
        self._numbers[name] += 1
        file = self._path / template.format(video_key=name, **self._indices(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _indices(self, name: str) -> dict[str, int]:
        chunk, file = divmod(self._numbers[name], FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def _where(self, name: str) -> dict[str, Any]:
        """Return the current data file or video as columns of the table of episodes."""
        prefix = "data" if name == "data" else f"videos/{name}"
        return {f"{prefix}/{kind}": number for kind, number in self._indices(name).items()}


def _features(spec: TaskSpec, episode: Episode, lossless: bool) -> dict[str, Feature]:
    """Describe the features of a data set whose first episode is given."""
    named = episode.extras.get(NAMES) or {}
    specs = spec.arrays(episode.arrays)
    specs[NEXT_REWARD] = specs.pop(REWARD)
    features: dict[str, Feature] = {}
    for name, array in ((feature_name(name), array) for name, array in specs.items()):
        if array.is_image:
            features[name] = {
                "dtype": "image" if lossless else "video",
                "shape": [*array.shape],
                "names": AXES,
            }
        else:
            shape = list(array.shape) or [1]
            features[name] = {"dtype": array.dtype, "shape": shape, "names": named.get(name)}
    features[NEXT_SUCCESS] = {"dtype": "bool", "shape": [1], "names": None}
    return features | {name: dict(feature) for name, feature in _COUNTED.items()}


def _columns(episode: Episode, hz: float, index: int, first: int, task: int) -> dict[str, Array]:
    """Make the columns (T, ...) of an episode, whose first step is the data set's step `first`."""
    steps = np.arange(episode.length)
    columns = {feature_name(name): array for name, array in episode.arrays.items()}
    columns[NEXT_REWARD] = columns.pop(REWARD)
    columns[NEXT_SUCCESS] = (steps == episode.length - 1) & (episode.outcome == "success")
    columns["timestamp"] = (steps / hz).astype(np.float32)
    columns["frame_index"], columns["index"] = steps, first + steps
    columns["episode_index"], columns["task_index"] = np.full_like(steps, index), np.full_like(steps, task)
    return columns


def _named(features: Mapping[str, Feature], dtype: str) -> list[str]:
    """Return the names of the features of a dtype."""
    return [name for name, feature in features.items() if feature["dtype"] == dtype]


def _cells(rows: Array, feature: Feature) -> list[Any]:
    """Return the rows of a feature as values of a table's column."""
    if feature["dtype"] != "image":
        flat: list[Any] = rows.reshape(
            len(rows), *([] if feature["shape"] == [1] else feature["shape"])
        ).tolist()
        return flat
    from PIL import Image

    cells = []
    for number, picture in enumerate(rows):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        cells.append({"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"})
    return cells


def _schema(features: Mapping[str, Feature]) -> Any:
    """Make the schema of the data tables. Its metadata describe the columns to the library `datasets`."""
    import pyarrow as arrow

    fields = []
    described: dict[str, Any] = {}
    for name, feature in features.items():
        dtype, shape = feature["dtype"], feature["shape"]
        if dtype == "video":
            continue
        if dtype == "image":
            type = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
            described[name] = {"_type": "Image"}
        else:
            type = getattr(arrow, "bool_" if dtype == "bool" else dtype)()
            described[name] = {"dtype": dtype, "_type": "Value"}
        if dtype != "image" and len(shape) > 1:
            described[name] = {"shape": shape, "dtype": dtype, "_type": f"Array{len(shape)}D"}
            for _ in shape:
                type = arrow.list_(type)
        elif shape != [1] and dtype != "image":
            described[name] = {"feature": described[name], "length": shape[0], "_type": "List"}
            type = arrow.list_(type, shape[0])
        fields.append(arrow.field(name, type))
    return arrow.schema(fields, {"huggingface": json.dumps({"info": {"features": described}})})


def _stats(rows: Array, feature: Feature) -> dict[str, Array]:
    """Compute an episode's statistics of a feature, by dimension or by channel of pictures scaled to 0..1."""
    if feature["dtype"] in ("image", "video"):
        return _picture_stats(rows) | {"count": np.array([len(rows)])}
    values = rows.reshape(len(rows), *feature["shape"]).astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return found | {"count": np.array([len(rows)])}


def _picture_stats(pictures: Array) -> dict[str, Array]:
    """Compute statistics (3, 1, 1) of pictures (T, H, W, 3) uint8, scaled to 0..1.

    Legend: C channels.
    """
    counts_C256 = np.zeros((3, 256), np.int64)
    for picture in pictures:
        for channel in range(3):
            counts_C256[channel] += np.bincount(picture[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255.0
    mean = counts_C256 @ values / counts_C256.sum(1)
    variance = counts_C256 @ values**2 / counts_C256.sum(1) - mean**2
    found = {
        "min": values[(counts_C256 > 0).argmax(1)],
        "max": values[255 - (counts_C256 > 0)[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0.0)),
    }
    return {kind: value.reshape(3, 1, 1) for kind, value in found.items()}


def _merged(one: Stats, other: Stats) -> Stats:
    """Merge the statistics of two sets of rows."""
    total = {}
    for name, a in one.items():
        b = other[name]
        count = a["count"] + b["count"]
        share = float(b["count"][0] / count[0])
        away = b["mean"] - a["mean"]
        variance = (1 - share) * a["std"] ** 2 + share * b["std"] ** 2 + share * (1 - share) * away**2
        total[name] = {
            "min": np.minimum(a["min"], b["min"]),
            "max": np.maximum(a["max"], b["max"]),
            "mean": a["mean"] + share * away,
            "std": np.sqrt(variance),
            "count": count,
        }
    return total


def _tasks_table(texts: list[str]) -> Any:
    """Make the table of tasks. LeRobot reads it with pandas, which indexes it by text."""
    import pyarrow as arrow

    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, (kind, dtype) in kinds.items()
        ],
        "pandas_version": "2.0.0",
    }
    table = arrow.table({"task_index": arrow.array(range(len(texts)), arrow.int64()), "task": texts})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _plain(stats: Mapping[str, Array]) -> dict[str, Any]:
    return {kind: value.tolist() for kind, value in stats.items()}


def _write_table(file: Path, table: Any) -> None:
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def _write_json(file: Path, plain: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plain, indent=4, ensure_ascii=False))
