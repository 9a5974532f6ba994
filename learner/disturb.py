"""Histories that training disturbs, so that a policy learns not to rely on every frame of them.

Legend (docs/notation.md): B windows, S observed steps, F frames.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from longview.learner.config import LearnerConfig
from longview.learner.policy import Policy
from longview.learner.windows import Batch


def disturbed(
    batch: Batch[Any], policy: Policy, config: LearnerConfig, generator: torch.Generator
) -> Batch[Any]:
    """Return a batch in which past frames are missing or noisy. The present frame stays as it is.

    Args:
        batch: windows, as arrays or on the policy's device.
        policy: the policy that is trained; its normalisation scales the noise.
        config: `history_dropout` and `history_noise`. If both are 0, the batch is returned as it is.
        generator: source of the randomness, on the policy's device.
    """
    if config.history_dropout:
        thinned_BS = _thinned(policy.tensor(batch.seen_BS), config.history_dropout, generator)
        batch = replace(batch, seen_BS=thinned_BS)
    return _noisy(batch, policy, config.history_noise, generator) if config.history_noise else batch


def _thinned(seen_BS: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """Hide each past step with a probability."""
    kept_BS = torch.rand(seen_BS.shape, generator=generator, device=seen_BS.device) >= dropout
    kept_BS[:, -1] = True
    return seen_BS & kept_BS


def _noisy(batch: Batch[Any], policy: Policy, noise: float, generator: torch.Generator) -> Batch[Tensor]:
    """Add noise to the states of past steps. Frames are shared by windows, so each is there twice."""
    observation = {}
    for key, frames in batch.observation.items():
        noisy = clean = policy.tensor(frames)
        if key not in policy.cameras:
            normal = torch.randn(clean.shape, generator=generator, device=clean.device)
            noisy = clean + noise * policy.state_scale(key).view(clean.shape[1:]) * normal
        observation[key] = torch.cat((clean.to(noisy.dtype), noisy))
    frame_BS = policy.tensor(batch.frame_BS).clone()
    frame_BS[:, :-1] += batch.frames
    segment_F = policy.tensor(batch.segment_F).repeat(2)
    return replace(batch, observation=observation, segment_F=segment_F, frame_BS=frame_BS)
