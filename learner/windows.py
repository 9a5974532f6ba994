"""Segments -> batches of windows.

Legend: B batch, S observed steps (T_o), T action positions (T_p), A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.config import Horizon
from replay.episode import ACTION, EXPERT_ACTION, OBSERVATION_PREFIX, Segment


@dataclass(frozen=True)
class Batch:
    """Training samples of one context length."""

    observation: dict[str, NDArray[Any]]
    """(B, S, ...) by key, oldest first; the last row is now."""
    seen_BS: NDArray[np.bool_]
    """False before the episode's start; what the observation holds there means nothing."""
    action_BTA: NDArray[np.float32]
    """Targets: the past ones as executed, from now on what the expert says where it said something."""
    target_BT: NDArray[np.bool_]
    """Which positions count in the loss: those within the context, and before the episode's end."""

    @property
    def size(self) -> int:
        """B."""
        return self.seen_BS.shape[0]

    @property
    def length(self) -> int:
        """S."""
        return self.seen_BS.shape[1]


def build(segments: Sequence[Segment], horizon: Horizon, length: int) -> Batch:
    """Windows of context length `length` = S, cut to it: nothing older is in them.

    Args:
        segments: each with the `length - 1` steps before and the `horizon.after` steps after its now, as
            far as its episode goes.
    """
    now_B1 = np.array([[segment.now] for segment in segments])
    end_B1 = np.array([[segment.episode_length] for segment in segments])
    seen_S, target_T = np.arange(1 - length, 1), np.arange(-horizon.past, horizon.future)
    keys = [name for name in segments[0].arrays if name.startswith(OBSERVATION_PREFIX)]
    step_BT = now_B1 + target_T
    return Batch(
        observation={
            key.removeprefix(OBSERVATION_PREFIX): np.stack([_rows(s, key, seen_S) for s in segments])
            for key in keys
        },
        seen_BS=now_B1 + seen_S >= 0,
        action_BTA=np.stack([_targets(segment, target_T) for segment in segments]),
        target_BT=(step_BT >= 0) & (step_BT < end_B1) & (target_T > -length),
    )


def _targets(segment: Segment, offset_T: NDArray[np.int64]) -> NDArray[np.float32]:
    future = EXPERT_ACTION if EXPERT_ACTION in segment.arrays else ACTION
    past_T, future_T = offset_T[offset_T < 0], offset_T[offset_T >= 0]
    return np.concatenate((_rows(segment, ACTION, past_T), _rows(segment, future, future_T)))


def _rows(segment: Segment, name: str, offset: NDArray[np.int64]) -> NDArray[Any]:
    """Rows by their distance from now. Outside of the segment the nearest row stands in, under a mask."""
    return segment.arrays[name].take(segment.now - segment.start + offset, axis=0, mode="clip")
