"""A diffusion policy: observations of the last T_o steps -> T_p actions.

Legend: B batch, S observed steps (T_o), T action positions (T_p), A action dimensions, F frames, D dimensions
of a frame's state, E token size.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.config import PolicyConfig
from longview.learner.encoder import FrameEncoder
from longview.learner.normalize import Normalizer, Statistics
from longview.learner.policies.diffusion.denoisers import make
from longview.learner.policies.diffusion.noise import add_noise, ddim, squared_cosine, strides
from longview.learner.windows import Batch
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, TaskSpec

FORMAT = "longview-policy-2"


class DiffusionPolicy(nn.Module):
    """Denoises past and future actions jointly, given the frames of the context.

    A past action is open to the denoiser only if its step lies within the context and the episode. The
    others are zero in its input, in training as in acting: noised, they would still tell of the past.
    """

    signal: Tensor

    def __init__(self, config: PolicyConfig, spec: TaskSpec) -> None:
        super().__init__()
        self.config, self.spec, self.horizon = config, spec, config.horizon(spec)
        self.normalization = config.normalization(spec)
        crops = config.crops(spec)
        self.cameras, self.vectors = list(crops), sorted(spec.observation.keys() - crops.keys())
        state_size = sum(math.prod(spec.observation[key].shape) for key in self.vectors)
        action_size = spec.action.shape[0]
        self.states, self.actions = Normalizer(state_size), Normalizer(action_size)
        self.encoder = FrameEncoder(config, state_size, list(crops.values()))
        self.denoiser = make(config, self.horizon, action_size)
        self.register_buffer("signal", squared_cosine(config.diffusion_steps), persistent=False)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Take over the statistics of the data, as `normalize.measure` returns them."""
        kinds = self.normalization
        self.states.fit([(statistics[OBSERVATION_PREFIX + key], kinds[key]) for key in self.vectors])
        self.actions.fit([(statistics[ACTION], kinds[ACTION])])

    def loss(self, batch: Batch, noise_BTA: Tensor, step_B: Tensor, shift_F2: Tensor | None = None) -> Tensor:
        """Squared error of what is predicted, by position: (B, T), 0 where there is no target.

        Args:
            noise_BTA: standard normal.
            step_B: diffusion steps, in 0..diffusion_steps - 1.
            shift_F2: as `tokens` takes it.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        clean_BTA = self.actions(self.tensor(batch.action_BTA))
        noisy_BTA = add_noise(clean_BTA, noise_BTA, step_B, self.signal)
        token_FE = self.tokens(batch.observation, shift_F2)
        token_BSE = functional.embedding(self.tensor(batch.frame_BS), token_FE)
        context = self.denoiser.context(token_BSE, seen_BS)
        predicted_BTA = self.denoiser(noisy_BTA * self.open(seen_BS), step_B, context)
        wanted_BTA = noise_BTA if self.config.prediction == "epsilon" else clean_BTA
        error_BT: Tensor = (predicted_BTA - wanted_BTA).square().mean(dim=2) * target_BT
        return error_BT

    def sample(
        self, token_BSE: Tensor, seen_BS: NDArray[np.bool_], noise_NTA: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Actions (N, T_p, A) in the data's units: past ones, oldest first, then those from now on.

        Args:
            token_BSE: of the observed steps, oldest first, the last one is now.
            seen_BS: where there is an observation.
            noise_NTA: standard normal; the actions are a function of it. As many samples for each of the B,
                one after the other.
        """
        seen = self.tensor(seen_BS)
        samples = len(noise_NTA) // len(seen)
        steps = strides(self.config.diffusion_steps, self.config.sampling_steps)
        denoise = self.denoiser.sampler(self.denoiser.context(token_BSE, seen), steps, samples)
        open_NT1 = self.open(seen).repeat_interleave(samples, dim=0)

        def predict(noisy_NTA: Tensor, index: int) -> Tensor:
            return denoise(noisy_NTA * open_NT1, index)

        noise = self.tensor(noise_NTA.astype(np.float32))
        bounds = (self.actions.low, self.actions.high)
        action_NTA = ddim(predict, noise, self.signal, steps, self.config.prediction, bounds)
        return self.actions.invert(action_NTA).cpu().numpy()

    def closest(
        self, action_BNTA: NDArray[np.float32], executed_BPA: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Which of N samples comes closest to the past as it was, by mean squared error, normalised: (B,).

        Self-verification of arXiv 2505.09561.

        Args:
            executed_BPA: the past actions; where they are NaN, they do not count. Without any, the first
                sample is taken.
        """
        distance_BNPA = action_BNTA[:, :, : self.horizon.past] - executed_BPA[:, None]
        error_BNPA = np.square(distance_BNPA / self.actions.scale.cpu().numpy())
        closest_B: NDArray[np.int64] = np.nansum(error_BNPA, axis=(2, 3)).argmin(axis=1)
        return closest_B

    def tokens(self, observation: Mapping[str, NDArray[Any]], shift_F2: Tensor | None = None) -> Tensor:
        """Tokens (F, E) of frames (F, ...) by key.

        Args:
            shift_F2: where each frame's crop lies, in [0, 1), as `encoder.crop` takes it; None: the centre.
        """
        state_FD = self.normal_states(observation)
        images = [self.tensor(observation[key]) for key in self.cameras]
        if shift_F2 is None:
            shift_F2 = state_FD.new_full((len(state_FD), 2), 0.5)
        token_FE: Tensor = self.encoder(state_FD, images, shift_F2)
        return token_FE

    def open(self, seen_BS: Tensor) -> Tensor:
        """Which positions the denoiser may look at: past ones as far as they were seen, and the future."""
        past, future = self.horizon.past, self.horizon.future
        known_BS = seen_BS[:, :-1][:, max(0, seen_BS.shape[1] - 1 - past) :]
        padding = (past - known_BS.shape[1], 0)
        known_BT = nn.functional.pad(known_BS, padding, value=False)
        return nn.functional.pad(known_BT, (0, future), value=True).unsqueeze(2)

    def normal_states(self, observation: Mapping[str, NDArray[Any]]) -> Tensor:
        """What frames (F, ...) by key hold besides images, normalised, in the order of the keys: (F, D)."""
        frames = len(next(iter(observation.values())))
        states = [self.tensor(observation[key]).float().reshape(frames, -1) for key in self.vectors]
        normal_FD: Tensor = self.states(torch.cat([self.signal.new_empty(frames, 0), *states], dim=1))
        return normal_FD

    def out_of_range(self, batch: Batch) -> float:
        """Share of the observed values that lie outside of what was measured, images left out."""
        values = self.normal_states(batch.observation)
        return float(self.states.out_of_range(values)) / max(1, values.numel())

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """On the policy's device."""
        return torch.from_numpy(array).to(self.signal.device)


def mean_loss(error_BT: Tensor, target_BT: Tensor) -> Tensor:
    """Mean over each window's targets, then over windows."""
    return (error_BT.sum(dim=1) / target_BT.sum(dim=1)).mean()


def policy_to_bytes(policy: DiffusionPolicy) -> bytes:
    """Weights, statistics, config and task, as safetensors with JSON metadata."""
    about = {"policy": asdict(policy.config), "task": policy.spec.to_dict()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in policy.state_dict().items()}
    return save(tensors, metadata={FORMAT: json.dumps(about)})


def policy_from_bytes(data: bytes, device: str | torch.device = "cpu") -> DiffusionPolicy:
    """Inverse of `policy_to_bytes`; the policy is in evaluation mode.

    Raises:
        ValueError: these are not the bytes of a policy, or they are damaged, or config, task or weights do
            not fit this version of the program or each other.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][FORMAT])
        tensors = load(data)
    except (ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"not a policy of format {FORMAT} ({len(data)} bytes): {error!r}") from error
    try:
        config = PolicyConfig(**{**about["policy"], "widths": tuple(about["policy"]["widths"])})
        policy = DiffusionPolicy(config, TaskSpec.from_dict(about["task"]))
        policy.load_state_dict(tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"a policy that does not fit this version of the program: {error}") from error
    return policy.eval().to(device)
