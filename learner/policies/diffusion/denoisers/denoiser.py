"""Contract of every network that denoises actions, and the position codes that all of them use.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, A action dimensions,
C channels of the input, E token features, Z diffusion steps of a sampler, R rows: candidates of all windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Predict = Callable[[Tensor, int], Tensor]
"""Function of noisy actions (R, T, C) and the index of a diffusion step, with the prediction (R, T, A)."""


@dataclass(frozen=True)
class Context:
    """Observations in the form that a denoiser uses, computed once per decision."""

    token_BSE: Tensor
    """Tokens in the denoiser's own form, oldest first."""
    seen_BS: Tensor
    """Mask of the steps that the episode has."""


class Denoiser(nn.Module, ABC):
    """Network that predicts actions or noise from noisy actions, their diffusion step and the observations.

    Tokens that were not seen have no influence. The context may have any length up to the longest. The input
    has `DiffusionConfig.input_size` channels: noisy actions, then the mark of known ones, if there is one.
    """

    @abstractmethod
    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """Compute everything that depends on the observations alone.

        Args:
            token_BSE: tokens of the observed steps, oldest first; the last step is now.
            seen_BS: bool mask; false where the episode has no such step. Now is always seen.
        """

    @abstractmethod
    def forward(self, noisy_BTC: Tensor, noise_step_B: Tensor, context: Context) -> Tensor:
        """Predict (B, T, A) for training, where each window has its own diffusion step."""

    @abstractmethod
    def schedule(self, noise_step_Z: Tensor) -> Any:
        """Compute everything that depends on a sampler's diffusion steps alone, once for all decisions."""

    @abstractmethod
    def sampler(self, context: Context, schedule: Any, candidates: int = 1) -> Predict:
        """Return a function that predicts as `forward`, for acting. It has no gradients.

        Everything that depends on the context alone is computed here, once per decision and for all
        candidates.

        Args:
            context: observations of B robots.
            schedule: what `schedule` returned for the diffusion steps at which to predict.
            candidates: samples per robot. The candidates of one robot are consecutive: R = B * candidates.
        """


class NoiseStepEmbedding(nn.Module):
    """Embedding of diffusion steps: (...,) -> (..., size). Diffusion Policy, arXiv 2303.04137."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))

    def forward(self, noise_step: Tensor) -> Tensor:
        embedded: Tensor = self.layers(sinusoid(noise_step, self.size))
        return embedded


def placed(token_BSE: Tensor) -> Tensor:
    """Add the code of its age to each token. The last token, now, has the same code at every T_o."""
    age_S = torch.arange(token_BSE.shape[1] - 1, -1, -1, device=token_BSE.device)
    return token_BSE + sinusoid(age_S, token_BSE.shape[2])


def sinusoid(position: Tensor, size: int) -> Tensor:
    """Encode integer positions (...,) as sines and cosines (..., size) of frequencies from 1 to 1/100."""
    frequency = 100 ** (-torch.arange(size // 2, device=position.device) / (size // 2 - 1 or 1))
    angle = position.unsqueeze(-1) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
