"""Validation of a policy on episodes that it was not trained on, without a simulator.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, B windows of all
segments, S observed steps, T action positions, P past positions, A action dimensions, E token features.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.config import Horizon
from longview.learner.policy import Policy, mean_loss
from longview.learner.transfer import pack, send
from longview.learner.windows import Batch, build
from longview.replay.episode import Episode, Segment

WINDOWS = 64
"""Windows that a policy is validated on, from all episodes together."""


class Validation(TypedDict):
    """Results of a validation: entries of a `TrainingProgress`."""

    validation_loss_by_context: dict[int, float]
    action_error_by_context: dict[int, float]
    validation_s: float


def validate(policy: Policy, episodes: Sequence[Episode], seed: int) -> Validation:
    """Measure a policy's loss and action error at each of the task's context lengths that the policy takes.

    The action error is the mean distance of the executed actions from their targets, as a share of the action
    range: the task's, or the measured one where the task has no limits. The windows lie evenly over each
    episode. Windows and randomness are the same for every policy and every context length, so that results
    can be compared.

    Args:
        policy: a policy in evaluation mode.
        episodes: one episode or more.
        seed: seed of all randomness.
    """
    started = perf_counter()
    spec, horizon = policy.spec, policy.horizon
    segments = [Segment(e.meta, e.length, start=0, now=0, probability=0.0, arrays=e.arrays) for e in episodes]
    place_J = (np.arange(max(1, WINDOWS // len(segments))) + 0.5) / max(1, WINDOWS // len(segments))
    now_GJ = (place_J * np.array([[e.length] for e in episodes])).astype(np.int64)
    generator = torch.Generator(policy.device)
    executed = slice(horizon.past, horizon.past + horizon.execute)
    losses, errors = {}, {}
    low_A, high_A = policy.action_bounds(margin=0.0)
    range_A = high_A - low_A
    for context_length in (length for length in spec.context_lengths if length <= horizon.context):
        batch = build(segments, spec, horizon, context_length, now_GJ)
        there = send(pack(batch, policy.device), policy.device)
        with torch.inference_mode():
            error_BT = policy.error(there, generator.manual_seed(seed))
            losses[context_length] = float(mean_loss(error_BT, there.target_BT))
            token_BSE = policy.batch_tokens(there, generator)
            action_BTA = policy.sample(
                token_BSE, batch.seen_BS, _past(batch, horizon), np.random.default_rng(seed).spawn(batch.size)
            )
        away_BTA = np.abs(action_BTA.clip(*policy.action_bounds()) - batch.action_BTA) / range_A
        error = away_BTA.mean(axis=2)[:, executed][batch.target_BT[:, executed]].mean()
        errors[context_length] = float(error)
    return Validation(
        validation_loss_by_context=losses,
        action_error_by_context=errors,
        validation_s=perf_counter() - started,
    )


def _past(batch: Batch[NDArray[Any]], horizon: Horizon) -> NDArray[np.float32]:
    """Return the executed past actions (B, P, A) of windows; NaN where the context does not reach."""
    past = slice(0, horizon.past)
    return np.where(batch.target_BT[:, past, None], batch.action_BTA[:, past], np.float32(np.nan))
