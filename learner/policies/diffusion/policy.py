"""Diffusion policy: T_p actions from the observations of the last T_o steps.

Legend (docs/notation.md): B windows or robots, N candidates of each, R rows: candidates of all robots,
S observed steps (T_o), T action positions (T_p), A action dimensions, C channels of the denoiser's input,
E token features, F frames, D dimensions of the state.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.denoisers.denoiser import Context
from longview.learner.policies.diffusion.history import GatedMemory, joined, keyframes, strided
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


class Known(NamedTuple):
    """Actions that the denoiser is given without noise."""

    clean_RTA: Tensor
    """Normalised actions. Only those at the marked positions are used."""
    mark_RT1: Tensor
    """Mask of the positions whose actions are known."""


class DiffusionPolicy(Policy):
    """Policy that denoises past and future actions together, given the tokens of the context.

    The denoiser sees a past action only if its step lies within the context and the episode. All other past
    actions are zero in its input, in training and in acting. With noise added, they would still reveal the
    past.

    With `max_delay`, the first actions from now on may be known, because a robot executes them while it waits
    for the decision. They enter the denoiser without noise, with a mark. Past actions are denoised as ever.
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
        """Return the squared error of the prediction at each position: (B, T), 0 where there is no target.

        With `max_delay`, each window of a training knows its first 0 to `max_delay` actions from now on. They
        are no targets: training-time conditioning of arXiv 2512.05964.
        """
        diffusion_steps, shape = self.config.diffusion_steps, batch.action_BTA.shape
        noise_BTA = torch.randn(shape, generator=generator, device=self.device)
        noise_step_B = torch.randint(diffusion_steps, (batch.size,), generator=generator, device=self.device)
        delay_B = None
        if self.config.max_delay:
            longest = self.config.max_delay if self.training else 0
            delay_B = torch.randint(longest + 1, (batch.size,), generator=generator, device=self.device)
        token_BSE = self.batch_tokens(batch, generator)
        return self.denoising_error(batch, token_BSE, noise_BTA, noise_step_B, delay_B)

    def denoising_error(
        self,
        batch: Batch[Any],
        token_BSE: Tensor,
        noise_BTA: Tensor,
        noise_step_B: Tensor,
        delay_B: Tensor | None = None,
    ) -> Tensor:
        """Return the squared error at each position, (B, T), at one diffusion step of each window.

        Args:
            batch: windows of one context length.
            token_BSE: tokens of the windows.
            noise_BTA: standard normal noise.
            noise_step_B: diffusion steps, in 0..diffusion_steps - 1.
            delay_B: number of known actions from now on; None without `max_delay`.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        clean_BTA = self.actions(self.tensor(batch.action_BTA))
        known = None
        if delay_B is not None:
            known = Known(clean_BTA, self.ahead(delay_B))
            target_BT = target_BT & ~known.mark_RT1.squeeze(2)
        noisy_BTA = add_noise(clean_BTA, noise_BTA, noise_step_B, self.signal)
        context = self.context(token_BSE, seen_BS)
        predicted_BTA = self.denoiser(shown(noisy_BTA, self.open(seen_BS), known), noise_step_B, context)
        wanted_BTA = noise_BTA if self.config.prediction == "epsilon" else clean_BTA
        error_BT: Tensor = (predicted_BTA - wanted_BTA).square().mean(dim=2) * target_BT
        return error_BT

    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        return self.sampler()(token_BSE, seen_BS, known_BTA, rngs)

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
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        """Choose actions as `sample` does, with the constants given."""
        shape = (self.config.candidates, self.horizon.positions, self.action_size)
        noise_RTA = np.concatenate([rng.standard_normal(shape) for rng in rngs])
        action_RTA = self.denoise(sampling, token_BSE, seen_BS, noise_RTA, known_BTA)
        action_BNTA: NDArray[np.float32] = action_RTA.reshape(len(rngs), *shape)
        chosen_BTA: NDArray[np.float32] = action_BNTA[
            np.arange(len(rngs)), closest(action_BNTA, known_BTA, sampling.scale_A)
        ]
        return chosen_BTA

    def denoise(
        self,
        sampling: Sampling,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        noise_RTA: NDArray[Any],
        known_BTA: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Turn noise into actions (R, T, A) in the data's units.

        Args:
            sampling: constants of sampling.
            token_BSE, seen_BS: tokens and mask, as in `sample`.
            noise_RTA: standard normal noise. The candidates of one robot are consecutive: R = B * N.
            known_BTA: known actions, as in `sample`; None: none are decided already.
        """
        seen = self.tensor(seen_BS)
        candidates = len(noise_RTA) // len(seen)
        context = self.context(token_BSE, seen)
        predict = self.denoiser.sampler(context, sampling.schedule, candidates)
        open_RT1 = self.open(seen).repeat_interleave(candidates, dim=0)
        decided_RTA, known = np.full(noise_RTA.shape, np.nan, np.float32), None
        if self.config.max_delay:
            if known_BTA is not None:
                ahead = slice(self.horizon.past, known_BTA.shape[1])
                decided_RTA[:, ahead] = known_BTA[:, ahead].repeat(candidates, axis=0)
            clean_RTA = self.actions(self.tensor(np.nan_to_num(decided_RTA)))
            known = Known(clean_RTA, self.tensor(~np.isnan(decided_RTA[..., :1])))
        action_RTA = ddim(
            lambda noisy_RTA, index: predict(shown(noisy_RTA, open_RT1, known), index),
            self.tensor(noise_RTA.astype(np.float32)),
            sampling.powers,
            self.config.prediction,
            (self.actions.low, self.actions.high),
        )
        chosen_RTA: NDArray[np.float32] = self.actions.invert(action_RTA).cpu().numpy()
        return np.where(np.isnan(decided_RTA), chosen_RTA, decided_RTA)

    def ahead(self, count_B: Tensor) -> Tensor:
        """Return the mask of the first `count_B` positions from now on, (B, T, 1)."""
        ahead_T = torch.arange(self.horizon.positions, device=self.device) - self.horizon.past
        return ((ahead_T >= 0) & (ahead_T < count_B.unsqueeze(1))).unsqueeze(2)

    def context(self, token_BSE: Tensor, seen_BS: Tensor) -> Context:
        """Compute what the denoiser uses of the tokens of a context."""
        config = self.config
        if config.recent_encoder:
            token_BSE = joined(token_BSE)
        token_BSE, seen_BS = strided(token_BSE, seen_BS, config.frame_stride)
        if config.keyframes:
            seen_BS = keyframes(token_BSE, seen_BS, config.keyframes)
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


