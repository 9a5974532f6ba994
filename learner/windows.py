"""Segments -> batches of windows.

Legend: G segments, R rows of all of them, one segment after the other, F frames: the rows that any window
observes, each once, B windows, S observed steps (T_o), T action positions (T_p), A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.learner.config import Horizon
from longview.replay.episode import ACTION, EXPERT_ACTION, OBSERVATION_PREFIX, ArraySpec, Segment, TaskSpec

SPREAD = 8
"""Windows of one segment lie within so many steps per window."""


@dataclass(frozen=True)
class Batch:
    """Training samples of one context length."""

    observation: dict[str, NDArray[Any]]
    """(F, ...) by key."""
    segment_F: NDArray[np.int64]
    """Which of `episodes` a frame is of."""
    frame_BS: NDArray[np.int64]
    """Which of the F frames a window observes, oldest first; the last is now."""
    seen_BS: NDArray[np.bool_]
    """False before the episode's start; the frame that stands in there means nothing."""
    action_BTA: NDArray[np.float32]
    """Targets: the past ones as executed, from now on what the expert says where it said something."""
    target_BT: NDArray[np.bool_]
    """Which positions count in the loss: those within the context, and before the episode's end."""
    episodes: tuple[str, ...]
    """Ids, one per segment."""

    @property
    def size(self) -> int:
        """B."""
        return self.seen_BS.shape[0]

    @property
    def length(self) -> int:
        """S."""
        return self.seen_BS.shape[1]


def margin(windows: int) -> int:
    """Steps on either side of a segment's now at which its other windows may decide."""
    return SPREAD * windows - 1 if windows > 1 else 0


def nows(segments: Sequence[Segment], windows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The steps at which each segment's windows decide, counted from the episode's start: (G, windows).

    The first is the step that was drawn. The others are drawn, all different, from `SPREAD * windows`
    consecutive steps around it, and folded back at the episode's ends. If the first is uniform over the
    episode, so is each of them.
    """
    span_GW = np.tile(np.arange(SPREAD * windows), (len(segments), 1))
    place_GW = rng.permuted(span_GW, axis=1)[:, :windows]
    now_G1 = np.array([[segment.now] for segment in segments])
    length_G1 = np.array([[segment.episode_length] for segment in segments])
    return folded(now_G1 + place_GW - place_GW[:, :1], length_G1)


def folded(step: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Steps beyond an episode's ends, reflected at them: -1 is 0, and `length` is `length - 1`."""
    around = step % (2 * length)
    return np.minimum(around, 2 * length - 1 - around)


def build(
    segments: Sequence[Segment], spec: TaskSpec, horizon: Horizon, length: int, now_GW: NDArray[np.int64]
) -> Batch:
    """Windows of context length `length` = S, cut to it: nothing older is in them.

    Args:
        segments: each with the `length - 1` steps before its first now and the `horizon.after` steps after
            its last one, as far as its episode goes.
        now_GW: the steps to decide at, as `nows` gives them.

    Raises:
        ValueError: an array is missing, is not as the task says, or holds too few steps; or an observation is
            not finite.
    """
    _check(segments, spec, now_GW.min(axis=1) - length + 1, now_GW.max(axis=1) + horizon.after)
    start_G, last_G, length_G = np.array(
        [(s.start, s.start + len(s.arrays[ACTION]) - 1, s.episode_length) for s in segments]
    ).T
    rows_G = last_G - start_G + 1
    base_G = np.cumsum(rows_G) - rows_G
    start_B1, last_B1, length_B1, offset_B1 = np.repeat(
        (start_G, last_G, length_G, base_G - start_G), now_GW.shape[1], axis=1
    )[:, :, None]

    now_B1, target_T = now_GW.reshape(-1, 1), np.arange(-horizon.past, horizon.future)
    step_BS, step_BT = now_B1 + np.arange(1 - length, 1), now_B1 + target_T
    # Where there is no such step the nearest one stands in, under a mask.
    row_BS, row_BT = step_BS.clip(0) + offset_B1, step_BT.clip(start_B1, last_B1) + offset_B1
    observed_R = np.zeros(rows_G.sum(), np.bool_)
    observed_R[row_BS] = True
    row_F = np.flatnonzero(observed_R)
    segment_F = np.repeat(np.arange(len(segments)), rows_G)[row_F]
    executed_RA = np.concatenate([s.arrays[ACTION] for s in segments])
    wanted_RA = np.concatenate([s.arrays.get(EXPERT_ACTION, s.arrays[ACTION]) for s in segments])
    past = horizon.past
    return Batch(
        observation={
            key: _gather(segments, key, array, segment_F, row_F - base_G[segment_F])
            for key, array in spec.observation.items()
        },
        segment_F=segment_F,
        frame_BS=(np.cumsum(observed_R) - 1)[row_BS],
        seen_BS=step_BS >= 0,
        action_BTA=np.concatenate((executed_RA[row_BT[:, :past]], wanted_RA[row_BT[:, past:]]), axis=1),
        target_BT=(step_BT >= 0) & (step_BT < length_B1) & (target_T > -length),
        episodes=tuple(segment.meta.id for segment in segments),
    )


def _gather(
    segments: Sequence[Segment],
    key: str,
    spec: ArraySpec,
    segment_F: NDArray[np.int64],
    row_F: NDArray[np.int64],
) -> NDArray[Any]:
    """One observation of all frames, (F, ...), given the row of its segment that each is. Copied only once,
    for which numpy wants a mode other than "raise": images are large."""
    frames = np.empty((len(row_F), *spec.shape), spec.dtype)
    ends = np.cumsum(np.bincount(segment_F)).tolist()
    for segment, (start, end) in zip(segments, pairwise([0, *ends]), strict=True):
        array = segment.arrays[OBSERVATION_PREFIX + key]
        array.take(row_F[start:end], axis=0, out=frames[start:end], mode="clip")
    if spec.dtype == "float32" and not np.isfinite(frames).all():
        bad = np.argwhere(~np.isfinite(frames))[0, 0]
        segment = segments[segment_F[bad]]
        raise ValueError(
            f"episode {segment.meta.id}: {OBSERVATION_PREFIX}{key} is not finite at step "
            f"{segment.start + row_F[bad]}"
        )
    return frames


def _check(
    segments: Sequence[Segment], spec: TaskSpec, first_G: NDArray[np.int64], last_G: NDArray[np.int64]
) -> None:
    """That the arrays are as the task says and hold the steps first_G to last_G that the episodes have."""
    expected = {OBSERVATION_PREFIX + key: array for key, array in spec.observation.items()}
    expected |= {ACTION: spec.action}
    shapes = [(name, array.shape, np.dtype(array.dtype)) for name, array in expected.items()]
    for segment, first, last in zip(segments, first_G.tolist(), last_G.tolist(), strict=True):
        where = f"episode {segment.meta.id}"
        for name, shape, dtype in shapes:
            array = segment.arrays.get(name)
            if array is None or array.shape[1:] != shape or array.dtype != dtype:
                found = "missing" if array is None else f"{array.dtype}{list(array.shape[1:])}"
                raise ValueError(f"{where}: {name} is {found}, expected {dtype}{list(shape)}")
        held = range(segment.start, segment.start + len(segment.arrays[ACTION]))
        if max(first, 0) not in held or min(last, segment.episode_length - 1) not in held:
            raise ValueError(
                f"{where}: the windows need steps {first} to {last} of {segment.episode_length}, "
                f"the segment holds {held.start} to {held.stop - 1}"
            )
