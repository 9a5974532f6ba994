"""Reports of the learner's progress to the metrics hub, as running totals."""

import time
from collections.abc import Callable, Mapping
from statistics import fmean

from longview.learner.laps import TrainingProgress
from longview.monitoring.hub import Totals, encode_report

POSITIONS = 64
"""Future positions that metrics tell apart."""


def by_position(loss: Mapping[int, float]) -> dict[str, float]:
    """Average losses into a bounded number of series for a metric.

    Args:
        loss: loss by steps from now on. All past steps, below 0, become one series, and so do all steps from
            `POSITIONS - 1` on.
    """
    series: dict[str, list[float]] = {}
    for offset, value in loss.items():
        series.setdefault("past" if offset < 0 else str(min(offset, POSITIONS - 1)), []).append(value)
    return {position: fmean(values) for position, values in series.items()}


class LearnerReporter:
    """Turns the learner's progress into running totals."""

    def __init__(
        self, name: str, samples_per_step: int, resumed_at: int, send: Callable[[bytes], None]
    ) -> None:
        """
        Args:
            name: name of the rank, the same after a restart.
            samples_per_step: windows per training step, on all ranks together.
            resumed_at: training step that this process starts from.
            send: sends an encoded report to the hub.
        """
        self._name = name
        self._incarnation = time.time_ns()
        self._totals = Totals()
        self._send_bytes = send
        self._samples = resumed_at * samples_per_step
        self._step = resumed_at
        self._limited_s = 0.0
        self._totals.set("longview_learner_step", resumed_at)
        self._send()

    def report(self, progress: TrainingProgress, limited_s: float) -> None:
        """Send a report.

        Args:
            progress: progress since the last report.
            limited_s: time that this rank's draws have waited for the limiter since the process started.
        """
        totals = self._totals
        totals.add("longview_store_limiter_wait_seconds_total", limited_s - self._limited_s)
        self._limited_s = limited_s
        totals.add("longview_samples_trained_total", max(0, progress.samples - self._samples))
        self._samples = progress.samples
        totals.add("longview_learner_data_wait_seconds_total", progress.data_wait_s)
        totals.observe("longview_learner_step_seconds", progress.step_s, progress.step - self._step)
        self._step = progress.step
        totals.set("longview_learner_step", progress.step)
        totals.set("longview_gpu_memory_bytes", progress.gpu_memory)
        totals.set("longview_out_of_range_ratio", progress.out_of_range)
        for context_length, loss in progress.loss_by_context.items():
            totals.set("longview_loss", loss, context_length=context_length)
        for context_length, norm in progress.gradient_norm_by_context.items():
            totals.set("longview_gradient_norm", norm, context_length=context_length)
        for position, loss in by_position(progress.loss_by_position).items():
            totals.set("longview_loss_by_position", loss, position=position)
        for context_length, loss in progress.validation_loss_by_context.items():
            totals.set("longview_validation_loss", loss, context_length=context_length)
        for context_length, error in progress.action_error_by_context.items():
            totals.set("longview_action_error_ratio", error, context_length=context_length)
        totals.add("longview_validation_seconds_total", progress.validation_s)
        self._send()

    def _send(self) -> None:
        self._send_bytes(encode_report("learner", self._name, self._incarnation, self._totals))
