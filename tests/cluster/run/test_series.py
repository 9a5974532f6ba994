"""Lines of series.jsonl, which the report draws."""

import json
from itertools import pairwise
from pathlib import Path

from longview.cluster.run.folder import read_rows
from longview.cluster.run.series import EVERY_SECONDS, MOST, Series
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.snapshot import Snapshot


def snapshot(count: int) -> Snapshot:
    """A hub's snapshot after `count` seconds, each of 10 steps and 100 windows."""
    hub, totals = Hub(), Totals()
    totals.add("longview_env_steps_total", 10 * count, task="lift")
    totals.add("longview_samples_trained_total", 100 * count)
    totals.observe("longview_staleness_steps", 70, count, source="correction")
    totals.observe("longview_staleness_steps", 10, count, source="rollout")
    totals.set("longview_learner_step", count)
    totals.set("longview_loss", 0.25, context_length=8)
    hub.report(encode_report("actor", "actor-0", 1, totals))
    return hub.snapshot()


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_line_tells_of_the_time_since_the_last(tmp_path: Path) -> None:
    clock = Clock()
    lines = Series(tmp_path / "series.jsonl", clock)
    for count in (3, 3, 5):
        lines.add(snapshot(count))
        clock.seconds += EVERY_SECONDS
    first, second = read_rows(tmp_path / "series.jsonl")
    assert (first["seconds"], first["steps_per_second"], first["staleness"]) == (5, 0, None)
    assert second == {
        "seconds": 10,
        "steps_per_second": 4,
        "windows_per_second": 40,
        "training_step": 5,
        "staleness": 40,
        "loss": {"8": 0.25},
        "validation_loss": {},
    }


def test_nothing_is_written_before_it_is_time(tmp_path: Path) -> None:
    lines = Series(tmp_path / "series.jsonl", Clock())
    for count in range(20):
        lines.add(snapshot(count))
    assert not (tmp_path / "series.jsonl").exists()


def test_days_have_no_more_lines_than_hours_and_lie_evenly(tmp_path: Path) -> None:
    clock, metrics, file = Clock(), snapshot(1), tmp_path / "series.jsonl"
    lines, most = Series(file, clock), 0
    for _ in range(24 * 60 * 12):
        lines.add(metrics)
        clock.seconds += EVERY_SECONDS
        if file.exists():
            most = max(most, file.read_bytes().count(b"\n"))
    rows = [row["seconds"] for row in read_rows(file)]
    assert most < MOST
    assert len(rows) > MOST / 3
    gaps = [after - before for before, after in pairwise([0.0, *rows])]
    assert max(gaps) < 3 * min(gaps)
    assert rows[-1] > 0.99 * (clock.seconds - 1000)


def test_a_resumed_run_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    file, clock = tmp_path / "series.jsonl", Clock()
    rows = [{"seconds": 5.0, "loss": {}}, {"seconds": 10.0, "loss": {"8": 1.0}}]
    torn = json.dumps({"seconds": 15.0, "loss": {"8": 1.0}})[:-1]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    lines = Series(file, clock)
    lines.add(snapshot(0))  # the counters begin at 0 again
    clock.seconds += 20
    lines.add(snapshot(6))
    *before, last = read_rows(file)
    assert before == rows
    assert (last["seconds"], last["steps_per_second"]) == (30, 3)
