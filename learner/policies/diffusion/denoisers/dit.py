"""Diffusion transformer over the action positions.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, A action dimensions,
C channels of the input, E token features, Z diffusion steps of a sampler, L outputs for all blocks.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from longview.learner.config import Horizon
from longview.learner.policies.diffusion.config import DiTConfig
from longview.learner.policies.diffusion.denoisers.attention import Attend, ContextMemory, attend, unit_scale
from longview.learner.policies.diffusion.denoisers.denoiser import (
    Context,
    Denoiser,
    NoiseStepEmbedding,
    Predict,
    sinusoid,
)


class DiT(Denoiser):
    """Transformer whose tokens are actions. They attend to each other and to the context.

    The diffusion step modulates every block: adaLN-zero of Peebles & Xie, arXiv 2212.09748, with
    cross-attention. Untrained blocks are the identity. Actions are placed by their time from now, like the
    observed steps.
    """

    place_TE: Tensor
    """Code of each action position."""

    def __init__(self, config: DiTConfig, horizon: Horizon, action_size: int) -> None:
        super().__init__()
        size, depth = config.token_size, config.depth
        self.size = size
        self.actions = nn.Linear(config.input_size(action_size), size)
        self.blocks = nn.ModuleList(Block(size, config.heads, config.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(size, elementwise_affine=False)
        self.out = nn.Linear(size, action_size)
        self.memory = ContextMemory(config, [size] * depth)
        self.step = nn.Sequential(NoiseStepEmbedding(size), nn.SiLU())
        self.modulation = nn.Linear(size, (9 * depth + 2) * size)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        age_T = horizon.past - torch.arange(horizon.positions)
        self.register_buffer("place_TE", sinusoid(age_T, size), persistent=False)

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        return Context(self.memory.tokens(token_BSE), seen_BS)

    def forward(self, noisy_BTC: Tensor, noise_step_B: Tensor, context: Context) -> Tensor:
        attentions = self.memory.attentions(self.memory.blocks(context.token_BSE), context.seen_BS.log())
        return self.predict(noisy_BTC, self.modulations(noise_step_B), attentions)

    def schedule(self, noise_step_Z: Tensor) -> list[Sequence[Tensor]]:
        return [self.modulations(noise_step_1) for noise_step_1 in torch.split(noise_step_Z, 1)]

    def sampler(self, context: Context, schedule: Sequence[Sequence[Tensor]], candidates: int = 1) -> Predict:
        cached = self.memory.cache(context.token_BSE)
        attentions = self.memory.cached_attentions(cached, context.seen_BS.log())
        return lambda noisy_BTC, index: self.predict(noisy_BTC, schedule[index], attentions)

    def modulations(self, noise_step_B: Tensor) -> Sequence[Tensor]:
        """Compute shift, scale and gate (B, 1, E) of all layers, then shift and scale of the output."""
        all_B1L: Tensor = self.modulation(self.step(noise_step_B)).unsqueeze(1)
        return all_B1L.chunk(all_B1L.shape[2] // self.size, dim=2)

    def predict(
        self, noisy_BTC: Tensor, modulations: Sequence[Tensor], attentions: Sequence[Attend]
    ) -> Tensor:
        """Predict (B, T, A) with the modulations and each block's attention to the context."""
        x_BTE = self.actions(noisy_BTC) + self.place_TE
        for index, block in enumerate(self.blocks):
            x_BTE = block(x_BTE, modulations[9 * index : 9 * index + 9], attentions[index])
        shift_B1E, scale_B1E = modulations[-2:]
        predicted_BTA: Tensor = self.out(self.norm(x_BTE) * (1 + scale_B1E) + shift_B1E)
        return predicted_BTA


class Block(nn.Module):
    """Self-attention of the actions, attention to the context, feed-forward; all modulated and residual."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(size, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.actions = unit_scale(nn.Linear(size, 3 * size))
        self.mixed = nn.Linear(size, size)
        self.query = unit_scale(nn.Linear(size, size))
        self.heard = nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x_BTE: Tensor, modulations: Sequence[Tensor], attend_context: Attend) -> Tensor:
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            self.attend_to_actions,
            partial(self.attend_to_context, attend_context),
            self.feed,
        )
        for index, layer in enumerate(layers):
            shift_B1E, scale_B1E, gate_B1E = modulations[3 * index : 3 * index + 3]
            y_BTE = layer(self.norm(x_BTE) * (1 + scale_B1E) + shift_B1E)
            x_BTE = x_BTE + gate_B1E * self.dropout(y_BTE)
        return x_BTE

    def attend_to_actions(self, x_BTE: Tensor) -> Tensor:
        """Attend from each action to all actions."""
        query_BTE, key_BTE, value_BTE = self.actions(x_BTE).chunk(3, dim=2)
        output_BTE: Tensor = self.mixed(attend(query_BTE, key_BTE, value_BTE, self.heads))
        return output_BTE

    def attend_to_context(self, attend_context: Attend, x_BTE: Tensor) -> Tensor:
        """Attend from each action to the context."""
        output_BTE: Tensor = self.heard(attend_context(self.query(x_BTE)))
        return output_BTE
