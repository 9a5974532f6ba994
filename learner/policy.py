"""A diffusion policy: observations of the last T_o steps -> T_p actions.

Legend: B batch, S observed steps (T_o), T action positions (T_p), A action dimensions, D frame dimensions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from learner.config import PolicyConfig
from learner.denoisers.unet import Context, UNet
from learner.encoder import FrameEncoder
from learner.noise import add_noise, ddim, squared_cosine
from learner.normalize import Normalizer, Range, join, out_of_range
from learner.windows import Batch
from replay.episode import ACTION, OBSERVATION_PREFIX, TaskSpec

FORMAT = "longview-policy-1"


class DiffusionPolicy(nn.Module):
    """Denoises past and future actions jointly, given the frames of the context.

    A past action is open to the denoiser only if its step lies within the context and the episode. The
    others are zero in its input, in training as in acting: noised, they would still tell of the past.
    """

    signal: Tensor

    def __init__(self, config: PolicyConfig, spec: TaskSpec) -> None:
        super().__init__()
        self.config, self.spec, self.horizon = config, spec, config.horizon(spec)
        self.keys = sorted(spec.observation)
        frame_size = sum(int(np.prod(spec.observation[key].shape)) for key in self.keys)
        action_size = spec.action.shape[0]
        self.frames, self.actions = Normalizer(frame_size), Normalizer(action_size)
        self.encoder = FrameEncoder(frame_size, config.token_size)
        self.denoiser = UNet(config, action_size)
        self.register_buffer("signal", squared_cosine(config.diffusion_steps), persistent=False)

    def fit(self, ranges: Mapping[str, Range]) -> None:
        """Take over the ranges of the data, as `normalize.measure` returns them."""
        self.frames.fit(join(ranges, (OBSERVATION_PREFIX + key for key in self.keys)))
        self.actions.fit(ranges[ACTION])

    def loss(self, batch: Batch, noise_BTA: Tensor, step_B: Tensor) -> Tensor:
        """Squared error of the predicted noise, (B,): the mean over each sample's target positions.

        Args:
            noise_BTA: standard normal.
            step_B: diffusion steps, in 0..diffusion_steps - 1.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        clean_BTA = self.actions(self.tensor(batch.action_BTA))
        noisy_BTA = add_noise(clean_BTA, noise_BTA, step_B, self.signal)
        context = self.context(batch.observation, seen_BS)
        predicted_BTA = self.denoiser(noisy_BTA * self.open(seen_BS), step_B, context)
        error_BT: Tensor = (predicted_BTA - noise_BTA).square().mean(dim=2) * target_BT
        return error_BT.sum(dim=1) / target_BT.sum(dim=1)

    def sample(
        self, observation: Mapping[str, NDArray[Any]], seen_BS: NDArray[np.bool_], noise_BTA: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Actions (B, T_p, A) in the data's units: past ones, oldest first, then those from now on.

        Args:
            observation: (B, S, ...) by key, oldest first, the last row is now.
            seen_BS: where there is an observation.
            noise_BTA: standard normal; the actions are a function of it.
        """
        seen = self.tensor(seen_BS)
        context, open_BT1 = self.context(observation, seen), self.open(seen)

        def predict(noisy_BTA: Tensor, step: int) -> Tensor:
            step_B = torch.full((len(noisy_BTA),), step, device=noisy_BTA.device)
            predicted_BTA: Tensor = self.denoiser(noisy_BTA * open_BT1, step_B, context)
            return predicted_BTA

        noise = self.tensor(noise_BTA.astype(np.float32))
        action_BTA = ddim(predict, noise, self.signal, self.config.sampling_steps)
        return self.actions.invert(action_BTA).cpu().numpy()

    def context(self, observation: Mapping[str, NDArray[Any]], seen_BS: Tensor) -> Context:
        """What the denoiser attends to, from observations (B, S, ...) by key."""
        return self.denoiser.context(self.encoder(self.normal_frames(observation)), seen_BS)

    def open(self, seen_BS: Tensor) -> Tensor:
        """Which positions the denoiser may look at: past ones as far as they were seen, and the future."""
        past, future = self.horizon.past, self.horizon.future
        known_BS = seen_BS[:, :-1][:, max(0, seen_BS.shape[1] - 1 - past) :]
        padding = (past - known_BS.shape[1], 0)
        known_BT = nn.functional.pad(known_BS, padding, value=False)
        return nn.functional.pad(known_BT, (0, future), value=True).unsqueeze(2)

    def normal_frames(self, observation: Mapping[str, NDArray[Any]]) -> Tensor:
        """Observations concatenated in the order of `keys` and normalised: (B, S, D)."""
        frames = torch.cat([self.tensor(observation[key]).flatten(2) for key in self.keys], dim=2)
        normal: Tensor = self.frames(frames)
        return normal

    def out_of_range(self, batch: Batch) -> float:
        """Share of the observed values that lie outside of the ranges taken over in `fit`."""
        values = self.normal_frames(batch.observation)[self.tensor(batch.seen_BS)]
        return float(out_of_range(values)) / values.numel()

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """On the policy's device."""
        return torch.from_numpy(array).to(self.signal.device)


def policy_to_bytes(policy: DiffusionPolicy) -> bytes:
    """Weights, ranges, config and task, as safetensors with JSON metadata."""
    about = {"policy": asdict(policy.config), "task": policy.spec.to_dict()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in policy.state_dict().items()}
    return save(tensors, metadata={FORMAT: json.dumps(about)})


def policy_from_bytes(data: bytes, device: str | torch.device = "cpu") -> DiffusionPolicy:
    """Inverse of `policy_to_bytes`; the policy is in evaluation mode.

    Raises:
        ValueError: these are not the bytes of a policy, or they are damaged.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][FORMAT])
        tensors = load(data)
    except (ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"not a policy of format {FORMAT} ({len(data)} bytes): {error!r}") from error
    config = PolicyConfig(**{**about["policy"], "widths": tuple(about["policy"]["widths"])})
    policy = DiffusionPolicy(config, TaskSpec.from_dict(about["task"]))
    policy.load_state_dict(tensors)
    return policy.eval().to(device)
