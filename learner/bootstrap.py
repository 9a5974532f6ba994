"""Means over what is known, and their intervals over episodes, by the bootstrap.

Legend: G episodes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
"""Number of samples with replacement."""


def known_mean(values: NDArray[Any], axis: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Average the values that are known over some axes; NaN where none is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)
    return mean


def mean_interval(
    values: NDArray[Any], seed: int = 0, share: float = 0.95
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return means over episodes, and the ends of their percentile intervals. Missing values are left out.

    The episode is what is drawn again, because the steps of one episode resemble each other.

    Args:
        values: (G, ...), NaN where an episode has no value.
        seed: seed of the draws.
        share: share of the draws inside the interval.

    Returns:
        Mean, lower and upper end, each of the shape (...); NaN where no episode has a value.
    """
    flat = values.reshape(len(values), -1)
    drawn = np.random.default_rng(seed).multinomial(len(flat), np.full(len(flat), 1 / len(flat)), DRAWS)
    known = np.isfinite(flat)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (drawn @ np.where(known, flat, 0)) / (drawn @ known)
    mean, means[:, ~known.any(axis=0)] = known_mean(flat, axis=0), 0
    ends = np.nanquantile(means, ((1 - share) / 2, (1 + share) / 2), axis=0)
    low, high = np.where(np.isfinite(mean), ends, np.nan)
    shape = values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)