def shown(noisy_RTA: Tensor, open_RT1: Tensor, known: Known | None) -> Tensor:
    """Return the denoiser's input (R, T, C).

    Args:
        noisy_RTA: noisy actions.
        open_RT1: mask of the positions that the denoiser sees, as `DiffusionPolicy.open` returns it.
        known: actions to show without noise, and marked; None without `max_delay`.
    """
    open_RTA = noisy_RTA * open_RT1
    if known is None:
        return open_RTA
    mark_RT1 = known.mark_RT1
    return torch.cat((torch.where(mark_RT1, known.clean_RTA, open_RTA), mark_RT1.to(open_RTA.dtype)), dim=2)


def closest(
    action_BNTA: NDArray[np.float32], known_BTA: NDArray[np.float32], scale_A: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Find each robot's candidate whose past actions are closest to the executed ones: (B,).

    This is the self-verification of arXiv 2505.09561, by normalised squared error. Actions that are NaN in
    `known_BTA` do not count. If no action counts, the first candidate is closest.

    Args:
        action_BNTA: candidates, past actions first.
        known_BTA: past actions as executed, and those that are decided already, which all candidates share.
        scale_A: scale of normalised actions.
    """
    distance_BNTA = action_BNTA[:, :, : known_BTA.shape[1]] - known_BTA[:, None]
    error_BNTA = np.square(distance_BNTA / scale_A)
    closest_B: NDArray[np.int64] = np.nansum(error_BNTA, axis=(2, 3)).argmin(axis=1)
    return closest_B
