"""`longview collect`, with real simulators, stores and files."""

import json
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore
from tests.conftest import Forked, Longview
from tests.replay.conftest import socket_path, start_redis

__all__ = ["socket_path", "start_redis"]


def stored(forked: Forked, run: str) -> dict[str, int]:
    """Count demonstrations and their steps by `longview store stats`."""
    code, output = forked("store", "stats", run, "--json")
    assert code == 0, output
    demos: dict[str, int] = json.loads(output)["stored"]["demo"]
    return demos


def collected(forked: Forked, *arguments: str) -> str:
    code, output = forked("collect", *arguments)
    assert code == 0, output
    return output


def decoded(file: Path) -> tuple[list[NDArray[np.uint8]], float]:
    with av.open(str(file)) as container:
        video = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        return frames, float(video.average_rate)


def middle(frame: NDArray[np.uint8], channel: int) -> NDArray[np.float64]:
    """Find the centre (row, column) of the pixels that have clearly more of one colour than of the others."""
    others = np.delete(frame.astype(int), channel, axis=-1).max(axis=-1)
    return np.argwhere(frame[..., channel] > others + 30).mean(axis=0)


def test_what_is_there_is_not_collected_again(longview: Longview, forked: Forked) -> None:
    assert "new demonstrations: 6 success" in collected(forked, "return_point", "--episodes", "6", "name=run")
    first = stored(forked, "run")
    assert first["episodes"] == 6
    assert "none, all were there" in collected(forked, "return_point", "--episodes", "6", "--resume", "run")
    assert stored(forked, "run") == first
    assert "2 success" in collected(forked, "return_point", "--episodes", "8", "--resume", "run")
    assert stored(forked, "run")["episodes"] == 8
    summary = json.loads((longview.folder / "runs" / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert [(row["source"], row["outcome"], row["episodes"]) for row in summary["episodes"]] == [
        ("demo", "success", 8)
    ]
    code, output = forked("collect", "counting", "--resume", "run")
    assert code == 2
    assert "TASK is counting, but the config's task is return_point" in output


def test_interrupted_it_goes_on_where_it_stopped(longview: Longview, forked: Forked) -> None:
    process = longview.start("collect", "counting", "--episodes", "1000000", "name=run")
    longview.wait_for((longview.folder / "runs" / "run" / "run.json").exists)
    longview.wait_for(lambda: stored(forked, "run")["episodes"])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "longview collect counting --resume run" in output
    before = stored(forked, "run")["episodes"]
    wanted = str(before + 3)
    assert "new demonstrations: 3 " in collected(forked, "counting", "--episodes", wanted, "--resume", "run")
    assert stored(forked, "run")["episodes"] == before + 3


def test_a_store_elsewhere(longview: Longview, forked: Forked, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as url:
        collected(forked, "counting", "--episodes", "2", "name=run", f"replay.url={url}")
        store = EpisodeStore.connect(url, "run", StoreConfig())
        assert len(store.ids("demo")) == 2
        store.close()
    assert not (longview.folder / "runs" / "run" / "redis").exists()


def test_a_renamed_run_has_its_episodes_and_another_run_may_not_take_them(
    longview: Longview, forked: Forked, tmp_path: Path
) -> None:
    with redis_server(tmp_path / "redis") as url:
        arguments = ("counting", "--episodes", "2", f"replay.url={url}")
        collected(forked, *arguments, "name=My run")
        (longview.folder / "runs" / "My run").rename(longview.folder / "runs" / "läuft")
        assert "none, all were there" in collected(forked, *arguments, "--resume", "läuft")
        assert stored(forked, "läuft")["episodes"] == 2
        code, output = forked("collect", *arguments, "name=My run", "seed=1")
        assert code == 1
        assert "longview: namespace My run in Redis at" in output
        assert "belongs to another run, of task counting and seed 0" in output
        code, output = forked("collect", *arguments, "--resume", "läuft", "seed=1")
        assert code == 2
        assert "run läuft was made with seed 0, not 1" in output


def test_the_password_of_a_store_comes_from_the_environment(
    forked: Forked, start_redis: Any, socket_path: Path
) -> None:
    start_redis("--port", "0", "--unixsocket", str(socket_path), "--requirepass", "s3 cret/")
    arguments, password = ("--url", f"unix://{socket_path}"), {"LONGVIEW_REDIS_PASSWORD": "s3 cret/"}
    code, output = forked("store", "stats", "lab", *arguments)
    assert code == 1
    assert "it wants a password, in the URL or in LONGVIEW_REDIS_PASSWORD" in output
    for command in ("stats", "list", "verify"):
        code, output = forked("store", command, "My lab", *arguments, "--json", **password)
        assert code == 0, output


def test_video_and_sheet_show_the_first_episodes(longview: Longview, forked: Forked) -> None:
    arguments = ("--episodes", "9", "--video", "demos.mp4", "--sheet", "new/demos.png")
    collected(forked, "return_point", *arguments, "name=nine")
    collected(forked, "return_point", "--episodes", "8", "name=eight")
    frames, hz = decoded(longview.folder / "demos.mp4")
    assert hz == 10.0
    assert len(frames) == stored(forked, "eight")["steps"] + 8
    for frame in (frames[0], frames[-1]):  # of the first and the last episode: on green, below, then above
        np.testing.assert_allclose(middle(frame, 0)[1], middle(frame, 1)[1], atol=16)
    assert middle(frames[0], 0)[0] > 150
    assert middle(frames[-1], 0)[0] < 100
    with Image.open(longview.folder / "new" / "demos.png") as sheet:
        assert sheet.width > 1000
        assert 0.5 < sheet.height / sheet.width < 1.5


@pytest.mark.parametrize(
    ("task", "status", "said"),
    [("lift", 1, "cannot render"), ("counting", 2, "task counting cannot be shown: it draws no pictures")],
)
def test_what_cannot_be_shown_is_not_collected(
    longview: Longview, tmp_path: Path, task: str, status: int, said: str
) -> None:
    for name in ("libEGL.so.1", "libOSMesa.so.8"):
        (tmp_path / name).write_text("not a library")
    code, output = longview("collect", task, "--video", "demos.mp4", LD_LIBRARY_PATH=str(tmp_path))
    assert code == status, output
    assert f"longview: {said}" in output
    assert ("libosmesa6" in output) == (task == "lift")
    assert not (longview.folder / "runs").exists()
