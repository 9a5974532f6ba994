"""What the report draws over time: a line now and then in a run's series.jsonl, and never too many."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longview.cluster.run.folder import append_row, read_rows, write_atomically
from longview.monitoring.hub import Snapshot

EVERY_SECONDS = 5.0
MOST = 600
"""Lines; a longer run has fewer a minute."""

Counts = tuple[float, ...]
"""When, and what there was by then of `_COUNTED`."""

_COUNTED = ("env_steps_total", "samples_trained_total", "staleness_steps:sum", "staleness_steps:+Inf")
"""Metrics, of histograms a part: so many training steps behind were all collected episodes together, and so
many of these there were."""


class Series:
    """The lines of a run, which go on when it is resumed."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._rows = read_rows(file)
        before = self._rows[-1]["seconds"] if self._rows else 0.0
        self._started = clock() - before
        self._every = max(EVERY_SECONDS, before / max(1, len(self._rows)))
        self._counts: Counts | None = None

    def add(self, metrics: Snapshot) -> None:
        """Take in the hub's newest numbers, and write a line if it is time for one."""
        seconds = self._clock() - self._started
        counts = (seconds, *(_total(metrics, name) for name in _COUNTED))
        if self._counts is None:
            self._counts = counts
        if seconds - self._counts[0] < self._every:
            return
        self._write(_row(metrics, self._counts, counts))
        self._counts = counts

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) < MOST:
            append_row(self._file, row)
        else:
            self._rows, self._every = self._rows[1::2], 2 * self._every
            write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in self._rows))


def _row(metrics: Snapshot, before: Counts, now: Counts) -> dict[str, Any]:
    grown = (new - old for new, old in zip(now, before, strict=True))
    seconds, steps, windows, behind, episodes = grown
    return {
        "seconds": round(now[0], 1),
        "steps_per_second": round(steps / seconds, 2),
        "windows_per_second": round(windows / seconds, 2),
        "training_step": int(_total(metrics, "learner_step")),
        "staleness": round(behind / episodes, 1) if episodes else None,
        "loss": _by_length(metrics, "loss"),
        "validation_loss": _by_length(metrics, "validation_loss"),
    }


def _total(metrics: Snapshot, name: str) -> float:
    metric, _, part = name.partition(":")
    series = metrics.get(f"longview_{metric}", {})
    return sum(value for labels, value in series.items() if not part or labels[-1] == part)


def _by_length(metrics: Snapshot, name: str) -> dict[str, float]:
    return {length: float(f"{value:.4g}") for (length,), value in metrics.get(f"longview_{name}", {}).items()}
