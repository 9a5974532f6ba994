"""How a UNet is told of the context and of the diffusion step.

Legend: B batch, S context tokens, T action positions, C channels, E token size,
N diffusion steps of a sampler, R the row of all tokens, F what is made for all blocks.
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
from longview.learner.policies.diffusion.denoisers.denoiser import Context, StepEmbedding

Conditions = Sequence[Any]
"""What each block's layer is told, in the order of the blocks."""


class Conditioning(nn.Module, ABC):
    """One for the whole network, which makes what the `layer` of each of its blocks is told."""

    @abstractmethod
    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """As `Denoiser.context`."""

    @abstractmethod
    def forward(self, step_B: Tensor, context: Context) -> Conditions:
        """For training: each sample has a diffusion step of its own."""

    @abstractmethod
    def sampler(self, context: Context, steps: Sequence[int], samples: int) -> Callable[[int], Conditions]:
        """For acting: the conditions at one of these diffusion steps, which hold until the next call."""


class CrossAttention(Conditioning):
    """Every block attends to one token per observed step, and to one of the diffusion step.

    After the cross-attention variant of arXiv 2606.16447. Two corrections: tokens are placed by their age, so
    that now is the same place at every context length, and missing history is masked.
    """

    def __init__(self, config: UNetCrossConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.step = StepEmbedding(config.token_size)
        self.memory = ContextMemory(config, widths)

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return Context(self.memory.tokens(token_BSE), seen_BS)

    def forward(self, step_B: Tensor, context: Context) -> list[Attend]:
        memory, step_B1E = self.memory, self.step(step_B).unsqueeze(1)
        parts = (memory.blocks(context.token_BSE), memory.blocks(memory.norm(step_B1E)))
        return memory.attends(torch.cat(parts, dim=1), _bias(context.seen_BS))

    def sampler(self, context: Context, steps: Sequence[int], samples: int) -> Callable[[int], list[Attend]]:
        memory, device = self.memory, context.token_BSE.device
        # The last token is the diffusion step: only its keys and values are written anew.
        kept = memory.kept(functional.pad(context.token_BSE, (0, 0, 0, 1)))
        attends = memory.attends_kept(kept, _bias(context.seen_BS))
        step_NF = memory.blocks(memory.norm(self.step(torch.tensor(steps, device=device))))
        step_NC = step_NF.split(memory.sizes, dim=1)

        def conditions(index: int) -> list[Attend]:
            for part_BCS, part_NC in zip(kept, step_NC, strict=True):
                part_BCS[:, :, -1] = part_NC[index]
            return attends

        return conditions


def _bias(seen_BS: Tensor) -> Tensor:
    """Of the logits of context tokens and diffusion step, (B, S + 1).

    The diffusion step weighs as much as all of the context: its share must not shrink as T_o grows.
    """
    return torch.cat((seen_BS, seen_BS.sum(dim=1, keepdim=True)), dim=1).log()


class AttentionLayer(nn.Module):
    """Pre-norm attention to what the block is given, then a feed-forward; both residual."""

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
    """Every block is scaled and shifted by a linear map of all tokens in a row and the diffusion step.

    As in Diffusion Policy, arXiv 2303.04137. The row ends with now; steps that were not seen are zeros in it.
    """

    def __init__(self, config: UNetFilmConfig, horizon: Horizon, widths: Sequence[int]) -> None:
        super().__init__()
        self.step = StepEmbedding(config.token_size)
        self.sizes = [2 * width for width in widths]
        self.of_context = nn.Linear(horizon.context * config.token_size, sum(self.sizes), bias=False)
        self.of_step = nn.Linear(config.token_size, sum(self.sizes))

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return Context(functional.mish(token_BSE.masked_fill(~seen_BS.unsqueeze(2), 0)), seen_BS)

    def forward(self, step_B: Tensor, context: Context) -> list[tuple[Tensor, Tensor]]:
        return self.split(self.row(context) + self.of_step(functional.mish(self.step(step_B))))

    def sampler(self, context: Context, steps: Sequence[int], samples: int) -> Callable[[int], Conditions]:
        context_BF = self.row(context).repeat_interleave(samples, dim=0)
        step_N = torch.tensor(steps, device=context.seen_BS.device)
        step_NF = self.of_step(functional.mish(self.step(step_N)))
        return [self.split(context_BF + step_F) for step_F in step_NF].__getitem__

    def row(self, context: Context) -> Tensor:
        """The context's part of all scales and shifts, (B, F): zeros before its oldest step cost nothing."""
        row_BR = context.token_BSE.flatten(1)
        return functional.linear(row_BR, self.of_context.weight[:, -row_BR.shape[1] :])

    def split(self, all_BF: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each block's scale and shift, (B, C, 1)."""
        scale_shift = (part.unsqueeze(2).chunk(2, dim=1) for part in torch.split(all_BF, self.sizes, dim=1))
        return [(scale, shift) for scale, shift in scale_shift]


class ScaleAndShift(nn.Module):
    """Scales and shifts channels, as the condition says."""

    def __init__(self, width: int) -> None:
        """
        Args:
            width: C, which no weight depends on.
        """
        super().__init__()

    def forward(self, x_BCT: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        scale_BC1, shift_BC1 = condition
        return x_BCT * scale_BC1 + shift_BC1
