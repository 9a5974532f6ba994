"""Diffusion policy: T_p actions from the observations of the last T_o steps.

Legend (docs/notation.md): B windows or robots, N candidates of each, R rows: candidates of all robots,
S observed steps (T_o), T action positions (T_p), P past positions, A action dimensions, E token features,
F frames, D dimensions of the state.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.denoisers.denoiser import Context
from longview.learner.policies.diffusion.history import GatedMemory, joined, strided
from longview.learner.policies.diffusion.noise import add_noise, ddim, squared_cosine, strides
from longview.learner.policy import Policy, Sample
from longview.learner.windows import Batch
from longview.replay.episode import TaskSpec


@dataclass(frozen=True)
class Sampling:
    """Constants of sampling, which change with the weights alone."""

    powers: Sequence[float]
    """Share of signal power at each diffusion step of the sampler."""
    schedule: Any
    """Denoiser's part: `Denoiser.schedule`."""
    scale_A: NDArray[np.float32]
    """Scale of the normalised actions."""


class DiffusionPolicy(Policy):
    """Policy that denoises past and future actions together, given the tokens of the context.

    The denoiser sees a past action only if its step lies within the context and the episode. All other past
    actions are zero in its input, in training and in acting. With noise added, they would still reveal the
    past.
    """

    config: DiffusionConfig
    signal: Tensor
    """Share of signal power after each diffusion step."""

    def __init__(self, config: DiffusionConfig, spec: TaskSpec) -> None:
        super().__init__(config, spec)
        given = replace(self.horizon, context=config.given(self.horizon.context))
        self.denoiser = config.denoiser(given, self.action_size)
        if config.memory_tokens:
            self.memory = GatedMemory(config.memory_tokens, config.token_size)
        if config.recent_encoder:
            self.recent = deepcopy(self.encoder)
        self.register_buffer("signal", squared_cosine(config.diffusion_steps), persistent=False)

    @property
    def token_size(self) -> int:
        return self.config.token_size * (2 if self.config.recent_encoder else 1)

    def encode(self, state_FD: Tensor, images: Sequence[Tensor], shift_F2: Tensor) -> Tensor:
        token_FE = super().encode(state_FD, images, shift_F2)
        if not self.config.recent_encoder:
            return token_FE
        return torch.cat((token_FE, self.recent(state_FD, images, shift_F2)), dim=1)

    def attended(self, frames: int) -> NDArray[np.int64]:
        ages = super().attended(frames)
        return ages[:0] if self.config.memory_tokens else ages[ages % self.config.frame_stride == 0]

    def compile_loss(self, **options: Any) -> None:
        self.denoising_error = torch.compile(self.denoising_error, **options)  # type: ignore[method-assign]

    def error(self, batch: Batch[Any], generator: torch.Generator) -> Tensor:
        """Return the squared error of the prediction at each position: (B, T), 0 where there is no target."""
        diffusion_steps, shape = self.config.diffusion_steps, batch.action_BTA.shape
        noise_BTA = torch.randn(shape, generator=generator, device=self.device)
        noise_step_B = torch.randint(diffusion_steps, (batch.size,), generator=generator, device=self.device)
        return self.denoising_error(batch, self.batch_tokens(batch, generator), noise_BTA, noise_step_B)

    def denoising_error(
        self, batch: Batch[Any], token_BSE: Tensor, noise_BTA: Tensor, noise_step_B: Tensor
    ) -> Tensor:
        """Return the squared error at each position, (B, T), at one diffusion step of each window.

        Args:
            batch: windows of one context length.
            token_BSE: tokens of the windows.
            noise_BTA: standard normal noise.
            noise_step_B: diffusion steps, in 0..diffusion_steps - 1.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        clean_BTA = self.actions(self.tensor(batch.action_BTA))
        noisy_BTA = add_noise(clean_BTA, noise_BTA, noise_step_B, self.signal)
        context = self.context(token_BSE, seen_BS)
        predicted_BTA = self.denoiser(noisy_BTA * self.open(seen_BS), noise_step_B, context)
        wanted_BTA = noise_BTA if self.config.prediction == "epsilon" else clean_BTA
        error_BT: Tensor = (predicted_BTA - wanted_BTA).square().mean(dim=2) * target_BT
        return error_BT

    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        executed_BPA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        return self.sampler()(token_BSE, seen_BS, executed_BPA, rngs)

    def sampler(self) -> Sample:
        return partial(self._choose, self.sampling())

    def sampling(self) -> Sampling:
        """Compute the constants of sampling from the weights."""
        config = self.config
        noise_steps = strides(config.diffusion_steps, config.sampling_steps, config.prediction)
        powers = squared_cosine(config.diffusion_steps)[noise_steps].tolist()
        with torch.no_grad():
            schedule = self.denoiser.schedule(torch.tensor(noise_steps, device=self.device))
        return Sampling(powers, schedule, self.actions.scale.cpu().numpy())

    def _choose(
        self,
        sampling: Sampling,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        executed_BPA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        """Choose actions as `sample` does, with the constants given."""
        shape = (self.config.candidates, self.horizon.positions, self.action_size)
        noise_RTA = np.concatenate([rng.standard_normal(shape) for rng in rngs])
        action_RTA = self.denoise(sampling, token_BSE, seen_BS, noise_RTA)
        action_BNTA: NDArray[np.float32] = action_RTA.reshape(len(rngs), *shape)
        chosen_BTA: NDArray[np.float32] = action_BNTA[
            np.arange(len(rngs)), closest(action_BNTA, executed_BPA, sampling.scale_A)
        ]
        return chosen_BTA

    def denoise(
        self, sampling: Sampling, token_BSE: Tensor, seen_BS: NDArray[np.bool_], noise_RTA: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Turn noise into actions (R, T, A) in the data's units.

        Args:
            sampling: constants of sampling.
            token_BSE, seen_BS: tokens and mask, as in `sample`.
            noise_RTA: standard normal noise. The candidates of one robot are consecutive: R = B * N.
        """
        seen = self.tensor(seen_BS)
        candidates = len(noise_RTA) // len(seen)
        context = self.context(token_BSE, seen)
        predict = self.denoiser.sampler(context, sampling.schedule, candidates)
        open_RT1 = self.open(seen).repeat_interleave(candidates, dim=0)
        action_RTA = ddim(
            lambda noisy_RTA, index: predict(noisy_RTA * open_RT1, index),
            self.tensor(noise_RTA.astype(np.float32)),
            sampling.powers,
            self.config.prediction,
            (self.actions.low, self.actions.high),
        )
        return self.actions.invert(action_RTA).cpu().numpy()

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """Compute what the denoiser uses of the tokens of a context."""
        config = self.config
        if config.recent_encoder:
            token_BSE = joined(token_BSE)
        token_BSE, seen_BS = strided(token_BSE, seen_BS, config.frame_stride)
        if config.memory_tokens:
            token_BSE, seen_BS = self.memory(token_BSE, seen_BS)
        return self.denoiser.context(token_BSE, seen_BS)

    def open(self, seen_BS: Tensor) -> Tensor:
        """Return the mask of the positions that the denoiser sees, (B, T, 1).

        It sees the past positions whose steps were observed, and all future positions.
        """
        past, future = self.horizon.past, self.horizon.future
        known_BS = seen_BS[:, :-1][:, max(0, seen_BS.shape[1] - 1 - past) :]
        padding = (past - known_BS.shape[1], 0)
        known_BT = nn.functional.pad(known_BS, padding, value=False)
        return nn.functional.pad(known_BT, (0, future), value=True).unsqueeze(2)


def closest(
    action_BNTA: NDArray[np.float32], executed_BPA: NDArray[np.float32], scale_A: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Find each robot's candidate whose past actions are closest to the executed ones: (B,).

    This is the self-verification of arXiv 2505.09561, by normalised squared error. Actions that are NaN in
    `executed_BPA` do not count. If no action counts, the first candidate is closest.

    Args:
        action_BNTA: candidates, past actions first.
        executed_BPA: past actions as executed.
        scale_A: scale of normalised actions.
    """
    distance_BNPA = action_BNTA[:, :, : executed_BPA.shape[1]] - executed_BPA[:, None]
    error_BNPA = np.square(distance_BNPA / scale_A)
    closest_B: NDArray[np.int64] = np.nansum(error_BNPA, axis=(2, 3)).argmin(axis=1)
    return closest_B
