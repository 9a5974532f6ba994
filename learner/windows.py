"""Windows of one context length, cut from segments and joined into a batch.

Legend (docs/notation.md): G segments, J windows of each segment, B windows of all segments, R rows: steps of
all segments, F frames that at least one window observes, S observed steps (T_o), T action positions (T_p),
A action dimensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from longview.learner.config import Horizon
from longview.replay.episode import (
    ACTION,
    BY_POLICY,
    CONTROLLER,
    EXPERT_ACTION,
    NO_PLAN,
    OBSERVATION_PREFIX,
    PLAN_STEP,
    ArraySpec,
    Segment,
    TaskSpec,
    imitates,
    learnable,
)

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", bound="NDArray[Any] | Tensor")
Other = TypeVar("Other", bound="NDArray[Any] | Tensor")

SPREAD = 8
"""Consecutive steps per window of a segment, from which the steps of its windows are drawn."""
ANY_WINDOW, NO_WINDOW = -1, -2
"""Instead of the step at which a label's plan was made: the label is valid for every window, or for none."""


@dataclass(frozen=True)
class Batch(Generic[Array]):
    """Training samples of one context length: numpy arrays, or tensors on a policy's device."""

    observation: dict[str, Array]
    """Frames (F, ...) by observation key, each frame once."""
    segment_F: Array
    """Index (int64) in `episodes` of the episode that each frame belongs to."""
    frame_BS: Array
    """Index (int64) of the frame that each window observes at each step, oldest first. The last is now."""
    seen_BS: Array
    """Mask of observed steps: false before the episode's start, where `frame_BS` holds an arbitrary frame."""
    action_BTA: Array
    """Target actions: executed actions in the past; from now on the expert's actions, where there are any."""
    target_BT: Array
    """Mask of the positions that count in the loss: within the context, before the episode's end, and with
    something to learn from. An expert or a person was in control, or the step has a label for this window, or
    the episode was drawn to be imitated."""
    episodes: tuple[str, ...]
    """Ids of the episodes, one per segment."""

    @property
    def size(self) -> int:
        """Number of windows, B."""
        return self.seen_BS.shape[0]

    @property
    def context_length(self) -> int:
        """Number of observed steps, S: the T_o of all windows, or more if the batch is padded."""
        return self.seen_BS.shape[1]

    @property
    def frames(self) -> int:
        """Number of frames, F."""
        return len(self.segment_F)

    @property
    def arrays(self) -> list[Array]:
        """All arrays, observations first."""
        own = (self.segment_F, self.frame_BS, self.seen_BS, self.action_BTA, self.target_BT)
        return [*self.observation.values(), *own]

    def with_arrays(self, arrays: Iterable[Other]) -> "Batch[Other]":
        """Return this batch with other arrays, in the order of `arrays`."""
        *frames, segment_F, frame_BS, seen_BS, action_BTA, target_BT = arrays
        observation = dict(zip(self.observation, frames, strict=True))
        return Batch(observation, segment_F, frame_BS, seen_BS, action_BTA, target_BT, self.episodes)


def margin(windows: int) -> int:
    """Return the largest distance, in steps, between a segment's drawn step and its other windows."""
    return SPREAD * windows - 1 if windows > 1 else 0


