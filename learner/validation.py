"""How well a policy does on episodes that it was not trained on, without a simulator.

Legend: E episodes, W windows of each, B windows, S observed steps, T action positions, P past ones of them,
A action dimensions.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.config import Horizon
from longview.learner.policy import Policy, mean_loss
from longview.learner.windows import Batch, build
from longview.replay.episode import Episode, Segment

WINDOWS = 64
"""Validated on, of all episodes together."""


class Validation(TypedDict):
    """The entries of a `TrainingProgress` that come from validation."""

    validation_loss_by_context: dict[int, float]
    action_error_by_context: dict[int, float]
    validation_s: float


def validate(policy: Policy, episodes: Sequence[Episode], seed: int) -> Validation:
    """Loss, and mean distance of the actions that would be executed from the targets as a share of the action
    range, at each of the task's context lengths that the policy takes.

    The action range is the task's, or where the task has no limits, the one that was measured.

    The windows lie evenly over each episode. Windows and randomness are the same for every policy and every
    length, so that results can be compared.

    Args:
        policy: in evaluation mode.
        episodes: at least one.
        seed: of all that is random.
    """
    started = perf_counter()
    spec, horizon = policy.spec, policy.horizon
    segments = [Segment(e.meta, e.length, start=0, now=0, probability=0.0, arrays=e.arrays) for e in episodes]
    place_W = (np.arange(max(1, WINDOWS // len(segments))) + 0.5) / max(1, WINDOWS // len(segments))
    now_EW = (place_W * np.array([[e.length] for e in episodes])).astype(np.int64)
    generator = torch.Generator(policy.device)
    executed = slice(horizon.past, horizon.past + horizon.execute)
    losses, errors = {}, {}
    low_A, high_A = policy.action_bounds(margin=0.0)
    range_A = high_A - low_A
    for length in (length for length in spec.context_lengths if length <= horizon.context):
        batch = build(segments, spec, horizon, length, now_EW)
        with torch.inference_mode():
            error_BT = policy.error(batch, generator.manual_seed(seed))
            losses[length] = float(mean_loss(error_BT, policy.tensor(batch.target_BT)))
            token_BSE = policy.batch_tokens(batch, generator)
            action_BTA = policy.sample(
                token_BSE, batch.seen_BS, _past(batch, horizon), np.random.default_rng(seed)
            )
        away_BTA = np.abs(action_BTA.clip(*policy.action_bounds()) - batch.action_BTA) / range_A
        errors[length] = float(away_BTA.mean(axis=2)[:, executed][batch.target_BT[:, executed]].mean())
    return Validation(
        validation_loss_by_context=losses,
        action_error_by_context=errors,
        validation_s=perf_counter() - started,
    )


def _past(batch: Batch, horizon: Horizon) -> NDArray[np.float32]:
    """Return the executed past actions (B, P, A) of windows; NaN where the context does not reach."""
    past = slice(0, horizon.past)
    return np.where(batch.target_BT[:, past, None], batch.action_BTA[:, past], np.float32(np.nan))
