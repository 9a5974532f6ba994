"""What every network that denoises actions offers, and the codes that they share.

Legend: B batch, S context tokens, T action positions, A action dimensions, E token size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Predict = Callable[[Tensor, int], Tensor]
"""Noisy actions (B, T, A), the index of their step among the sampler's -> what is predicted (B, T, A)."""


@dataclass(frozen=True)
class Context:
    """What was observed, in a denoiser's own form: made once per decision."""

    token_BSE: Tensor
    seen_BS: Tensor


class Denoiser(nn.Module, ABC):
    """Noisy actions, their diffusion step, observations -> what the policy is trained to predict.

    Tokens that were not seen have no influence, and the context may be of any length up to the longest.
    """

    @abstractmethod
    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """What depends on the observations alone.

        Args:
            token_BSE: oldest first, the last one is now.
            seen_BS: bool; false where the episode has no such step. Now is always seen.
        """

    @abstractmethod
    def forward(self, noisy_BTA: Tensor, step_B: Tensor, context: Context) -> Tensor:
        """What is predicted (B, T, A), for training: each sample has a diffusion step of its own."""

    @abstractmethod
    def sampler(self, context: Context, steps: Sequence[int], samples: int = 1) -> Predict:
        """The same function for acting, at these diffusion steps. No gradients.

        What depends on the context and the steps alone is computed here, once per decision, however many
        samples there are: these lie one after the other for each of the contexts, (B * samples, T, A).
        """


class StepEmbedding(nn.Module):
    """Diffusion steps (...,) -> (..., size). Diffusion Policy, arXiv 2303.04137."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))

    def forward(self, step: Tensor) -> Tensor:
        embedded: Tensor = self.layers(sinusoid(step, self.size))
        return embedded


def placed(token_BSE: Tensor) -> Tensor:
    """Tokens with their age added: now, the last one, is the same place at every context length."""
    age_S = torch.arange(token_BSE.shape[1] - 1, -1, -1, device=token_BSE.device)
    return token_BSE + sinusoid(age_S, token_BSE.shape[2])


def sinusoid(position: Tensor, size: int) -> Tensor:
    """Sines and cosines (..., size) of integer positions (...,), at frequencies from 1 down to 1/100."""
    frequency = 100 ** (-torch.arange(size // 2, device=position.device) / (size // 2 - 1 or 1))
    angle = position.unsqueeze(-1) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
