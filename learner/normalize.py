"""Normalisation of states and actions, by statistics that are measured once and saved with the weights.

Legend (docs/notation.md): D dimensions of a flat array, or of several arrays in one row.
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
"""Narrowest range of a dimension that is scaled. A narrower one counts as constant and is only centred."""

REACH = 0.5
"""Part of a known range by which new data may leave it on either side, for its scale to be kept."""
NARROWEST = 0.1
"""Smallest part of a known range that new data span, for its scale to be kept."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of each dimension of one array over all steps. Every field has shape (D,)."""

    low: NDArray[np.float32]
    """Smallest value."""
    high: NDArray[np.float32]
    """Largest value."""
    mean: NDArray[np.float32]
    """Mean of the values."""
    std: NDArray[np.float32]
    """Standard deviation."""


def measure(episodes: Iterable[Episode], spec: TaskSpec) -> dict[str, Statistics]:
    """Measure the statistics of the action and of every observation but images, by name, in one pass.

    Expert actions count as actions, because both are predicted. Invalid episodes are left out.

    Raises:
        ValueError: there are no episodes, or an action lies outside the task's range.
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
    """Scaling of a tensor's last axis to a common scale, and back."""

    centre: Tensor
    scale: Tensor
    low: Tensor
    """Normalised smallest values (D,), at most -1."""
    high: Tensor
    """Normalised largest values (D,), at least 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    def fit(self, parts: Sequence[tuple[Statistics, Normalization]]) -> None:
        """Set the scale from the statistics of the arrays that make up the last axis, in their order.

        `min_max` maps the measured range to [-1, 1]. `mean_std` maps the mean to 0 and the standard deviation
        to 1. `identity` leaves values unchanged.
        """
        table = np.concatenate([np.empty((4, 0), np.float32), *(_scaling(*part) for part in parts)], axis=1)
        buffers = (self.centre, self.scale, self.low, self.high)
        for buffer, row in zip(buffers, torch.from_numpy(table), strict=True):
            buffer.copy_(row)

    def keep(self, place: slice, measured: Statistics, base: "Normalizer", there: slice) -> int:
        """Keep the scale of another normaliser in every dimension in which it suits the data.

        It suits data that reach at most half of its range beyond it on either side, and that are constant or
        span a tenth of it or more; and it may be the scale that these dimensions have. Then `low` and `high`
        cover both ranges.

        Args:
            place: dimensions here, which were fitted to the data.
            measured: statistics of the data in these dimensions.
            base: the other normaliser.
            there: the same dimensions of the other one.

        Returns:
            The number of dimensions in which the scale was kept.
        """
        centre, scale, low, high = (
            buffer[there].to(self.centre.device) for buffer in (base.centre, base.scale, base.low, base.high)
        )
        least, most = (torch.from_numpy(bound).to(centre) for bound in (measured.low, measured.high))
        least, most, span = (least - centre) / scale, (most - centre) / scale, high - low
        inside = (least >= low - REACH * span) & (most <= high + REACH * span)
        wide = (most - least >= NARROWEST * span) | ((most - least) * scale < SMALLEST)
        kept = (inside & wide) | ((centre == self.centre[place]) & (scale == self.scale[place]))
        for buffer, value in zip(
            (self.centre, self.scale, self.low, self.high),
            (centre, scale, torch.minimum(low, least), torch.maximum(high, most)),
            strict=True,
        ):
            buffer[place] = torch.where(kept, value, buffer[place])
        return int(kept.sum())

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.scale

    def invert(self, normal: Tensor) -> Tensor:
        """Convert normalised values to the data's units."""
        return normal * self.scale + self.centre

    def out_of_range(self, normal: Tensor, tolerance: float = 1e-3) -> Tensor:
        """Count the normalised values outside `low` and `high`. Returns a scalar tensor."""
        return ((normal < self.low - tolerance) | (normal > self.high + tolerance)).sum()


def _moments(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return smallest value, largest value, sum, sum of squares and number of an array's rows: (5, D)."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    rows = np.full(flat.shape[1], float(len(flat)))
    return np.stack((flat.min(axis=0), flat.max(axis=0), flat.sum(axis=0), np.square(flat).sum(axis=0), rows))


def _statistics(moments: NDArray[np.float64]) -> Statistics:
    """Combine the moments (5, episodes, D) of several arrays into their statistics."""
    low, high = moments[0].min(axis=0), moments[1].max(axis=0)
    total, square, rows = moments[2:].sum(axis=1)
    mean = total / rows
    std = np.sqrt((square / rows - mean**2).clip(0))
    return Statistics(*(value.astype(np.float32) for value in (low, high, mean, std)))


def _scaling(measured: Statistics, kind: Normalization) -> NDArray[np.float32]:
    """Return centre, scale, normalised low and normalised high: (4, D)."""
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
            f"episode {episode.meta.id}: {name} holds {episode.arrays[name][outside][0]:g}, outside the "
            f"task's range [{spec.low:g}, {spec.high:g}]"
        )
