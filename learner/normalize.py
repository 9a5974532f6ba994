"""Statistics of the data, measured once and saved with the weights; values are brought to one scale.

Legend: D dimensions: of one array, flat, or of several, one after the other.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.config import Normalization
from longview.replay.episode import ACTION, EXPERT_ACTION, OBSERVATION_PREFIX, ArraySpec, Episode, TaskSpec

SMALLEST = 1e-4
"""A dimension whose range is narrower is taken as constant: it is centred, and not stretched."""


@dataclass(frozen=True)
class Statistics:
    """Of each dimension of one array, over all steps; all (D,)."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def measure(episodes: Iterable[Episode], spec: TaskSpec) -> dict[str, Statistics]:
    """Statistics of the action and of every observation but images, by name in the episode, in one pass.

    Expert actions count as actions: both are predicted. Invalid episodes are passed over.

    Raises:
        ValueError: there are no episodes, or an action lies outside of the task's range.
    """
    keys = [OBSERVATION_PREFIX + key for key, array in spec.observation.items() if not array.is_image]
    names = {key: key for key in keys} | {ACTION: ACTION, EXPERT_ACTION: ACTION}
    moments = defaultdict[str, list[NDArray[np.float64]]](list)
    for episode in (episode for episode in episodes if episode.outcome != "invalid"):
        for source, name in names.items():
            if source in episode.arrays:
                moments[name].append(_moments(episode.arrays[source]))
                if name == ACTION:
                    _check_range(episode, source, spec.action)
    if not moments:
        raise ValueError(f"task {spec.name}: no episodes to measure the normaliser's statistics on")
    return {name: _statistics(np.stack(rows, axis=1)) for name, rows in moments.items()}


class Normalizer(nn.Module):
    """Brings the last axis, of `size`, to one scale, and back."""

    centre: Tensor
    scale: Tensor
    low: Tensor
    """(D,), at most -1: what the smallest measured value becomes."""
    high: Tensor
    """(D,), at least 1: what the largest becomes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    def fit(self, parts: Sequence[tuple[Statistics, Normalization]]) -> None:
        """Take over the statistics of the arrays that the last axis consists of.

        min_max brings the measured range to [-1, 1], mean_std the mean to 0 and the standard deviation to
        1; identity leaves values as they are.
        """
        table = np.concatenate([np.empty((4, 0), np.float32), *(_scaling(*part) for part in parts)], axis=1)
        buffers = (self.centre, self.scale, self.low, self.high)
        for buffer, row in zip(buffers, torch.from_numpy(table), strict=True):
            buffer.copy_(row)

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.scale

    def invert(self, normal: Tensor) -> Tensor:
        """Back to the data's units."""
        return normal * self.scale + self.centre

    def out_of_range(self, normal: Tensor, tolerance: float = 1e-3) -> Tensor:
        """How many normalised values lie outside of `low` and `high`, as a scalar."""
        return ((normal < self.low - tolerance) | (normal > self.high + tolerance)).sum()


def _moments(array: NDArray[Any]) -> NDArray[np.float64]:
    """Smallest, largest, sum, sum of squares and number of an array's rows: (5, D)."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    rows = np.full(flat.shape[1], float(len(flat)))
    return np.stack((flat.min(axis=0), flat.max(axis=0), flat.sum(axis=0), np.square(flat).sum(axis=0), rows))


def _statistics(moments: NDArray[np.float64]) -> Statistics:
    """From the moments (5, episodes, D) of several arrays."""
    low, high = moments[0].min(axis=0), moments[1].max(axis=0)
    total, square, rows = moments[2:].sum(axis=1)
    mean = total / rows
    std = np.sqrt((square / rows - mean**2).clip(0))
    return Statistics(*(value.astype(np.float32) for value in (low, high, mean, std)))


def _scaling(measured: Statistics, kind: Normalization) -> NDArray[np.float32]:
    """Centre, scale, and what low and high become: (4, D)."""
    low, high = measured.low, measured.high
    centre, scale = {
        "min_max": ((low + high) / 2, (high - low) / 2),
        "mean_std": (measured.mean, measured.std),
        "identity": (np.zeros_like(low), np.ones_like(low)),
    }[kind]
    scale = np.where(high - low < SMALLEST, np.float32(1), scale)
    below, above = ((bound - centre) / scale for bound in (low, high))
    return np.stack((centre, scale, below.clip(max=-1), above.clip(min=1)))


def _check_range(episode: Episode, name: str, spec: ArraySpec) -> None:
    outside = (episode.arrays[name] < spec.low) | (episode.arrays[name] > spec.high)
    if outside.any():
        raise ValueError(
            f"episode {episode.meta.id}: {name} holds {episode.arrays[name][outside][0]:g}, outside of the "
            f"task's range [{spec.low:g}, {spec.high:g}]"
        )
