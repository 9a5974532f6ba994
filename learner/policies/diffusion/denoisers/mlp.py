"""MLP over all action positions at once, given a summary of the context.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, A action dimensions,
E token features, C channels, Q queries, Z diffusion steps of a sampler, R rows: candidates of all windows.
"""

import torch
from torch import Tensor, nn

from longview.learner.config import Horizon
from longview.learner.policies.diffusion.config import MLPConfig
from longview.learner.policies.diffusion.denoisers.attention import Attend, ContextMemory, unit_scale
from longview.learner.policies.diffusion.denoisers.denoiser import (
    Context,
    Denoiser,
    NoiseStepEmbedding,
    Predict,
)


class MLP(Denoiser):
    """Residual MLP whose input is the whole chunk of noisy actions.

    Queries made from now attend to the context. Now and their answers are the summary, and nothing else
    conditions the MLP. The summary is made once per decision, so that a diffusion step costs the same at
    every context length.
    """

    def __init__(self, config: MLPConfig, horizon: Horizon, action_size: int) -> None:
        super().__init__()
        size, width = config.token_size, config.width
        self.shape = horizon.positions, action_size
        self.memory = ContextMemory(config, [size] * config.looks)
        self.ask = nn.Linear(size, config.queries * size)
        self.looks = nn.ModuleList(Look(size) for _ in range(config.looks))
        self.step = NoiseStepEmbedding(size)
        self.actions = nn.Linear(horizon.positions * config.input_size(action_size), width)
        self.summary = nn.Linear((1 + config.queries) * size, width)
        self.noise_step = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon.positions * action_size))

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        memory_BSE = self.memory.tokens(token_BSE)
        attentions = self.memory.attentions(self.memory.blocks(memory_BSE), seen_BS.log())
        now_BE = memory_BSE[:, -1]
        answer_BQE = self.ask(now_BE).unflatten(1, (-1, now_BE.shape[1]))
        for look, attend in zip(self.looks, attentions, strict=True):
            answer_BQE = look(answer_BQE, attend)
        return Context(torch.cat((now_BE, answer_BQE.flatten(1)), dim=1).unsqueeze(1), seen_BS)

    def forward(self, noisy_BTC: Tensor, noise_step_B: Tensor, context: Context) -> Tensor:
        given_BC = self.summary(context.token_BSE[:, 0]) + self.noise_step(self.step(noise_step_B))
        return self.predict(noisy_BTC, given_BC)

    def schedule(self, noise_step_Z: Tensor) -> Tensor:
        """Return the diffusion steps' part of what is given, (Z, C)."""
        noise_step_ZC: Tensor = self.noise_step(self.step(noise_step_Z))
        return noise_step_ZC

    def sampler(self, context: Context, schedule: Tensor, candidates: int = 1) -> Predict:
        summary_RC = self.summary(context.token_BSE[:, 0]).repeat_interleave(candidates, dim=0)
        return lambda noisy_BTC, index: self.predict(noisy_BTC, summary_RC + schedule[index])

    def predict(self, noisy_BTC: Tensor, given_BC: Tensor) -> Tensor:
        """Predict (B, T, A) with what is given: summary and diffusion step."""
        x_BC = self.actions(noisy_BTC.flatten(1)) + given_BC
        for block in self.blocks:
            x_BC = block(x_BC)
        predicted_BTA: Tensor = self.out(x_BC).unflatten(1, self.shape)
        return predicted_BTA


class Look(nn.Module):
    """Attention of the queries to the context, residual."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(size), unit_scale(nn.Linear(size, size)))
        self.out = nn.Linear(size, size)

    def forward(self, x_BQE: Tensor, attend: Attend) -> Tensor:
        y_BQE: Tensor = x_BQE + self.out(attend(self.query(x_BQE)))
        return y_BQE


class Block(nn.Module):
    """Two layers, residual, normalised at their input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x_BC: Tensor) -> Tensor:
        y_BC: Tensor = x_BC + self.layers(x_BC)
        return y_BC
