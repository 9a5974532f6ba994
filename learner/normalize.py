"""Ranges of the data, measured once and saved with the weights; values are mapped to [-1, 1]."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from replay.episode import ACTION, EXPERT_ACTION, OBSERVATION_PREFIX, Episode, TaskSpec

Range = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Smallest and largest value of each dimension of one array, both flat."""

SMALLEST = 1e-4
"""A dimension whose range is narrower is taken as constant: it is centred, and not stretched."""


def measure(episodes: Iterable[Episode], spec: TaskSpec) -> dict[str, Range]:
    """Range of each observation (by its name in the episode) and of the action, in one pass.

    Expert actions count as actions: both are predicted. Invalid episodes are passed over.

    Raises:
        ValueError: there are no episodes.
    """
    names = {OBSERVATION_PREFIX + key: OBSERVATION_PREFIX + key for key in spec.observation}
    names |= {ACTION: ACTION, EXPERT_ACTION: ACTION}
    ranges: dict[str, Range] = {}
    for episode in (episode for episode in episodes if episode.outcome != "invalid"):
        for source, name in names.items():
            if source in episode.arrays:
                found = _range(episode.arrays[source])
                low, high = ranges.get(name, found)
                ranges[name] = np.minimum(low, found[0]), np.maximum(high, found[1])
    if not ranges:
        raise ValueError(f"task {spec.name}: no episodes to measure the normaliser's ranges on")
    return ranges


def join(ranges: Mapping[str, Range], names: Iterable[str]) -> Range:
    """The ranges of several arrays as that of their concatenation."""
    lows, highs = zip(*(ranges[name] for name in names), strict=True)
    return np.concatenate(lows), np.concatenate(highs)


class Normalizer(nn.Module):
    """Maps the last axis, of `size`, from its measured range to [-1, 1] and back."""

    centre: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, measured: Range) -> None:
        """Take over a measured range."""
        low, high = (torch.from_numpy(bound) for bound in measured)
        self.centre.copy_((low + high) / 2)
        self.scale.copy_(torch.where(high - low < SMALLEST, 1.0, (high - low) / 2))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.scale

    def invert(self, normal: Tensor) -> Tensor:
        """From [-1, 1] back to the data's units."""
        return normal * self.scale + self.centre


def out_of_range(normal: Tensor, tolerance: float = 1e-3) -> Tensor:
    """How many normalised values lie outside the range that was measured, as a scalar."""
    return (normal.abs() > 1 + tolerance).sum()


def _range(array: NDArray[Any]) -> Range:
    flat = array.reshape(len(array), -1)
    return flat.min(axis=0), flat.max(axis=0)