def nows(segments: Sequence[Segment], windows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the steps at which each segment's windows decide, counted from the episode's start: (G, J).

    The first window decides at the step that the store drew. The other windows decide at different steps,
    drawn from `SPREAD * windows` consecutive steps around the first one and folded back at the episode's
    ends. If the first step is uniform over the episode, every other one is uniform too. A window that would
    decide where there is nothing to learn from decides at the drawn step instead.
    """
    span_GJ = np.tile(np.arange(SPREAD * windows), (len(segments), 1))
    place_GJ = rng.permuted(span_GJ, axis=1)[:, :windows]
    now_G1 = np.array([[segment.now] for segment in segments])
    length_G1 = np.array([[segment.episode_length] for segment in segments])
    now_GJ = folded(now_G1 + place_GJ - place_GJ[:, :1], length_G1)
    for segment, now_J in zip(segments, now_GJ, strict=True):
        useful = learnable(segment.arrays) | imitates(segment.stratum)
        if not useful.all():
            now_J[~useful[now_J - segment.start]] = segment.now
    return now_GJ


def folded(step: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reflect steps at the ends of an episode: -1 becomes 0, and `length` becomes `length - 1`."""
    around = step % (2 * length)
    return np.minimum(around, 2 * length - 1 - around)


def build(
    segments: Sequence[Segment],
    spec: TaskSpec,
    horizon: Horizon,
    context_length: int,
    now_GJ: NDArray[np.int64],
) -> Batch[NDArray[Any]]:
    """Cut windows of one context length from segments. A window holds no step older than its context.

    Args:
        segments: each holds the `context_length - 1` steps before its first window's now and the
            `horizon.after` steps after its last window's now, as far as its episode goes.
        context_length: S.
        now_GJ: steps at which the windows decide, as `nows` returns them.

    Raises:
        ValueError: an array is missing, is not as the task says, or holds too few steps; or an observation is
            not finite.
    """
    _check(segments, spec, now_GJ.min(axis=1) - context_length + 1, now_GJ.max(axis=1) + horizon.after)
    start_G, last_G, length_G = np.array(
        [(s.start, s.start + len(s.arrays[ACTION]) - 1, s.episode_length) for s in segments]
    ).T
    rows_G = last_G - start_G + 1
    base_G = np.cumsum(rows_G) - rows_G
    start_B1, last_B1, length_B1, offset_B1 = np.repeat(
        (start_G, last_G, length_G, base_G - start_G), now_GJ.shape[1], axis=1
    )[:, :, None]

    now_B1, target_T = now_GJ.reshape(-1, 1), np.arange(-horizon.past, horizon.future)
    step_BS, step_BT = now_B1 + np.arange(1 - context_length, 1), now_B1 + target_T
    # A step that the episode does not have is replaced by the nearest one and masked.
    row_BS, row_BT = step_BS.clip(0) + offset_B1, step_BT.clip(start_B1, last_B1) + offset_B1
    observed_R = np.zeros(rows_G.sum(), np.bool_)
    observed_R[row_BS] = True
    row_F = np.flatnonzero(observed_R)
    segment_F = np.repeat(np.arange(len(segments)), rows_G)[row_F]
    executed_RA = np.concatenate([s.arrays[ACTION] for s in segments])
    wanted_RA = np.concatenate([s.arrays.get(EXPERT_ACTION, s.arrays[ACTION]) for s in segments])
    led_BT = np.concatenate([s.arrays[CONTROLLER] for s in segments])[row_BT] != BY_POLICY
    imitated_B1 = np.repeat([imitates(s.stratum) for s in segments], now_GJ.shape[1])[:, None]
    # A label of a plan is valid for the window that decides where the plan was made.
    plan_BT = np.concatenate([_plans(s) for s in segments])[row_BT]
    labelled_BT = (plan_BT == ANY_WINDOW) | ((plan_BT == now_B1) & ~imitated_B1)
    action_BTA = np.where((led_BT | labelled_BT)[..., None], wanted_RA[row_BT], executed_RA[row_BT])
    past = horizon.past
    action_BTA[:, :past] = executed_RA[row_BT[:, :past]]
    return Batch(
        observation={
            key: _gather(segments, key, array, base_G, row_F) for key, array in spec.observation.items()
        },
        segment_F=segment_F,
        frame_BS=(np.cumsum(observed_R) - 1)[row_BS],
        seen_BS=step_BS >= 0,
        action_BTA=action_BTA,
        target_BT=(led_BT | labelled_BT | imitated_B1)
        & (step_BT >= 0)
        & (step_BT < length_B1)
        & (target_T > -context_length),
        episodes=tuple(segment.meta.id for segment in segments),
    )


def _plans(segment: Segment) -> NDArray[np.int64]:
    """Return the step at which the plan of each row's label was made, (steps,).

    It is `ANY_WINDOW` where a label stands for itself, and `NO_WINDOW` without a label.
    """
    arrays = segment.arrays
    steps = np.arange(len(arrays[ACTION]))
    if PLAN_STEP in arrays:
        place = arrays[PLAN_STEP]
        return np.where(place == NO_PLAN, NO_WINDOW, segment.start + steps - place)
    return np.full_like(steps, ANY_WINDOW if EXPERT_ACTION in arrays else NO_WINDOW)


def _gather(
    segments: Sequence[Segment],
    key: str,
    spec: ArraySpec,
    base_G: NDArray[np.int64],
    row_F: NDArray[np.int64],
) -> NDArray[Any]:
    """Collect one observation of all frames, (F, ...).

    Args:
        base_G: number of rows before each segment.
        row_F: index of each frame in the rows of all segments, ascending.
    """
    frames = np.empty((len(row_F), *spec.shape), spec.dtype)
    pieces = [piece for segment in segments for piece in segment.pieces(OBSERVATION_PREFIX + key)]
    bounds = np.cumsum([0, *map(len, pieces)])
    places = pairwise(row_F.searchsorted(bounds).tolist())
    for piece, first, (start, end) in zip(pieces, bounds[:-1], places, strict=True):
        # Images are large. With another mode than "raise", numpy copies them straight into `frames`.
        piece.take(row_F[start:end] - first, axis=0, out=frames[start:end], mode="clip")
    if spec.dtype == "float32" and not np.isfinite(frames).all():
        bad = row_F[np.argwhere(~np.isfinite(frames))[0, 0]]
        number = base_G.searchsorted(bad, side="right") - 1
        segment = segments[number]
        raise ValueError(
            f"episode {segment.meta.id}: {OBSERVATION_PREFIX}{key} is not finite at step "
            f"{segment.start + bad - base_G[number]}"
        )
    return frames


def _check(
    segments: Sequence[Segment], spec: TaskSpec, first_G: NDArray[np.int64], last_G: NDArray[np.int64]
) -> None:
    """Require that segments fit the task and hold the steps first_G to last_G, as far as the episodes go."""
    expected = {OBSERVATION_PREFIX + key: array for key, array in spec.observation.items()}
    expected |= {ACTION: spec.action, CONTROLLER: ArraySpec((), "uint8")}
    shapes = [(name, array.shape, np.dtype(array.dtype)) for name, array in expected.items()]
    for segment, first, last in zip(segments, first_G.tolist(), last_G.tolist(), strict=True):
        where = f"episode {segment.meta.id}"
        for name, shape, dtype in shapes:
            array = segment.pieces(name)[0] if name in segment.arrays else None
            if array is None or array.shape[1:] != shape or array.dtype != dtype:
                found = "missing" if array is None else f"{array.dtype}{list(array.shape[1:])}"
                raise ValueError(f"{where}: {name} is {found}, expected {dtype}{list(shape)}")
        held = range(segment.start, segment.start + len(segment.arrays[ACTION]))
        if max(first, 0) not in held or min(last, segment.episode_length - 1) not in held:
            raise ValueError(
                f"{where}: the windows need steps {first} to {last} of {segment.episode_length}, "
                f"the segment holds {held.start} to {held.stop - 1}"
            )
