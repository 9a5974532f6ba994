"""How training stands, as its loop reports it; and what is left of one that diverges.

Legend: B windows, T action positions.
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
    """How training stands; losses and gradient are those since the last report, over all ranks."""

    step: int
    """Steps done, those before a resume included."""
    samples: int
    """Windows trained on in all, over all ranks."""
    loss: float
    loss_by_context: Mapping[int, float]
    """By the task's own context lengths: each counts the steps up to it, above the next shorter one."""
    gradient_norm_by_context: Mapping[int, float]
    """Mean before clipping, likewise."""
    loss_by_position: Mapping[int, float]
    """By the action's distance from now in steps, where it was a target; below 0 are past actions."""
    learning_rate: float
    gradient_norm: float
    """Largest, before clipping."""
    data_wait_s: float
    """Time since the last report that this rank's loop stood still for want of a batch."""
    step_s: float
    """Duration of a step, without that, on average since the last report."""
    gpu_memory: int
    """Most bytes of its device that this rank has ever held; 0 on CPU."""
    out_of_range: float
    """Share of the newest batch's observed values outside of the normaliser's ranges."""
    validation_loss_by_context: Mapping[int, float] = field(default_factory=dict)
    """Of the weights just published; empty if none were, or if there is nothing to validate on."""
    action_error_by_context: Mapping[int, float] = field(default_factory=dict)
    """Mean distance of their actions from the right ones, as a share of the action range."""
    validation_s: float = 0.0
    """Time that this took."""


class TrainingDiverged(ArithmeticError):
    """Loss or gradient are not finite. Nothing of it was published or saved."""


class Taken(NamedTuple):
    """What is remembered of a training step."""

    step: int
    length: int
    """T_o."""
    episodes: tuple[str, ...]
    """That this rank's batch was cut from."""


class Lap:
    """What happened since the last report. Losses stay on their device until then: reading one waits."""

    def __init__(self, horizon: Horizon, checkpoints: Path, rank: int, world: int, device: str) -> None:
        """
        Args:
            horizon: the policy's.
            checkpoints: directory, in which a divergence is described; used by rank 0 only.
            rank, world, device: this rank, how many there are, and where its losses are.
        """
        self._offsets = range(-horizon.past, horizon.future)
        self._checkpoints, self._rank, self._world, self._device = checkpoints, rank, world, device
        self._clear()

    def _clear(self) -> None:
        self._steps, self._losses, self._norms = list[Taken](), list[Tensor](), list[Tensor]()
        self._error_T, self._targets_T = torch.zeros(2, len(self._offsets), device=self._device)
        self._started, self._wait_s = perf_counter(), 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time spent waiting for them counts."""
        while True:
            start = perf_counter()
            if not self._steps:
                self._started = start  # publishing, saving and validating belong to no step
            batch = next(batches, None)
            self._wait_s += perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, taken: Taken, error_BT: Tensor, target_BT: Tensor, loss: Tensor, norm: Tensor) -> None:
        """One step: its error wherever there is a target, its loss, and its gradient's norm."""
        self._steps.append(taken)
        self._losses.append(loss.detach())
        self._norms.append(norm)
        self._error_T += error_BT.detach().sum(dim=0)
        self._targets_T += target_BT.sum(dim=0)

    def finish(
        self, step: int, samples: int, rate: float, out_of_range: float, grid: Sequence[int]
    ) -> TrainingProgress:
        """The report, after which a new lap begins.

        Raises:
            TrainingDiverged: a loss or a gradient was not finite; on all ranks, wherever it was.
        """
        numbers = torch.cat(
            (torch.stack(self._losses), torch.stack(self._norms), self._error_T, self._targets_T)
        )
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
            length = min((g for g in grid if g >= taken.length), default=taken.length)
            losses_of[length].append(loss)
            norms_of[length].append(norm)
        by_position = zip(self._offsets, error_T, targets_T, strict=True)
        progress = TrainingProgress(
            step=step,
            samples=samples,
            loss=fmean(losses),
            loss_by_context={length: fmean(some) for length, some in sorted(losses_of.items())},
            gradient_norm_by_context={length: fmean(some) for length, some in sorted(norms_of.items())},
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

    def _diverged(self, taken: Taken, loss: float, norm: float, rate: float) -> TrainingDiverged:
        """The error, after the step's batch has been written down for whoever wants to look into it."""
        own = json.dumps(taken.episodes).encode()
        parts = ranks.from_all(own, self._world, self._device)
        file = self._checkpoints / f"diverged-step-{taken.step}.json"
        if self._rank == 0:
            # As text: JSON has no NaN.
            found = {
                "step": taken.step,
                "context_length": taken.length,
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
