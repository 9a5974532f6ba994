"""The learner's progress as running totals for the metrics hub."""

import time
from collections.abc import Callable, Mapping
from statistics import fmean

from longview.learner.laps import TrainingProgress
from longview.monitoring.hub import Totals, encode_report

POSITIONS = 64
"""Future positions that are told apart in metrics."""


def by_position(loss: Mapping[int, float]) -> dict[str, float]:
    """Losses by steps from now on as a metric's series, of which there are few: those of past steps are
    averaged, and so are those from `POSITIONS - 1` steps on."""
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
            name: the rank's, the same after a restart.
            samples_per_step: windows that all ranks together train on in a step.
            resumed_at: the training step that this process starts from.
            send: takes an encoded report.
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
        """
        Args:
            progress: since the last report.
            limited_s: time that this rank's draws have waited for the limiter in all.
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
        for length, loss in progress.loss_by_context.items():
            totals.set("longview_loss", loss, context_length=length)
        for length, norm in progress.gradient_norm_by_context.items():
            totals.set("longview_gradient_norm", norm, context_length=length)
        for position, loss in by_position(progress.loss_by_position).items():
            totals.set("longview_loss_by_position", loss, position=position)
        for length, loss in progress.validation_loss_by_context.items():
            totals.set("longview_validation_loss", loss, context_length=length)
        for length, error in progress.action_error_by_context.items():
            totals.set("longview_action_error_ratio", error, context_length=length)
        totals.add("longview_validation_seconds_total", progress.validation_s)
        self._send()

    def _send(self) -> None:
        self._send_bytes(encode_report("learner", self._name, self._incarnation, self._totals))
