"""Conditioning of a UNet on the context and the diffusion step.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, C channels, E token
features, Z diffusion steps of a sampler, R rows: candidates of all windows, or tokens of all steps, L outputs
for all blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.config import Horizon
from longview.learner.policies.diffusion.config import UNetCrossConfig, UNetFilmConfig
from longview.learner.policies.diffusion.denoisers.attention import Attend, ContextMemory, unit_scale
from longview.learner.policies.diffusion.denoisers.denoiser import Context, NoiseStepEmbedding

Conditions = Sequence[Any]
"""Inputs of the blocks' conditioning layers, in the order of the blocks."""


class Conditioning(nn.Module, ABC):
    """Conditioning of a whole network. It makes the condition of every block."""

    @abstractmethod
    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """Compute everything that depends on the observations alone, as `Denoiser.context`."""

    @abstractmethod
    def forward(self, noise_step_B: Tensor, context: Context) -> Conditions:
        """Make the conditions for training, where each window has its own diffusion step."""

    @abstractmethod
    def schedule(self, noise_step_Z: Tensor) -> Any:
        """Compute everything that depends on the diffusion steps alone, as `Denoiser.schedule`."""

    @abstractmethod
    def sampler(self, context: Context, schedule: Any, candidates: int) -> Callable[[int], Conditions]:
        """Return a function for acting: from the index of a diffusion step to the conditions at that step.

        The conditions are valid until the function is called again.
        """


class CrossAttention(Conditioning):
    """Conditioning by attention of every block to one token per observed step and one of the diffusion step.

    This is the cross-attention variant of arXiv 2606.16447, with two changes. Tokens are placed by their age,
    so that now has the same place at every context length. Missing history is masked.
    """

    def __init__(self, config: UNetCrossConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.step = NoiseStepEmbedding(config.token_size)
        self.memory = ContextMemory(config, widths)

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return Context(self.memory.tokens(token_BSE), seen_BS)

    def forward(self, noise_step_B: Tensor, context: Context) -> list[Attend]:
        memory, noise_step_B1E = self.memory, self.step(noise_step_B).unsqueeze(1)
        parts = (memory.blocks(context.token_BSE), memory.blocks(memory.norm(noise_step_B1E)))
        return memory.attentions(torch.cat(parts, dim=1), _bias(context.seen_BS))

    def schedule(self, noise_step_Z: Tensor) -> Sequence[Tensor]:
        """Return keys and values of the diffusion steps, a tensor (Z, C) for each of the blocks' maps."""
        memory = self.memory
        noise_step_ZL: Tensor = memory.blocks(memory.norm(self.step(noise_step_Z)))
        return torch.split(noise_step_ZL, memory.sizes, dim=1)

    def sampler(
        self, context: Context, schedule: Sequence[Tensor], candidates: int
    ) -> Callable[[int], list[Attend]]:
        memory = self.memory
        # The last token is the diffusion step. Only its keys and values change from call to call.
        cached = memory.cache(functional.pad(context.token_BSE, (0, 0, 0, 1)))
        attentions = memory.cached_attentions(cached, _bias(context.seen_BS))

        def conditions(index: int) -> list[Attend]:
            for cached_BCS, part_ZC in zip(cached, schedule, strict=True):
                cached_BCS[:, :, -1] = part_ZC[index]
            return attentions

        return conditions


def _bias(seen_BS: Tensor) -> Tensor:
    """Return the bias of the logits of context tokens and diffusion step, (B, S + 1).

    The diffusion step weighs as much as the whole context, so that its share does not shrink as T_o grows.
    """
    return torch.cat((seen_BS, seen_BS.sum(dim=1, keepdim=True)), dim=1).log()


class AttentionLayer(nn.Module):
    """Attention to the context, then a feed-forward network. Both are residual and normalise their input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(width), unit_scale(nn.Linear(width, width)))
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x_BCT: Tensor, attend: Attend) -> Tensor:
        x_BTC = x_BCT.transpose(1, 2)
        x_BTC = x_BTC + self.out(attend(self.query(x_BTC)))
        y_BTC: Tensor = x_BTC + self.feed(x_BTC)
        return y_BTC.transpose(1, 2)


class FilmConditioning(Conditioning):
    """Conditioning by scale and shift of every block, a linear map of all tokens and the diffusion step.

    This is the conditioning of Diffusion Policy, arXiv 2303.04137. All tokens form one row that ends with
    now. Steps that were not seen are zeros in it.
    """

    def __init__(self, config: UNetFilmConfig, horizon: Horizon, widths: Sequence[int]) -> None:
        super().__init__()
        self.step = NoiseStepEmbedding(config.token_size)
        self.sizes = [2 * width for width in widths]
        self.of_context = nn.Linear(horizon.context * config.token_size, sum(self.sizes), bias=False)
        self.of_step = nn.Linear(config.token_size, sum(self.sizes))

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return Context(functional.mish(token_BSE.masked_fill(~seen_BS.unsqueeze(2), 0)), seen_BS)

    def forward(self, noise_step_B: Tensor, context: Context) -> list[tuple[Tensor, Tensor]]:
        return self.split(self.map_context(context) + self.of_step(functional.mish(self.step(noise_step_B))))

    def schedule(self, noise_step_Z: Tensor) -> Tensor:
        """Return the diffusion steps' part of all scales and shifts, (Z, L)."""
        noise_step_ZL: Tensor = self.of_step(functional.mish(self.step(noise_step_Z)))
        return noise_step_ZL

    def sampler(self, context: Context, schedule: Tensor, candidates: int) -> Callable[[int], Conditions]:
        context_RL = self.map_context(context).repeat_interleave(candidates, dim=0)
        return [self.split(context_RL + noise_step_L) for noise_step_L in schedule].__getitem__

    def map_context(self, context: Context) -> Tensor:
        """Compute the context's part of all scales and shifts, (B, L).

        Steps before the context's oldest one would be zeros in the row. Their weights are left out. The
        gradient of the weights has hundreds of megabytes at size `paper`. A slice would copy it even at the
        longest context, and `functional.linear` of a slice would make it transposed.
        """
        row_BR, weight_LR = context.token_BSE.flatten(1), self.of_context.weight
        if row_BR.shape[1] < weight_LR.shape[1]:
            weight_LR = weight_LR[:, -row_BR.shape[1] :]
        return (weight_LR @ row_BR.T).T

    def split(self, all_BL: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split the outputs for all blocks into each block's scale and shift, (B, C, 1)."""
        scale_shift = (part.unsqueeze(2).chunk(2, dim=1) for part in torch.split(all_BL, self.sizes, dim=1))
        return [(scale, shift) for scale, shift in scale_shift]


class ScaleAndShift(nn.Module):
    """Layer that scales and shifts channels by its condition."""

    def __init__(self, width: int) -> None:
        """
        Args:
            width: number of channels C. The layer has no weights.
        """
        super().__init__()

    def forward(self, x_BCT: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        scale_BC1, shift_BC1 = condition
        return x_BCT * scale_BC1 + shift_BC1
