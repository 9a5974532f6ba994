"""A diffusion policy: observations of the last T_o steps -> T_p actions.

Legend: B windows or robots, N samples of all of them, S observed steps (T_o), T action positions (T_p), P
past ones of them, A action dimensions, E token size.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.noise import add_noise, ddim, squared_cosine, strides
from longview.learner.policy import Policy
from longview.learner.windows import Batch
from longview.replay.episode import TaskSpec


class DiffusionPolicy(Policy):
    """Denoises past and future actions jointly, given the tokens of the context.

    A past action is open to the denoiser only if its step lies within the context and the episode. The
    others are zero in its input, in training as in acting: noised, they would still tell of the past.
    """

    config: DiffusionConfig
    signal: Tensor

    def __init__(self, config: DiffusionConfig, spec: TaskSpec) -> None:
        super().__init__(config, spec)
        self.denoiser = config.denoiser(self.horizon, self.action_size)
        self.register_buffer("signal", squared_cosine(config.diffusion_steps), persistent=False)

    @property
    def trunk(self) -> nn.Module:
        return self.denoiser

    def error(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the squared error of what is predicted: (B, T), 0 where there is no target."""
        steps, shape = self.config.diffusion_steps, batch.action_BTA.shape
        noise_BTA = torch.randn(shape, generator=generator, device=self.device)
        step_B = torch.randint(steps, (batch.size,), generator=generator, device=self.device)
        return self.denoising_error(batch, self.batch_tokens(batch, generator), noise_BTA, step_B)

    def denoising_error(self, batch: Batch, token_BSE: Tensor, noise_BTA: Tensor, step_B: Tensor) -> Tensor:
        """Return the squared error by position, (B, T), at one noise level of each window.

        Args:
            batch: windows of one context length.
            token_BSE: their tokens.
            noise_BTA: standard normal.
            step_B: diffusion steps, in 0..diffusion_steps - 1.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        clean_BTA = self.actions(self.tensor(batch.action_BTA))
        noisy_BTA = add_noise(clean_BTA, noise_BTA, step_B, self.signal)
        context = self.denoiser.context(token_BSE, seen_BS)
        predicted_BTA = self.denoiser(noisy_BTA * self.open(seen_BS), step_B, context)
        wanted_BTA = noise_BTA if self.config.prediction == "epsilon" else clean_BTA
        error_BT: Tensor = (predicted_BTA - wanted_BTA).square().mean(dim=2) * target_BT
        return error_BT

    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        executed_BPA: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        rows, candidates = len(token_BSE), self.config.candidates
        shape = (self.horizon.positions, self.action_size)
        action_NTA = self.denoise(token_BSE, seen_BS, rng.standard_normal((rows * candidates, *shape)))
        action_BNTA: NDArray[np.float32] = action_NTA.reshape(rows, candidates, *shape)
        chosen_BTA: NDArray[np.float32] = action_BNTA[
            np.arange(rows), self.closest(action_BNTA, executed_BPA)
        ]
        return chosen_BTA

    def denoise(
        self, token_BSE: Tensor, seen_BS: NDArray[np.bool_], noise_NTA: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Turn noise into actions (N, T, A) in the data's units.

        Args:
            token_BSE, seen_BS: as `sample` takes them.
            noise_NTA: standard normal. The samples of each of the B lie one after the other.
        """
        seen = self.tensor(seen_BS)
        samples = len(noise_NTA) // len(seen)
        steps = strides(self.config.diffusion_steps, self.config.sampling_steps)
        predict = self.denoiser.sampler(self.denoiser.context(token_BSE, seen), steps, samples)
        open_NT1 = self.open(seen).repeat_interleave(samples, dim=0)
        action_NTA = ddim(
            lambda noisy_NTA, index: predict(noisy_NTA * open_NT1, index),
            self.tensor(noise_NTA.astype(np.float32)),
            self.signal,
            steps,
            self.config.prediction,
            (self.actions.low, self.actions.high),
        )
        return self.actions.invert(action_NTA).cpu().numpy()

    def closest(
        self, action_BNTA: NDArray[np.float32], executed_BPA: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Find which of N samples is closest to the past as executed, by normalised squared error: (B,).

        Self-verification of arXiv 2505.09561. Where `executed_BPA` is NaN, it does not count; where nothing
        counts, the first sample is taken.
        """
        distance_BNPA = action_BNTA[:, :, : self.horizon.past] - executed_BPA[:, None]
        error_BNPA = np.square(distance_BNPA / self.actions.scale.cpu().numpy())
        closest_B: NDArray[np.int64] = np.nansum(error_BNPA, axis=(2, 3)).argmin(axis=1)
        return closest_B

    def open(self, seen_BS: Tensor) -> Tensor:
        """Return which positions the denoiser sees, (B, T, 1): past ones as far as they were observed, and
        the future."""
        past, future = self.horizon.past, self.horizon.future
        known_BS = seen_BS[:, :-1][:, max(0, seen_BS.shape[1] - 1 - past) :]
        padding = (past - known_BS.shape[1], 0)
        known_BT = nn.functional.pad(known_BS, padding, value=False)
        return nn.functional.pad(known_BT, (0, future), value=True).unsqueeze(2)
