"""Tests of mirrors: real files of TensorBoard and W&B, read back."""

import logging
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longview.monitoring import mirrors as mirrors_module
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.mirrors import WAITING, Figures, MirroredRun, Mirrors, Write, mirrors_of
from longview.monitoring.snapshot import Snapshot

BLOCK = 1 << 15
"""Bytes of a block of W&B's file, which is a log of LevelDB."""


class Run:
    """A run's figures, as a hub has them, at a time of the test's own."""

    def __init__(self) -> None:
        self.seconds, self.totals = 0.0, Totals()

    def clock(self) -> float:
        return self.seconds

    def metrics(self, step: int | None, seconds: float = 10.0) -> Snapshot:
        """Go on to a training step. The loss is its inverse."""
        self.seconds += seconds
        if step is not None:
            self.totals.set("longview_learner_step", step)
            self.totals.set("longview_loss", 1 / max(1, step), context_length=8)
        hub = Hub()
        hub.report(encode_report("driver", "driver", 1, self.totals))
        return hub.snapshot()

    def published(self, version: int, error: float) -> None:
        self.totals.set("longview_policy_version", version)
        self.totals.set("longview_action_error_ratio", error, context_length=8)

    def evaluated(self, version: int, success: float) -> None:
        self.totals.set("longview_evaluation_version", version)
        self.totals.set("longview_success_ratio", success, task="lift", context_length=8)


@contextmanager
def into(written: list[tuple[int, Figures]]) -> Iterator[Write]:
    """Mirror into a list."""
    yield lambda step, figures: written.append((step, figures))


def curve(written: list[tuple[int, Figures]], tag: str) -> dict[int, float]:
    """Return a figure by training step; each step must have it once."""
    points = [(step, figures[tag]) for step, figures in written if tag in figures]
    assert len(points) == len(dict(points)), points
    return dict(points)


def facts(folder: Path) -> MirroredRun:
    return MirroredRun("my run", "0123abcd", "pick: place", folder, {"learner": {"steps": 40}})


def wandb_records(file: Path) -> Iterator[Any]:
    """Read W&B's file of an offline run. It begins with 7 bytes; a record's parts have a checksum, a length,
    and whether they are whole (1), first, middle or last."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, part = struct.unpack_from("<IHB", data, place)
        if place + 7 + length > len(data):
            return
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):
            yield Record.FromString(record)
            record = b""


@pytest.fixture
def every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every look, whatever the time between them."""
    monkeypatch.setattr(mirrors_module, "EVERY_SECONDS", 0.0)


def test_figures_are_written_once_where_they_belong(tmp_path: Path) -> None:
    """Losses lie at the training step, held-out errors and success at their version. A version's evaluation
    counts as it was extended last. A resumed run goes on behind what was written."""
    run, written, file = Run(), list[tuple[int, Figures]](), tmp_path / "mirrors.json"
    mirrors = Mirrors({"list": into(written)}, file, run.clock)
    run.totals.set("longview_store_episodes", 5, source="demo")
    mirrors.add(run.metrics(None))
    mirrors.add(run.metrics(0))
    run.totals.add("longview_samples_trained_total", 640)
    mirrors.add(run.metrics(10))
    mirrors.add(run.metrics(10))
    run.published(10, 0.5)
    run.evaluated(10, 0.25)
    mirrors.add(run.metrics(20))
    run.evaluated(10, 0.75)
    mirrors.add(run.metrics(21, seconds=1.0))
    run.published(20, 0.4)
    run.evaluated(20, 0.8)
    mirrors.add(run.metrics(29))
    mirrors.add(run.metrics(30, seconds=1.0))
    mirrors.close()
    assert curve(written, "loss/T_o_8") == {0: 1, 10: 1 / 10, 20: 1 / 20, 29: 1 / 29, 30: 1 / 30}
    assert curve(written, "action_error/T_o_8") == {10: 0.5, 20: 0.4}
    assert curve(written, "success/T_o_8") == {10: 0.75, 20: 0.8}
    assert curve(written, "store/episodes") == dict.fromkeys((0, 10, 20, 29, 30), 5)
    assert curve(written, "speed/windows_per_second")[10] == 64

    resumed = Mirrors({"list": into(written)}, file, run.clock)
    for step in (20, 28, 36):
        resumed.add(run.metrics(step))
    run.published(36, 0.3)
    resumed.add(run.metrics(40))
    resumed.close()
    assert list(curve(written, "loss/T_o_8")) == [0, 10, 20, 29, 30, 36, 40]
    assert curve(written, "action_error/T_o_8") == {10: 0.5, 20: 0.4, 36: 0.3}
    assert curve(written, "success/T_o_8") == {10: 0.75, 20: 0.8}


