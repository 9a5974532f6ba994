"""Tests of LeRobotDatasets: written files follow the format's rules, and errors name the damage."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import parquet

from longview.replay.datasets.formats import open_source
from longview.replay.datasets.lerobot_writer import write
from longview.replay.datasets.plan import Choice
from longview.replay.datasets.video import VideoWriter
from longview.replay.episode import ArraySpec, Episode, EpisodeMeta, TaskSpec, validate_episode
from longview.replay.errors import DatasetError

SPEC = TaskSpec(
    name="sort",
    observation={
        "state": ArraySpec((2,)),
        "points": ArraySpec((3, 2)),
        "images.top": ArraySpec((32, 48, 3), "uint8", 0, 255),
    },
    action=ArraySpec((2,), low=-9.0, high=9.0),
    control_hz=12.0,
    max_steps=40,
    context_lengths=(1, 4),
    demonstrations=4,
)
LENGTHS = (6, 1, 11, 4)
TEXTS = ("sort by colour", "sort by size", "sort by colour", "sort by colour")
NAMES = {"action": ["left", "right"]}
COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def shade(index: int, step: int) -> int:
    """Return the value of all pixels of an episode's picture."""
    return 40 * index + 9 * step


def episode(index: int) -> Episode:
    steps, rng = LENGTHS[index], np.random.default_rng(index)
    arrays = {
        name: rng.normal(size=(steps, *spec.shape)).astype(np.float32)
        for name, spec in SPEC.arrays().items()
        if spec.dtype == "float32"
    }
    shades = np.array([shade(index, step) for step in range(steps)], np.uint8)
    arrays["observation.images.top"] = np.tile(shades[:, None, None, None], (1, 32, 48, 3))
    arrays["controller"] = np.ones(steps, np.uint8)
    meta = EpisodeMeta(f"demo.sort.{index:09d}", "sort", index, "demo")
    extras = {"tasks": [TEXTS[index]], "names": NAMES, "robot_type": "two_hands"}
    return Episode(meta, "failure" if index == 1 else "success", arrays, extras)


