"""Lines of a run's series.jsonl, which the report draws over time. Their number is bounded."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longview.cluster.run.folder import append_row, read_rows, write_atomically
from longview.monitoring.snapshot import Looks, Snapshot, rate

EVERY_SECONDS = 5.0
"""Time between two lines, until there are `MOST`."""
MOST = 600
"""Lines of a file. Before it has more, every second line goes, and lines come half as often."""


class Series:
    """Writer of a run's lines. A resumed run continues the file."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            file: the run's series.jsonl.
            clock: returns the time in seconds.
        """
        self._file, self._clock = file, clock
        self._rows = read_rows(file)
        before = self._rows[-1]["seconds"] if self._rows else 0.0
        self._started = clock() - before
        self._every = max(EVERY_SECONDS, before / max(1, len(self._rows)))
        self._last: tuple[float, Snapshot] | None = None
        """The look that the next line counts from."""

    def add(self, metrics: Snapshot) -> None:
        """Take in the hub's newest numbers, and write a line if the last one is long ago."""
        look = self._clock() - self._started, metrics
        if self._last is None:
            self._last = look
        if look[0] - self._last[0] < self._every:
            return
        self._write(_row((self._last, look)))
        self._last = look

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) < MOST:
            append_row(self._file, row)
        else:
            self._rows, self._every = self._rows[1::2], 2 * self._every
            write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in self._rows))


def _row(looks: Looks) -> dict[str, Any]:
    """Make the line about the time between two looks."""
    seconds, metrics = looks[-1]
    behind, episodes = (rate(looks, "longview_staleness_steps", le=part) for part in ("sum", "+Inf"))
    return {
        "seconds": round(seconds, 1),
        "steps_per_second": round(rate(looks, "longview_env_steps_total"), 2),
        "windows_per_second": round(rate(looks, "longview_samples_trained_total"), 2),
        "training_step": int(metrics.total("longview_learner_step")),
        "staleness": round(behind / episodes, 1) if episodes else None,
        "loss": _by_length(metrics, "longview_loss"),
        "validation_loss": _by_length(metrics, "longview_validation_loss"),
    }


def _by_length(metrics: Snapshot, name: str) -> dict[str, float]:
    return {length: float(f"{value:.4g}") for length, value in metrics.by(name, "context_length").items()}
