"""Temporal ensembling: the mean of all actions that were chosen for the same step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ensembled(
    chunks: Sequence[tuple[int, NDArray[np.float32]]], step: int, decay: float
) -> NDArray[np.float32]:
    """Average the actions that overlapping decisions chose for each step, as ACT does (arXiv 2304.13705).

    Args:
        chunks: decisions, oldest first: the step of the first action, and the actions (T_a, A) from it on.
            The last decision is that of `step`.
        step: the present step.
        decay: weights are exp(-decay i) for the i-th oldest decision that reaches a step; 0 weighs all alike.

    Returns:
        Actions (T_a, A) from the present step on.
    """
    _, newest = chunks[-1]
    totals, weights, ranks = np.zeros(newest.shape), np.zeros((len(newest), 1)), np.zeros((len(newest), 1))
    for first, actions in chunks:
        left = actions[step - first :]
        weight = np.exp(-decay * ranks[: len(left)])
        totals[: len(left)] += weight * left
        weights[: len(left)] += weight
        ranks[: len(left)] += 1
    return (totals / weights).astype(np.float32)