@pytest.fixture(scope="module", params=["video", "image"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def written(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(kind) / "data"
    write(path, SPEC, map(episode, range(len(LENGTHS))), lossless=kind == "image")
    return path


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def rows_of(path: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for file in sorted(path.glob(pattern)) for row in parquet.read_table(file).to_pylist()]


def pictures_of(path: Path, row: dict[str, Any], cells: list[Any]) -> list[Any]:
    """Read pictures by the format's rules: bytes in the table, or video frames nearest to the timestamps."""
    if cells[0].get("observation.images.top") is not None:
        return [np.asarray(Image.open(io.BytesIO(c["observation.images.top"]["bytes"]))) for c in cells]
    key = "videos/observation.images.top"
    info = json.loads((path / "meta/info.json").read_text())
    file = path / info["video_path"].format(
        video_key="observation.images.top",
        chunk_index=row[f"{key}/chunk_index"],
        file_index=row[f"{key}/file_index"],
    )
    with av.open(str(file)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times = np.array([time for time, _ in frames])
    found = []
    for cell in cells:
        time = row[f"{key}/from_timestamp"] + cell["timestamp"]
        assert time < row[f"{key}/to_timestamp"]
        nearest = int(np.abs(times - time).argmin())
        assert abs(times[nearest] - time) < 1e-4, "the tolerance of the format's own library"
        found.append(frames[nearest][1])
    return found


def test_a_reader_that_knows_only_the_rules_of_the_format_accepts_it(written: Path, kind: str) -> None:
    info = json.loads((written / "meta/info.json").read_text())
    total = sum(LENGTHS)
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["robot_type"], info["splits"]) == (12, "two_hands", {"train": "0:4"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, total, 2)
    features = info["features"]
    assert features["observation.images.top"]["dtype"] == kind
    assert features["observation.images.top"]["names"] == ["height", "width", "channels"]
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["left", "right"]}
    assert {features[name]["dtype"] for name in COUNTED} == {"float32", "int64"}

    texts = {row["task_index"]: row["task"] for row in rows_of(written, "meta/tasks.parquet")}
    assert texts == {0: "sort by colour", 1: "sort by size"}
    rows = rows_of(written, "meta/episodes/*/*.parquet")
    assert [row["length"] for row in rows] == list(LENGTHS)
    start, seen = 0, []
    for index, row in enumerate(rows):
        assert (row["episode_index"], row["tasks"]) == (index, [TEXTS[index]])
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (start, start + LENGTHS[index])
        file = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        table = parquet.read_table(written / file)
        assert set(table.column_names) == {name for name in features if features[name]["dtype"] != "video"}
        cells = [cell for cell in table.to_pylist() if cell["episode_index"] == index]
        assert [cell["index"] for cell in cells] == list(range(start, start + LENGTHS[index]))
        assert [cell["frame_index"] for cell in cells] == list(range(LENGTHS[index]))
        assert {texts[cell["task_index"]] for cell in cells} == {TEXTS[index]}
        np.testing.assert_allclose([cell["timestamp"] for cell in cells], np.arange(LENGTHS[index]) / 12)
        expected = episode(index)
        for name in ("action", "observation.state", "observation.points"):
            np.testing.assert_array_equal([cell[name] for cell in cells], expected.arrays[name])
        np.testing.assert_array_equal([cell["next.reward"] for cell in cells], expected.arrays["reward"])
        success = [False] * (LENGTHS[index] - 1) + [index != 1]
        assert [cell["next.success"] for cell in cells] == success
        pictures = pictures_of(written, row, cells)
        for step, picture in enumerate(pictures):
            assert np.abs(picture.astype(int) - shade(index, step)).max() <= 2 * (kind == "video")
        start += LENGTHS[index]
        seen += cells

    stats = json.loads((written / "meta/stats.json").read_text())
    assert stats.keys() == features.keys()
    for name in ("action", "observation.points", "timestamp", "index"):
        values = np.array([cell[name] for cell in seen], np.float64).reshape(total, *features[name]["shape"])
        for what, found in {"max": values.max(0), "mean": values.mean(0), "std": values.std(0)}.items():
            np.testing.assert_allclose(stats[name][what], found, rtol=1e-6, atol=1e-12, err_msg=name)
        assert stats[name]["count"] == [total]
    shades = [shade(index, step) / 255 for index, steps in enumerate(LENGTHS) for step in range(steps)]
    of_pictures = stats["observation.images.top"]
    for what, value in {"min": min, "max": max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(of_pictures[what], np.full((3, 1, 1), value(shades)), rtol=1e-9)


def test_the_tables_say_what_they_hold_to_the_libraries_that_read_them(written: Path, kind: str) -> None:
    """LeRobot reads the tasks with pandas and all other tables with datasets."""
    tasks = parquet.read_schema(written / "meta/tasks.parquet").metadata
    assert json.loads(tasks[b"pandas"])["index_columns"] == ["task"]
    schema = parquet.read_schema(written / "data/chunk-000/file-000.parquet")
    described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(described) == schema.names
    assert described["action"] == {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 2,
        "_type": "List",
    }
    assert described["observation.points"] == {"shape": [3, 2], "dtype": "float32", "_type": "Array2D"}
    assert ("observation.images.top" in described) == (kind == "image")


def rewrite(path: Path, pattern: str, change: Callable[[Any], Any]) -> None:
    """Replace the only table that matches the pattern by `change` of it."""
    (file,) = path.glob(pattern)
    parquet.write_table(change(parquet.read_table(file)), file)


def test_a_data_set_of_others_tells_of_its_task(damaged: Path) -> None:
    """The data set has none of the files and columns that Longview adds."""
    (damaged / "meta/longview.json").unlink()
    rewrite(damaged, EPISODES, lambda table: table.drop_columns(["longview"]))
    source = open_source(damaged, "tidy")
    assert (source.spec.name, source.spec.control_hz, source.spec.max_steps) == ("tidy", 12.0, 11)
    assert {key: (array.shape, array.dtype) for key, array in source.spec.observation.items()} == {
        key: (array.shape, array.dtype) for key, array in SPEC.observation.items()
    }
    second = source.read(1)
    validate_episode(second, source.spec)
    assert (second.outcome, second.meta.seed) == ("failure", 1)
    assert second.extras["tasks"] == ["sort by size"]
    assert second.extras["robot_type"] == "two_hands"
    assert second.extras["names"]["action"] == ["left", "right"]


@pytest.mark.parametrize("kind", ["image"], indirect=True)
def test_pictures_with_channels_first_and_one_row_group_for_all(damaged: Path) -> None:
    """Some converters write pictures this way."""
    info = json.loads((damaged / "meta/info.json").read_text())
    feature = info["features"]["observation.images.top"]
    feature["shape"], feature["names"] = [3, 32, 48], ["channels", "height", "width"]
    (damaged / "meta/info.json").write_text(json.dumps(info))
    rewrite(damaged, DATA, lambda table: table)
    assert parquet.ParquetFile(damaged / "data/chunk-000/file-000.parquet").num_row_groups == 1
    source = open_source(damaged, "sort", SPEC)
    for index in source.indices:
        expected = episode(index).arrays["observation.images.top"]
        np.testing.assert_array_equal(source.read(index).arrays["observation.images.top"], expected)


def foreign(path: Path) -> dict[str, Any]:
    """Take away what Longview adds to a data set, and return its info."""
    (path / "meta/longview.json").unlink(missing_ok=True)
    rewrite(path, EPISODES, lambda table: table.drop_columns(["longview"]))
    return dict(json.loads((path / "meta/info.json").read_text()))


@pytest.mark.parametrize(
    "names", [None, ["rgb", "height", "width"], {"axes": ["channels", "height", "width"]}]
)
def test_axes_are_known_by_their_names_or_sizes(damaged: Path, kind: str, names: Any) -> None:
    info = foreign(damaged)
    info["features"]["observation.images.top"].update(shape=[3, 32, 48], names=names)
    info["features"]["action"]["names"] = {"motors": ["left", "right"]}
    (damaged / "meta/info.json").write_text(json.dumps(info))
    source = open_source(damaged, "tidy")
    assert source.spec.observation["images.top"] == ArraySpec((32, 48, 3), "uint8", 0.0, 255.0)
    found = source.read(2)
    away = found.arrays["observation.images.top"] - episode(2).arrays["observation.images.top"].astype(int)
    assert np.abs(away).max() <= 2 * (kind == "video")
    assert found.extras["names"]["action"] == {"motors": ["left", "right"]}


@pytest.mark.parametrize("kind", ["image"], indirect=True)
def test_the_names_of_openpi_are_known(damaged: Path) -> None:
    info = foreign(damaged)
    theirs = {"observation.images.top": "image", "observation.state": "state", "action": "actions"}
    info["features"] = {theirs.get(name, name): feature for name, feature in info["features"].items()}
    del info["features"]["observation.points"]
    (damaged / "meta/info.json").write_text(json.dumps(info))
    rewrite(damaged, DATA, lambda table: table.rename_columns([theirs.get(n, n) for n in table.column_names]))
    source = open_source(damaged, "tidy")
    assert source.spec.observation.keys() == {"image", "state"}
    arrays = source.read(2).arrays
    for name, place in {"observation.state": "observation.state", "action": "action"}.items():
        np.testing.assert_array_equal(arrays[name], episode(2).arrays[place])
    assert source.account.left_out == {
        **dict.fromkeys(COUNTED, "says which step and task a row is"),
        "next.success": "gives the episode's outcome",
    }


def test_version_2_is_read(damaged: Path, kind: str) -> None:
    """A table, a video and a line for each episode."""
    info = foreign(damaged)
    info["codebase_version"] = "v2.1"
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info["video_path"] = video if kind == "video" else None
    (damaged / "meta/info.json").write_text(json.dumps(info))
    (whole,) = damaged.glob(DATA)
    table = parquet.read_table(whole)
    lines = []
    for index, steps in enumerate(LENGTHS):
        rows = table.filter(arrow.compute.equal(table["episode_index"], index))
        parquet.write_table(rows, whole.with_name(f"episode_{index:06d}.parquet"))
        lines.append(json.dumps({"episode_index": index, "tasks": [TEXTS[index]], "length": steps}))
        if kind == "video":
            file = damaged / video.format(
                episode_chunk=0, video_key="observation.images.top", episode_index=index
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            writer = VideoWriter(file, 32, 48, 12.0)
            writer.add(episode(index).arrays["observation.images.top"])
            writer.close()
    whole.unlink()
    shutil.rmtree(damaged / "meta/episodes")
    (damaged / "meta/episodes.jsonl").write_text("\n".join([*lines, "{"]))
    with pytest.raises(DatasetError, match=r"meta/episodes\.jsonl, line 5 is damaged"):
        open_source(damaged, "tidy")
    source = open_source(damaged, "tidy", choice=Choice(skip_bad=True))
    assert len(source.account.bad) == 1
    for index in range(4):
        found, expected = source.read(index), episode(index)
        np.testing.assert_array_equal(found.arrays["action"], expected.arrays["action"])
        away = found.arrays["observation.images.top"].astype(int) - expected.arrays["observation.images.top"]
        assert np.abs(away).max() <= 2 * (kind == "video")
        assert (found.extras["tasks"], found.outcome) == ([TEXTS[index]], expected.outcome)


@pytest.mark.parametrize("kind", ["image"], indirect=True)
@pytest.mark.parametrize("mode", ["I;16", "L", "P", "RGBA"])
def test_pictures_are_taken_in_the_bits_that_their_files_have(damaged: Path, mode: str) -> None:
    foreign(damaged)

    def recoded(cells: list[Any]) -> None:
        for number, cell in enumerate(cells):
            picture, file = Image.open(io.BytesIO(cell["bytes"])), io.BytesIO()
            if mode == "I;16":
                picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 100)
            else:
                picture = picture.quantize() if mode == "P" else picture.convert(mode)
            picture.save(file, "PNG")
            cells[number] = {"bytes": file.getvalue(), "path": None}

    column(DATA, "observation.images.top", recoded)(damaged)
    if mode == "I;16":
        with pytest.raises(DatasetError, match=r"images\.top holds pictures of 16 bits .*--drop images\.top"):
            open_source(damaged, "tidy")
        return
    source = open_source(damaged, "tidy")
    expected = episode(2).arrays["observation.images.top"]
    np.testing.assert_array_equal(source.read(2).arrays["observation.images.top"], expected)


@pytest.mark.parametrize("kind", ["image"], indirect=True)
@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        ({"dtype": "audio", "shape": [1]}, "sound is damaged in meta/info.json"),
        ({"dtype": "float32"}, "sound is damaged in meta/info.json: KeyError"),
        ({"dtype": "float32", "shape": [1]}, "episode 0: observation.sound: .* has no such column"),
        ({"dtype": "video", "shape": [32, 48, 1], "info": {"video.is_depth_map": True}}, "is a depth map"),
    ],
    ids=["dtype", "shape", "column", "depth"],
)
def test_one_bad_feature_leaves_the_others(damaged: Path, feature: Any, problem: str) -> None:
    info = foreign(damaged)
    info["features"] |= {"observation.sound": feature, "observation.text": {"dtype": "string", "shape": [1]}}
    (damaged / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=f"{problem}.*--drop sound"):
        open_source(damaged, "tidy")
    source = open_source(damaged, "tidy", choice=Choice(skip_bad=True))
    assert source.spec.observation.keys() == SPEC.observation.keys()
    assert source.account.left_out["observation.text"] == "text"
    assert len(source.account.bad) == 1
    validate_episode(source.read(2), source.spec)


EPISODES, DATA, VIDEO = "meta/episodes/*/*.parquet", "data/*/*.parquet", "videos/*/*/*.mp4"
OF_2 = sum(LENGTHS[:2])
"""First row of episode 2."""


def info(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        known = json.loads((path / "meta/info.json").read_text())
        change(known)
        (path / "meta/info.json").write_text(json.dumps(known))

    return damage


def column(pattern: str, name: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """Return a damage that changes one column, given as a list."""

    def changed(table: Any) -> Any:
        values = table[name].to_pylist()
        change(values)
        place = table.column_names.index(name)
        return table.set_column(
            place, table.schema.field(name), arrow.array(values, table.schema.field(name).type)
        )

    return lambda path: rewrite(path, pattern, changed)


def cell(value: Any, row: int = OF_2 + 3) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[row] = value

    return change


def slower(times: list[Any]) -> None:
    """Episode 2 was recorded at half the rate."""
    times[OF_2 : OF_2 + LENGTHS[2]] = [step / 6 for step in range(LENGTHS[2])]


def cut(pattern: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (file,) = path.glob(pattern)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def delete(pattern: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (file,) = path.glob(pattern)
        file.unlink()

    return damage


def drop(pattern: str, name: str) -> Callable[[Path], None]:
    return lambda path: rewrite(path, pattern, lambda table: table.drop_columns([name]))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "not a number": (
        column(DATA, "action", cell([0.0, float("nan")])),
        "episode 2: action holds values that are not finite, first in step 3",
    ),
    "no value": (
        column(DATA, "next.reward", cell(None)),
        "episode 2: next.reward: .* has no value in 1 of its steps",
    ),
    "wrong shape": (
        column(DATA, "observation.points", cell([[1.0, 2.0]])),
        r"episode 2: observation.points: .* cannot be read: .*reshape",
    ),
    "other rate": (
        column(DATA, "timestamp", slower),
        r"episode 2: \S+: step 0 took 0.1667 s by its timestamp, meta/info.json has fps 12",
    ),
    "missing steps": (
        column(DATA, "episode_index", cell(7)),
        r"episode 2: \S+: .*file-000.parquet has 10 of its 11 steps in consecutive rows",
    ),
    "no such file": (
        column(EPISODES, "data/file_index", cell(3, row=2)),
        r"episode 2: \S+: there is no file .*data/chunk-000/file-003.parquet",
    ),
    "ours": (column(EPISODES, "longview", cell("{", row=2)), "episode 2: longview is damaged"),
}


@pytest.mark.parametrize("kind", ["image"], indirect=True)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_episode_is_named_and_the_others_can_be_read(damaged: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(damaged)
    source = open_source(damaged, "sort", SPEC)
    for index in (0, 1, 3):
        validate_episode(source.read(index), SPEC)
    with pytest.raises(DatasetError, match=message) as raised:
        source.read(2)
    assert str(damaged) in str(raised.value)


@pytest.mark.parametrize("kind", ["image"], indirect=True)
def test_a_picture_without_bytes_is_named(damaged: Path) -> None:
    nothing = {"bytes": None, "path": "images/elsewhere.png"}
    column(DATA, "observation.images.top", cell(nothing))(damaged)
    with pytest.raises(
        DatasetError, match=r"episode 2: observation.images.top: there are no bytes of picture 3"
    ):
        open_source(damaged, "sort", SPEC).read(2)
    junk = {"bytes": b"\x89PNG junk", "path": "x.png"}
    column(DATA, "observation.images.top", cell(junk))(damaged)
    with pytest.raises(DatasetError, match=r"episode 2: observation.images.top: .* cannot be read: "):
        open_source(damaged, "sort", SPEC).read(2)


BAD_VIDEO: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (delete(VIDEO), r"there is no video .*videos/observation.images.top/chunk-000/file-000.mp4"),
    "cut short": (cut(VIDEO), r"video .*file-000.mp4 is damaged or cut short"),
    "too few frames": (
        column(EPISODES, "videos/observation.images.top/from_timestamp", cell(1.25, row=2)),
        r"video .*file-000.mp4 ends after 7 of 11 frames from 1.250 s",
    ),
    "no time": (
        column(EPISODES, "videos/observation.images.top/from_timestamp", cell(None, row=2)),
        "its row in meta/episodes does not say where its video is",
    ),
    "another rate": (
        info(lambda known: known.update(fps=24)),
        "step 0 took 0.0833 s by its timestamp, meta/info.json has fps 24",
    ),
    "other size": (
        info(lambda known: known["features"]["observation.images.top"].update(shape=[32, 32, 3])),
        r"its pictures are \[32, 48, 3\], meta/info.json has \[32, 32, 3\]",
    ),
}


@pytest.mark.parametrize("kind", ["video"], indirect=True)
@pytest.mark.parametrize("case", BAD_VIDEO)
def test_a_bad_video_is_named(damaged: Path, case: str) -> None:
    damage, message = BAD_VIDEO[case]
    damage(damaged)
    source = open_source(damaged, "sort")
    with pytest.raises(DatasetError, match=message) as raised:
        source.reader.rows(2, "observation.images.top")
    assert "episode 2: observation.images.top: " in str(raised.value)


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "info": (lambda path: (path / "meta/info.json").write_text("{") and None, "meta/info.json is damaged"),
    "version": (
        info(lambda known: known.update(codebase_version="v1.6")),
        r"meta/info.json: codebase_version is v1.6, but v2 and v3 are read; .*convert_dataset_v1_to_v2.py",
    ),
    "feature": (
        info(lambda known: known["features"]["action"].pop("shape")),
        "action is damaged in meta/info.json: .*shape",
    ),
    "rate": (info(lambda known: known.pop("fps")), "meta/info.json is damaged: .*fps"),
    "no episodes": (delete(EPISODES), "there are no episodes in meta/episodes"),
    "episodes": (cut(EPISODES), r"episodes/chunk-000/file-000.parquet is damaged or cut short"),
    "length": (drop(EPISODES, "length"), r"file-000.parquet: there is no column length"),
    "no data": (delete(DATA), r"episode 0: action: there is no file .*data/chunk-000/file-000.parquet"),
    "data": (cut(DATA), r"episode 0: action: .*file-000.parquet is damaged or cut short"),
    "no action": (drop(DATA, "action"), "episode 0: action: .* has no such column"),
}


@pytest.mark.parametrize("kind", ["image"], indirect=True)
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_data_set_that_cannot_be_read_is_named(damaged: Path, case: str) -> None:
    damage, message = UNREADABLE[case]
    (damaged / "meta/longview.json").unlink()
    damage(damaged)
    with pytest.raises(DatasetError, match=message) as raised:
        open_source(damaged, "sort")
    assert str(damaged) in str(raised.value)
