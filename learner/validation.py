"""Validation of a policy on episodes that it was not trained on, without a simulator.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, B windows of all
segments, S observed steps, T action positions, P past positions, A action dimensions, E token features.
"""

from collections.abc import Sequence
from itertools import compress
from time import perf_counter
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner import ranks
from longview.learner.bootstrap import known_mean
from longview.learner.config import Horizon
from longview.learner.policy import Policy, window_losses
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


def validate(
    policy: Policy, episodes: Sequence[Episode], seed: int, rank: int = 0, world: int = 1, device: str = "cpu"
) -> Validation:
    """Measure a policy's loss and action error at each of the task's context lengths that the policy takes.

    The action error is the mean distance of the executed actions from their targets, as a share of the action
    range: the task's, or the measured one where the task has no limits. The windows lie evenly over each
    episode. Windows and randomness are the same for every policy and every context length, so that results
    can be compared.

    The ranks share out the episodes, because a rank that validated alone would keep all others waiting.

    Args:
        policy: a policy in evaluation mode, the same on every rank.
        episodes: one episode or more, the same on every rank.
        seed: seed of all randomness.
        rank: this rank. Every rank calls this function and gets the same results.
        world: number of ranks.
        device: device of the exchange between ranks.
    """
    started = perf_counter()
    lengths = [length for length in policy.spec.context_lengths if length <= policy.horizon.context]
    windows = max(1, WINDOWS // len(episodes))
    mine = [number // windows % world == rank for number in range(windows * len(episodes))]
    sums = torch.zeros(len(lengths), 4, dtype=torch.float64, device=device)
    for row, length in enumerate(lengths if any(mine) else ()):
        rngs = list(compress(np.random.default_rng(seed).spawn(len(mine)), mine))
        loss_B, away_BT = _windows(policy, episodes[rank::world], length, windows, seed + rank, rngs)
        executed = np.isfinite(away_BT)
        sums[row] = torch.tensor((loss_B.sum(), loss_B.size, away_BT[executed].sum(), executed.sum()))
    ranks.average(sums, world)
    loss, losses, error, errors = sums.T
    return Validation(
        validation_loss_by_context=dict(zip(lengths, (loss / losses).tolist(), strict=True)),
        action_error_by_context=dict(zip(lengths, (error / errors).tolist(), strict=True)),
        validation_s=perf_counter() - started,
    )


def action_errors(
    policy: Policy, episode: Episode, context_length: int, windows: int, seed: int
) -> NDArray[np.float64]:
    """Measure a policy's action error along one episode, as `validate` does.

    Args:
        policy: a policy in evaluation mode.
        episode: an episode that the policy was not trained on.
        context_length: T_o.
        windows: J, number of windows, which lie evenly over the episode.
        seed: seed of all randomness.

    Returns:
        Mean error of the executed actions of each window, (J,); NaN for a window without targets, such as one
        in which a policy acted.
    """
    rngs = np.random.default_rng(seed).spawn(windows)
    _, away_BT = _windows(policy, [episode], context_length, windows, seed, rngs)
    return known_mean(away_BT, axis=1)


def _windows(
    policy: Policy,
    episodes: Sequence[Episode],
    context_length: int,
    windows: int,
    seed: int,
    rngs: Sequence[np.random.Generator],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measure the loss (B,) of windows, and the error (B, T) of each executed action; NaN behind the
    episode's end.

    Args:
        windows: windows of each episode.
        seed: seed of the loss.
        rngs: source of randomness of each window's actions.
    """
    spec, horizon = policy.spec, policy.horizon
    segments = [Segment(e.meta, e.length, start=0, now=0, probability=0.0, arrays=e.arrays) for e in episodes]
    place_J = (np.arange(windows) + 0.5) / windows
    now_GJ = (place_J * np.array([[e.length] for e in episodes])).astype(np.int64)
    batch = build(segments, spec, horizon, context_length, now_GJ)
    there = send(pack(batch, policy.device), policy.device)
    generator = torch.Generator(policy.device)
    with torch.inference_mode():
        error_BT = policy.error(there, generator.manual_seed(seed))
        loss_B = window_losses(error_BT, there.target_BT).float().cpu().numpy()
        token_BSE = policy.batch_tokens(there, generator)
        action_BTA = policy.sample(token_BSE, batch.seen_BS, _past(batch, horizon), rngs)
    low_A, high_A = policy.action_bounds(margin=0.0)
    executed = slice(horizon.past, horizon.past + horizon.execute)
    away_BTA = np.abs(action_BTA.clip(*policy.action_bounds()) - batch.action_BTA) / (high_A - low_A)
    away_BT = np.where(batch.target_BT, away_BTA.mean(axis=2), np.float32(np.nan))[:, executed]
    return loss_B, away_BT


def _past(batch: Batch[NDArray[Any]], horizon: Horizon) -> NDArray[np.float32]:
    """Return the executed past actions (B, P, A) of windows; NaN where the context does not reach."""
    past = slice(0, horizon.past)
    return np.where(batch.target_BT[:, past, None], batch.action_BTA[:, past], np.float32(np.nan))
