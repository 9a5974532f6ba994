"""1-D UNet over the action positions. Diffusion Policy, arXiv 2303.04137.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, A action dimensions,
C channels, E token features, Z diffusion steps of a sampler.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longview.learner.policies.diffusion.config import UNetConfig
from longview.learner.policies.diffusion.denoisers.conditioning import Conditioning, Conditions
from longview.learner.policies.diffusion.denoisers.denoiser import Context, Denoiser, Predict


class UNet(Denoiser):
    """UNet with two residual blocks at every level. A block is conditioned between its two convolutions.

    T must be a multiple of 2 ** (levels - 1), because every level after the first halves it.
    """

    def __init__(
        self,
        config: UNetConfig,
        action_size: int,
        layer: Callable[[int], nn.Module],
        conditioning: Callable[[Sequence[int]], Conditioning],
    ) -> None:
        """
        Args:
            config: settings of the convolutions.
            action_size: A.
            layer: makes the conditioning layer of a block with C channels. The layer maps (B, C, T) and the
                block's condition to (B, C, T).
            conditioning: makes the conditioning of blocks with these numbers of channels.
        """
        super().__init__()
        widths, channels = config.widths, config.input_size(action_size)
        self.down = nn.ModuleList()
        for inputs, width in zip((channels, *widths), widths, strict=False):
            last = len(self.down) == len(widths) - 1
            shrink = nn.Identity() if last else nn.Conv1d(width, width, 3, stride=2, padding=1)
            self.down.append(Level(config, inputs, width, layer, shrink))
        self.middle = Level(config, widths[-1], widths[-1], layer, nn.Identity())
        self.up = nn.ModuleList()
        for width, below in zip(widths[-2::-1], widths[:0:-1], strict=True):
            grow = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
            self.up.append(Level(config, 2 * below, width, layer, grow))
        self.out = nn.Sequential(
            conv_block(config, widths[0], widths[0]), nn.Conv1d(widths[0], action_size, 1)
        )
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        self.conditioning = conditioning([block.width for block in blocks])

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return self.conditioning.context(token_BSE, seen_BS)

    def forward(self, noisy_BTC: Tensor, noise_step_B: Tensor, context: Context) -> Tensor:
        return self.predict(noisy_BTC, self.conditioning(noise_step_B, context))

    def schedule(self, noise_step_Z: Tensor) -> Any:
        return self.conditioning.schedule(noise_step_Z)

    def sampler(self, context: Context, schedule: Any, candidates: int = 1) -> Predict:
        conditions = self.conditioning.sampler(context, schedule, candidates)
        return lambda noisy_BTC, index: self.predict(noisy_BTC, conditions(index))

    def predict(self, noisy_BTC: Tensor, conditions: Conditions) -> Tensor:
        """Predict (B, T, A) with the condition of each block."""
        remaining = iter(conditions)
        x_BCT, skips = noisy_BTC.transpose(1, 2), []
        for level in self.down:
            skip_BCT, x_BCT = level(x_BCT, remaining)
            skips.append(skip_BCT)
        _, x_BCT = self.middle(x_BCT, remaining)
        for level in self.up:
            _, x_BCT = level(torch.cat((x_BCT, skips.pop()), dim=1), remaining)
        predicted_BTA: Tensor = self.out(x_BCT).transpose(1, 2)
        return predicted_BTA


class Level(nn.Module):
    """Two residual blocks, then a change of resolution. Returns the outputs before and after the change."""

    def __init__(
        self,
        config: UNetConfig,
        inputs: int,
        width: int,
        layer: Callable[[int], nn.Module],
        resize: nn.Module,
    ) -> None:
        super().__init__()
        self.first = ResidualBlock(config, inputs, width, layer)
        self.second = ResidualBlock(config, width, width, layer)
        self.resize = resize

    def forward(self, x_BCT: Tensor, conditions: Iterator[Any]) -> tuple[Tensor, Tensor]:
        for block in (self.first, self.second):
            x_BCT = block(x_BCT, next(conditions))
        return x_BCT, self.resize(x_BCT)


class ResidualBlock(nn.Module):
    """Residual block: convolution, conditioning, convolution."""

    def __init__(
        self, config: UNetConfig, inputs: int, width: int, layer: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.width = width
        self.first = conv_block(config, inputs, width)
        self.condition = layer(width)
        self.second = conv_block(config, width, width)
        self.skip = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x_BCT: Tensor, condition: Any) -> Tensor:
        y_BCT: Tensor = self.second(self.condition(self.first(x_BCT), condition)) + self.skip(x_BCT)
        return y_BCT


def conv_block(config: UNetConfig, inputs: int, outputs: int) -> nn.Sequential:
    """Make a convolution over positions, group norm and SiLU: (B, inputs, T) -> (B, outputs, T)."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, config.kernel, padding=config.kernel // 2),
        nn.GroupNorm(config.groups, outputs),
        nn.SiLU(),
    )