@pytest.mark.usefixtures("every_look")
def test_tensorboard_reads_the_curves_of_a_resumed_run(tmp_path: Path) -> None:
    run = Run()
    for steps in ((0, 10, 20, 30), (20, 30, 40)):
        mirrors = mirrors_of(["tensorboard"], facts(tmp_path))
        for step in steps:
            mirrors.add(run.metrics(step))
        mirrors.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in found.Scalars("loss/T_o_8")]
    assert points == [(step, pytest.approx(1 / max(1, step))) for step in (0, 10, 20, 30, 40)]
    assert all(abs(point.wall_time - time.time()) < 60 for point in found.Scalars("loss/T_o_8"))


@pytest.mark.usefixtures("every_look")
def test_wandb_continues_one_run_and_learns_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a key W&B writes offline. Its file names the run and holds figures and config, and neither the
    command line nor the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["longview", "replay.url=redis://me:hunter2@store"])
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    run = Run()
    for steps in ((0, 10), (5, 20)):
        mirrors = mirrors_of(["wandb"], facts(tmp_path))
        for step in steps:
            mirrors.add(run.metrics(step))
        mirrors.close(patience=120)
    assert "written offline, for `wandb sync`: it knows no key" in caplog.text
    deadline, rows = time.monotonic() + 60, list[dict[str, str]]()
    while len(rows) < 3 and time.monotonic() < deadline:  # a process of W&B closes the file
        time.sleep(0.1)
        files = sorted(tmp_path.glob("wandb/offline-run-*/run-0123abcd.wandb"))
        records = [record for file in files for record in wandb_records(file)]
        histories = [record.history.item for record in records if record.HasField("history")]
        rows = [{item.nested_key[0]: item.value_json for item in history} for history in histories]
    assert [row["training_step"] for row in rows] == ["0", "10", "20"]
    assert [float(row["loss/T_o_8"]) for row in rows] == [1, 0.1, 0.05]
    started = [record.run for record in records if record.HasField("run")]
    assert {(each.run_id, each.display_name, each.project) for each in started} == {
        ("0123abcd", "my run", "pick- place")
    }
    assert any(item.key == "learner" for each in started for item in each.config.update)
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"hunter2" not in file.read_bytes(), file


@pytest.mark.parametrize("fails", [True, False])
def test_a_broken_or_slow_mirror_holds_up_nothing(
    tmp_path: Path, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The mirror beside it gets everything. What happened is logged once."""
    free, run, written = threading.Event(), Run(), list[tuple[int, Figures]]()

    @contextmanager
    def other() -> Iterator[Write]:
        def write(step: int, figures: Figures) -> None:
            if fails:
                raise ConnectionError("the line is dead")
            free.wait()

        yield write

    broken: AbstractContextManager[Write] = other()
    mirrors = Mirrors({"other": broken, "list": into(written)}, tmp_path / "mirrors.json", run.clock)
    started, steps = time.monotonic(), range(WAITING + 20)
    for step in steps:
        mirrors.add(run.metrics(step))
        time.sleep(0.001)
    mirrors.close(patience=10 if fails else 2)
    assert time.monotonic() - started < 60
    free.set()
    assert list(curve(written, "loss/T_o_8"))[-1] == steps[-1]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    if fails:
        assert warnings == ["mirror other has failed, and the run goes on without it: the line is dead"]
    else:
        assert ["too slow" in text for text in warnings] == [True, False]
        assert warnings[1] == "mirror other has not written everything in time"
