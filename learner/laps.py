"""Progress of a training as its loop reports it, and the error of a training that diverges.

Legend (docs/notation.md): B windows, G segments, T action positions.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from longview.learner import ranks
from longview.learner.config import Horizon
from longview.learner.windows import Batch


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training. Losses and gradients are averaged since the last report, over all ranks."""

    step: int
    """Training steps done, including those before a resume."""
    samples: int
    """Windows trained on since the start of the run, on all ranks together."""
    loss: float
    """Mean loss."""
    loss_by_context: Mapping[int, float]
    """Mean loss by the task's own context lengths. A step counts for the next of them that is not shorter."""
    gradient_norm_by_context: Mapping[int, float]
    """Mean norm of the gradient before clipping, by the same context lengths."""
    loss_by_position: Mapping[int, float]
    """Mean loss by the action's distance from now in steps; below 0 are past actions. Only targets count."""
    loss_by_episode: Mapping[str, float]
    """Mean loss by id of the episodes that this rank's windows were cut from."""
    learning_rate: float
    """Learning rate of the newest step."""
    gradient_norm: float
    """Largest norm of the gradient before clipping."""
    data_wait_s: float
    """Time since the last report that this rank's loop waited for batches."""
    step_s: float
    """Mean duration of a step since the last report, without waiting for its batch."""
    gpu_memory: int
    """Largest number of bytes that this rank has ever held on its GPU; 0 on CPU."""
    out_of_range: float
    """Share of the newest batch's observed values outside the normaliser's ranges."""
    validation_loss_by_context: Mapping[int, float] = field(default_factory=dict)
    """Validation loss of the weights just published; empty if none were published or validated."""
    action_error_by_context: Mapping[int, float] = field(default_factory=dict)
    """Mean distance of the published policy's actions from their targets, as a share of the action range."""
    validation_s: float = 0.0
    """Duration of the validation."""


class TrainingDiverged(ArithmeticError):
    """Error: a loss or a gradient is not finite. No weights since the last report are published or saved."""


class TakenStep(NamedTuple):
    """A training step that was taken."""

    step: int
    """Training steps done, this one included."""
    context_length: int
    """Context length T_o of this step's batch."""
    episodes: tuple[str, ...]
    """Ids of the episodes that this rank's batch was cut from."""


class Lap:
    """Measurements since the last report.

    Losses stay on their device until the report, because reading one waits for the device.
    """

    def __init__(self, horizon: Horizon, checkpoints: Path, rank: int, world: int, device: str) -> None:
        """
        Args:
            horizon: horizon of the policy.
            checkpoints: folder for the description of a divergence; used by rank 0 only.
            rank: this rank.
            world: number of ranks.
            device: device of this rank's losses.
        """
        self._offsets = range(-horizon.past, horizon.future)
        self._checkpoints, self._rank, self._world, self._device = checkpoints, rank, world, device
        self._clear()

    def _clear(self) -> None:
        self._steps, self._losses_B, self._norms = list[TakenStep](), list[Tensor](), list[Tensor]()
        self._error_T, self._targets_T = torch.zeros(2, len(self._offsets), device=self._device)
        self._started, self._wait_s = perf_counter(), 0.0

    def timed(self, batches: Iterator[Batch[Tensor]]) -> Iterator[Batch[Tensor]]:
        """Pass batches through, and measure the time spent waiting for them."""
        while True:
            start = perf_counter()
            if not self._steps:
                self._started = start  # publishing, saving and validating belong to no step
            batch = next(batches, None)
            self._wait_s += perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(
        self, taken: TakenStep, error_BT: Tensor, target_BT: Tensor, loss_B: Tensor, norm: Tensor
    ) -> None:
        """Add one step.

        Args:
            taken: the step.
            error_BT: error of each position; 0 where there is no target.
            target_BT: mask of the targets.
            loss_B: error of each window, as `window_losses` returns it.
            norm: norm of the gradient before clipping.
        """
        self._steps.append(taken)
        self._losses_B.append(loss_B.detach())
        self._norms.append(norm)
        self._error_T += error_BT.detach().sum(dim=0)
        self._targets_T += target_BT.sum(dim=0)

    def finish(
        self, step: int, samples: int, rate: float, out_of_range: float, grid: Sequence[int]
    ) -> TrainingProgress:
        """Report the steps since the last report, and begin a new lap.

        Args:
            step, samples, out_of_range: as in `TrainingProgress`.
            rate: learning rate.
            grid: context lengths by which losses are told apart, ascending.

        Raises:
            TrainingDiverged: a loss or a gradient of any rank was not finite. All ranks raise it.
        """
        loss = torch.stack(self._losses_B).mean(dim=1)
        numbers = torch.cat((loss, torch.stack(self._norms), self._error_T, self._targets_T))
        ranks.average(numbers, self._world)
        count, positions = len(self._steps), len(self._offsets)
        losses, norms, error_T, targets_T = (
            part.tolist() for part in torch.split(numbers.cpu(), [count, count, positions, positions])
        )
        stepping_s = perf_counter() - self._started - self._wait_s
        for taken, loss, norm in zip(self._steps, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._diverged(taken, loss, norm, rate)
        losses_of, norms_of = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
        for taken, loss, norm in zip(self._steps, losses, norms, strict=True):
            longer = (length for length in grid if length >= taken.context_length)
            context_length = min(longer, default=taken.context_length)
            losses_of[context_length].append(loss)
            norms_of[context_length].append(norm)
        by_position = zip(self._offsets, error_T, targets_T, strict=True)
        progress = TrainingProgress(
            step=step,
            samples=samples,
            loss=fmean(losses),
            loss_by_context={length: fmean(some) for length, some in sorted(losses_of.items())},
            gradient_norm_by_context={length: fmean(some) for length, some in sorted(norms_of.items())},
            loss_by_episode=self._by_episode(),
            loss_by_position={offset: error / targets for offset, error, targets in by_position if targets},
            learning_rate=rate,
            gradient_norm=max(norms),
            data_wait_s=self._wait_s,
            step_s=stepping_s / count,
            gpu_memory=torch.cuda.max_memory_allocated() if self._device.startswith("cuda") else 0,
            out_of_range=out_of_range,
        )
        self._clear()
        return progress

    def _by_episode(self) -> dict[str, float]:
        losses_of = defaultdict[str, list[float]](list)
        ids = [id for taken in self._steps for id in taken.episodes]
        losses_G = torch.cat(self._losses_B).reshape(len(ids), -1).mean(dim=1)
        for id, loss in zip(ids, losses_G.tolist(), strict=True):
            losses_of[id].append(loss)
        return {id: fmean(losses) for id, losses in losses_of.items()}

    def _diverged(self, taken: TakenStep, loss: float, norm: float, rate: float) -> TrainingDiverged:
        """Write the diverged step's episodes to a file, for later inspection, and return the error."""
        own = json.dumps(taken.episodes).encode()
        parts = ranks.from_all(own, self._world, self._device)
        file = self._checkpoints / f"diverged-step-{taken.step}.json"
        if self._rank == 0:
            # Loss and norm are written as text, because JSON has no NaN.
            found = {
                "step": taken.step,
                "context_length": taken.context_length,
                "loss": str(loss),
                "gradient_norm": str(norm),
                "episodes": sorted({id for part in parts for id in json.loads(part)}),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
        return TrainingDiverged(
            f"loss {loss} and gradient norm {norm} at step {taken.step}: the data may hold extreme values "
            f"({file} names the episodes), or the learning rate ({rate:.2g} now) is too high"
        )
