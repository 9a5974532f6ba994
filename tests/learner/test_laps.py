import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longview.learner.config import Horizon
from longview.learner.laps import Lap, TakenStep, TrainingDiverged, TrainingProgress
from longview.learner.windows import Batch

HORIZON = Horizon(context=8, past=2, future=3, execute=2)
TARGETS = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)


def finish(lap: Lap) -> TrainingProgress:
    return lap.finish(step=7, samples=14, rate=0.1, out_of_range=0.0, grid=(1, 4, 8))


def add(lap: Lap, step: int, length: int, error: float, loss: float, norm: float) -> None:
    error_BT = error * TARGETS * torch.tensor([[1.0], [3.0]])
    loss_B = loss * torch.tensor([0.5, 1.5])
    lap.add(TakenStep(step, length, ("a", "b")), error_BT, TARGETS, loss_B, torch.tensor(norm))


def test_losses_are_told_apart_by_context_and_by_position(tmp_path: Path) -> None:
    lap = Lap(HORIZON, tmp_path, 0, 1, "cpu")
    for step, length, error in ((5, 1, 2.0), (6, 3, 4.0), (7, 4, 9.0)):
        add(lap, step, length, error, loss=error, norm=10 - error)
    progress = finish(lap)
    assert progress.loss == pytest.approx(5.0)
    assert progress.loss_by_context == pytest.approx({1: 2.0, 4: 6.5})
    # A position's loss is the mean over its targets in all windows. The oldest past position has no target.
    assert progress.loss_by_position == pytest.approx({-1: 5.0, 0: 10.0, 1: 5.0})
    # The mean over a window's targets, then over its episode's windows and steps.
    assert progress.loss_by_episode == pytest.approx({"a": 2.5, "b": 7.5})
    assert progress.gradient_norm == 8.0
    assert progress.gradient_norm_by_context == pytest.approx({1: 8.0, 4: 3.5})
    add(lap, 8, 8, 1.0, loss=1.0, norm=1.0)
    again = finish(lap)
    assert again.loss_by_episode == pytest.approx({"a": 0.5, "b": 1.5})
    assert again.loss_by_context == {8: 1.0}, "a new lap begins after a report"


@pytest.mark.parametrize(("loss", "norm"), [(math.inf, 1.0), (1.0, math.nan)])
def test_the_first_step_that_is_not_finite_is_written_down(tmp_path: Path, loss: float, norm: float) -> None:
    lap = Lap(HORIZON, tmp_path / "new", 0, 1, "cpu")
    add(lap, 5, 1, 1.0, 1.0, 1.0)
    add(lap, 6, 1, 1.0, loss, norm)
    add(lap, 7, 1, 1.0, math.nan, math.nan)
    with pytest.raises(TrainingDiverged, match=r"at step 6: .*diverged-step-6\.json"):
        finish(lap)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["diverged-step-6.json"]


def test_waiting_for_batches_is_measured(tmp_path: Path) -> None:
    batch = Batch({}, *(np.empty(0) for _ in range(5)), ("a",))

    def batches() -> Iterator[Batch]:
        for _ in range(3):
            time.sleep(0.02)
            yield batch

    lap = Lap(HORIZON, tmp_path, 0, 1, "cpu")
    assert list(lap.timed(batches())) == [batch] * 3
    add(lap, 1, 1, 1.0, 1.0, 1.0)
    assert finish(lap).data_wait_s >= 0.06


def test_a_step_lasts_without_its_wait_and_without_what_a_report_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("longview.learner.laps.perf_counter", lambda: now[0])
    batch = Batch({}, *(np.empty(0) for _ in range(5)), ("a",))

    def batches() -> Iterator[Batch]:
        for _ in range(4):
            now[0] += 5  # preparation of the batch
            yield batch

    lap = Lap(HORIZON, tmp_path, 0, 1, "cpu")
    for step, _ in enumerate(lap.timed(batches())):
        now[0] += 1 + step
        add(lap, step, 1, 1.0, 1.0, 1.0)
        if step % 2:
            progress = finish(lap)
            assert progress.step_s == pytest.approx({1: 1.5, 3: 3.5}[step])
            assert progress.data_wait_s == 10
            now[0] += 60  # publishing and saving
