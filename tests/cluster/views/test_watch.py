"""A run seen from another terminal; tests/cluster/test_prometheus.py watches one that is under way."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from longview.cluster.run.config import read_config
from longview.cluster.run.folder import Run
from longview.cluster.views.watch import Looks, view
from longview.cluster.views.watch import watch as watch_run
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.snapshot import Snapshot
from longview.monitoring.success import COUNTS


def served(seconds: int, *, lost: bool = False) -> Snapshot:
    """Make a hub's snapshot after `seconds`; a restarted hub has `lost` its counts."""
    hub, totals = Hub(), Totals()
    count = 0 if lost else seconds
    totals.add("longview_env_steps_total", 1200 * count, task="return_point")
    totals.add("longview_samples_trained_total", 2048 * count)
    totals.add("longview_learner_data_wait_seconds_total", 0.25 * count)
    for part, share in {"simulator": 1.5, "policy": 0.5}.items():
        totals.add("longview_actor_seconds_total", share * count, part=part)
    totals.set("longview_learner_step", 123_456)
    totals.set("longview_actors_target", 64)
    for length in (1, 64):
        for name, number in zip(COUNTS, (150, 200, 200), strict=True):
            totals.set(f"longview_evaluation_{name}", number, task="return_point", context_length=length)
    hub.report(encode_report("driver", "driver", 1, totals))
    return hub.snapshot()


def shown(run: Run, looks: Looks, news: str) -> list[str]:
    """Render the view in a terminal of 80 columns."""
    config = read_config(None, ["task=return_point", "learner.steps=1000000"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(view(run, config, looks, 0.5, news))
    return capture.get().splitlines()


def test_all_that_matters_fits_80_columns(tmp_path: Path) -> None:
    run = Run(tmp_path / "return_point-20260101-120000")
    looks = Looks([(0.0, served(0)), (1.0, served(1)), (2.0, served(2, lost=True)), (4.0, served(4))])
    lines = shown(run, looks, "Prometheus: http://127.0.0.1:40000")
    assert max(map(len, lines)) <= 80
    text = re.sub(r"\s+", " ", " ".join(lines))
    assert "trained 123,456 of 1,000,000 steps" in text
    assert "75% simulator, 25% policy" in text
    assert "actors 0 of 64" in text
    assert "Prometheus: http://127.0.0.1:40000" in text
    assert "64 75.0% (69–80)" in text
    # Counts that the hub had lost for a while count again when they are back: five seconds of work in four.
    assert "environment steps 4,800, 1,500/s" in text


def test_before_there_are_metrics_it_says_so(tmp_path: Path) -> None:
    text = " ".join(shown(Run(tmp_path), Looks(), "starting ..."))
    assert "no metrics yet" in text
    assert "starting ..." in text


def test_without_a_terminal_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--watch needs a terminal; `longview status --json` is for scripts"):
        watch_run(Run(tmp_path))
