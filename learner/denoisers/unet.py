"""A 1-D UNet over the action axis that attends to context tokens.

Structure after the cross-attention variant of arXiv 2606.16447 and Diffusion Policy, arXiv 2303.04137. Two
corrections: tokens are placed by their age, so that now is the same place at every context length, and
missing history is masked.

Legend: B batch, S context tokens, T action positions, A action dimensions, C channels, E token size,
F keys and values of all blocks, H heads, D channels per head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.config import PolicyConfig


@dataclass(frozen=True)
class Context:
    """What the denoiser attends to: computed once per decision, used at every denoising step."""

    memory_BSF: Tensor
    seen_BS: Tensor


class UNet(nn.Module):
    """Predicts the noise in a sequence of actions. Attention is never given a token that was not seen."""

    def __init__(self, config: PolicyConfig, action_size: int) -> None:
        super().__init__()
        widths, size = config.widths, config.token_size
        self.down = nn.ModuleList()
        for inputs, width in zip((action_size, *widths), widths, strict=False):
            last = len(self.down) == len(widths) - 1
            shrink = nn.Identity() if last else nn.Conv1d(width, width, 3, stride=2, padding=1)
            self.down.append(Level(config, inputs, width, shrink))
        self.middle = Level(config, widths[-1], widths[-1], nn.Identity())
        self.up = nn.ModuleList()
        for width, below in zip(widths[-2::-1], widths[:0:-1], strict=True):
            grow = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
            self.up.append(Level(config, 2 * below, width, grow))
        self.out = nn.Sequential(
            conv_block(config, widths[0], widths[0]), nn.Conv1d(widths[0], action_size, 1)
        )

        self.size = size
        self.step = nn.Sequential(nn.Linear(size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))
        self.project = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.sizes = [2 * block.width for block in self.modules() if isinstance(block, ResidualBlock)]
        self.memory = _unit_scale(nn.Linear(size, sum(self.sizes)))

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """Keys and values of all blocks.

        Args:
            token_BSE: oldest first, the last one is now.
            seen_BS: bool; false where the episode has no such step.
        """
        age_S = torch.arange(token_BSE.shape[1] - 1, -1, -1, device=token_BSE.device)
        placed_BSE = token_BSE + sinusoid(age_S, self.size)
        return Context(self.memory(self.norm(self.project(placed_BSE))), seen_BS)

    def forward(self, noisy_BTA: Tensor, step_B: Tensor, context: Context) -> Tensor:
        """The noise (B, T, A) in noisy actions at diffusion steps `step_B`."""
        step_B1E = self.step(sinusoid(step_B, self.size)).unsqueeze(1)
        memory_BSF = torch.cat((context.memory_BSF, self.memory(self.norm(step_B1E))), dim=1)
        # The diffusion step weighs as much as all of the context: its share must not shrink as T_o grows.
        weight_BS = torch.cat((context.seen_BS, context.seen_BS.sum(dim=1, keepdim=True)), dim=1)
        bias_B11S = weight_BS.log()[:, None, None]
        memories = iter(torch.split(memory_BSF, self.sizes, dim=2))

        x_BCT, skips = noisy_BTA.transpose(1, 2), []
        for level in self.down:
            skip_BCT, x_BCT = level(x_BCT, memories, bias_B11S)
            skips.append(skip_BCT)
        _, x_BCT = self.middle(x_BCT, memories, bias_B11S)
        for level in self.up:
            _, x_BCT = level(torch.cat((x_BCT, skips.pop()), dim=1), memories, bias_B11S)
        noise_BTA: Tensor = self.out(x_BCT).transpose(1, 2)
        return noise_BTA


class Level(nn.Module):
    """Two residual blocks, then a change of resolution; returns what they made before and after it."""

    def __init__(self, config: PolicyConfig, inputs: int, width: int, resize: nn.Module) -> None:
        super().__init__()
        self.first = ResidualBlock(config, inputs, width)
        self.second = ResidualBlock(config, width, width)
        self.resize = resize

    def forward(self, x_BCT: Tensor, memories: Iterator[Tensor], bias_B11S: Tensor) -> tuple[Tensor, Tensor]:
        for block in (self.first, self.second):
            x_BCT = block(x_BCT, next(memories), bias_B11S)
        return x_BCT, self.resize(x_BCT)


class ResidualBlock(nn.Module):
    """Convolution, attention to the context, convolution."""

    def __init__(self, config: PolicyConfig, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = conv_block(config, inputs, width)
        self.attend = CrossAttention(width, config.heads, config.dropout)
        self.second = conv_block(config, width, width)
        self.skip = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x_BCT: Tensor, memory_BSF: Tensor, bias_B11S: Tensor) -> Tensor:
        mixed_BTC = self.attend(self.first(x_BCT).transpose(1, 2), memory_BSF, bias_B11S)
        y_BCT: Tensor = self.second(mixed_BTC.transpose(1, 2)) + self.skip(x_BCT)
        return y_BCT


class CrossAttention(nn.Module):
    """Pre-norm attention to keys and values made elsewhere, then a feed-forward; both residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(width), _unit_scale(nn.Linear(width, width)))
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x_BTC: Tensor, memory_BSF: Tensor, bias_B11S: Tensor) -> Tensor:
        query_BHTD, key_BHSD, value_BHSD = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x_BTC), *memory_BSF.chunk(2, dim=2))
        )
        heard_BHTD = functional.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, bias_B11S)
        x_BTC = x_BTC + self.out(heard_BHTD.transpose(1, 2).flatten(2))
        y_BTC: Tensor = x_BTC + self.feed(x_BTC)
        return y_BTC


def conv_block(config: PolicyConfig, inputs: int, outputs: int) -> nn.Sequential:
    """Convolution over time, group norm, SiLU; (B, inputs, T) -> (B, outputs, T)."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, config.kernel, padding=config.kernel // 2),
        nn.GroupNorm(config.groups, outputs),
        nn.SiLU(),
    )


def sinusoid(position: Tensor, size: int) -> Tensor:
    """Sines and cosines (..., size) of integer positions (...,), at frequencies from 1 down to 1/100."""
    frequency = 100 ** (-torch.arange(size // 2, device=position.device) / (size // 2 - 1 or 1))
    angle = position.unsqueeze(-1) * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _unit_scale(linear: nn.Linear) -> nn.Linear:
    """Outputs as large as inputs: with torch's default, a third of it, attention stays flat for long."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return linear
