"""Contract of every kind of policy, and policies as bytes.

Legend (docs/notation.md): B windows or robots, S observed steps (T_o), T action positions (T_p), A action
dimensions, F frames, G segments, D dimensions of a frame's state, E token features, U units of a recurrent
state.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.config import PolicyConfig, policy_class, policy_config
from longview.learner.encoder import FrameEncoder
from longview.learner.files import policy_file
from longview.learner.normalize import Normalizer, Statistics
from longview.learner.tensors import file_parts
from longview.learner.transfer import sent
from longview.learner.windows import Batch
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, TaskSpec

FORMAT = "longview-policy-3"
"""Format that is written."""
OLD_FORMAT = "longview-policy-2"
"""Format of version 0.1, which can still be read. A config in it has the fields of every architecture."""
MARGIN = 0.1
"""Share of the measured range of actions by which a policy may leave it on each side, where its task has no
limits."""


Sample = Callable[
    [Tensor, NDArray[np.bool_], NDArray[np.float32], Sequence[np.random.Generator]], NDArray[np.float32]
]
"""Function that chooses actions, with the arguments and the result of `Policy.sample`."""


class Policy(nn.Module, ABC):
    """Policy that predicts actions from the frames of the last T_o steps.

    Every kind of policy encodes a frame as a token, and normalises states and actions, in the same way. A
    subclass turns tokens into actions. Training, validation, checkpoints and sessions use only the methods of
    this class.
    """

    def __init__(self, config: PolicyConfig, spec: TaskSpec) -> None:
        super().__init__()
        self.config, self.spec, self.horizon = config, spec, config.horizon(spec)
        self.normalization = config.normalization(spec)
        crops = config.crops(spec)
        self.cameras, self.vectors = list(crops), sorted(spec.observation.keys() - crops.keys())
        state_size = sum(math.prod(spec.observation[key].shape) for key in self.vectors)
        self.action_size = spec.action.shape[0]
        self.states, self.actions = Normalizer(state_size), Normalizer(self.action_size)
        self.encoder = FrameEncoder(config, state_size, list(crops.values()))

    @abstractmethod
    def error(self, batch: Batch[Any], generator: torch.Generator) -> Tensor:
        """Return the prediction's error at each position: (B, T), 0 where there is no target.

        Args:
            batch: windows of one context length, as arrays or on the policy's device.
            generator: source of all randomness except dropout, on the policy's device.
        """

    @abstractmethod
    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        """Choose actions (B, T, A) in the data's units: past actions, oldest first, then actions from now on.

        Args:
            token_BSE: tokens of the observed steps, oldest first; the last step is now.
            seen_BS: mask of the steps that the episode has. Now is always seen.
            known_BTA: known actions of the first positions: past actions as executed, then up to
                `horizon.max_delay` actions from now on that are decided already. NaN where they are unknown.
                What is decided is returned as it is.
            rngs: B sources of randomness. A row's actions are a function of its own one and the row's other
                arguments, whatever rows are beside it.
        """

    def sampler(self) -> Sample:
        """Return `sample` with all that depends on the weights alone computed already.

        A session calls this once it loads the policy, so that no decision computes it. It is valid until the
        weights change.
        """
        return self.sample

    def attended(self, frames: int) -> NDArray[np.int64]:
        """Return the ages, in steps, of the frames whose tokens the network is given singly, oldest first.

        Args:
            frames: number of frames in the context.
        """
        return np.arange(frames)[::-1]

    def compile_loss(self, **options: Any) -> None:
        """Compile what `error` computes from the tokens, where `learner.compile` is on.

        Args:
            options: options of `torch.compile`.
        """

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.actions.centre.device

    @property
    def token_size(self) -> int:
        """Number of features of a token that `tokens` returns, E."""
        return self.config.token_size

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Set the normalisation from the statistics that `normalize.measure` returns."""
        kinds = self.normalization
        self.states.fit([(statistics[OBSERVATION_PREFIX + key], kinds[key]) for key in self.vectors])
        self.actions.fit([(statistics[ACTION], kinds[ACTION])])

    def tokens(
        self, observation: Mapping[str, NDArray[Any] | Tensor], shift_F2: Tensor | None = None
    ) -> Tensor:
        """Encode frames (F, ...) by key as tokens (F, E).

        Args:
            observation: frames by key.
            shift_F2: place of each frame's crop in [0, 1), as in `encoder.crop`; None: the centre.
        """
        state_FD = self.normal_states(observation)
        images = [self.tensor(observation[key]) for key in self.cameras]
        if shift_F2 is None:
            shift_F2 = state_FD.new_full((len(state_FD), 2), 0.5)
        return self.encode(state_FD, images, shift_F2)

    def encode(self, state_FD: Tensor, images: Sequence[Tensor], shift_F2: Tensor) -> Tensor:
        """Encode frames as tokens (F, E), with the arguments of `FrameEncoder`."""
        token_FE: Tensor = self.encoder(state_FD, images, shift_F2)
        return token_FE

    def batch_tokens(self, batch: Batch[Any], generator: torch.Generator) -> Tensor:
        """Encode the frames of a batch as tokens (B, S, E) of its windows, oldest first.

        In training, all frames of a segment are cropped at the same place, drawn from the generator.
        """
        shift_F2 = None
        if self.cameras and self.training:
            shift_G2 = torch.rand(len(batch.episodes), 2, generator=generator, device=self.device)
            shift_F2 = shift_G2[self.tensor(batch.segment_F)]
        token_FE = self.tokens(batch.observation, shift_F2)
        return functional.embedding(self.tensor(batch.frame_BS), token_FE)

    def normal_states(self, observation: Mapping[str, NDArray[Any] | Tensor]) -> Tensor:
        """Normalise the states of frames by key, all but images, in the order of the keys: (F, D)."""
        frames = len(next(iter(observation.values())))
        states = [self.tensor(observation[key]).float().reshape(frames, -1) for key in self.vectors]
        empty_F0 = torch.empty(frames, 0, device=self.device)
        normal_FD: Tensor = self.states(torch.cat([empty_F0, *states], dim=1))
        return normal_FD

    def state_scale(self, key: str) -> Tensor:
        """Return the scale of each number of a state: the data's unit of one normalised unit."""
        sizes = [math.prod(self.spec.observation[vector].shape) for vector in self.vectors]
        return torch.split(self.states.scale, sizes)[self.vectors.index(key)]

    def action_bounds(self, margin: float = MARGIN) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the smallest and the largest action (A,), in the data's units.

        Limits of the task hold as they are. Where the task has none, as after an import, the range that the
        normaliser was fitted to holds, widened by `margin` of it on each side.
        """
        measured = self.actions.invert(torch.stack((self.actions.low, self.actions.high)))
        low_A, high_A = measured.cpu().numpy()
        room_A, limits = margin * (high_A - low_A), self.spec.action
        return (
            np.full_like(low_A, limits.low) if np.isfinite(limits.low) else low_A - room_A,
            np.full_like(high_A, limits.high) if np.isfinite(limits.high) else high_A + room_A,
        )

    def out_of_range(self, batch: Batch[Any]) -> float:
        """Return the share of observed values, images left out, that lie outside the measured range."""
        values = self.normal_states(batch.observation)
        return float(self.states.out_of_range(values)) / max(1, values.numel())

    def tensor(self, array: NDArray[Any] | Tensor) -> Tensor:
        """Return an array as a tensor on the policy's device. A tensor is returned as it is."""
        return array if isinstance(array, Tensor) else sent(array, self.device)


class RecurrentPolicy(Policy):
    """Policy that carries a state of fixed size from frame to frame, instead of the tokens of T_o frames.

    A session advances states frame by frame, so acting costs the same at every context length.
    """

    @abstractmethod
    def initial_state(self, count: int) -> Tensor:
        """Return `count` states before the first frame: (count, U)."""

    @abstractmethod
    def advance(self, state_BU: Tensor, token_BE: Tensor) -> Tensor:
        """Advance states by one frame each, and return the states after it: (B, U)."""

    @abstractmethod
    def decide(self, state_BU: Tensor, rngs: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        """Choose actions (B, T, A) in the data's units, from the states after the present frame.

        Args:
            state_BU: the states.
            rngs: B sources of randomness, as in `sample`.
        """

    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        state_BU = self.initial_state(len(token_BSE))
        for token_BE, seen_B1 in zip(token_BSE.unbind(1), self.tensor(seen_BS).T.unsqueeze(2), strict=True):
            state_BU = torch.where(seen_B1, self.advance(state_BU, token_BE), state_BU)
        return self.decide(state_BU, rngs)


def mean_loss(error_BT: Tensor, target_BT: Tensor) -> Tensor:
    """Average an error over each window's targets, then over windows."""
    return window_losses(error_BT, target_BT).mean()


def window_losses(error_BT: Tensor, target_BT: Tensor) -> Tensor:
    """Average an error over each window's targets: (B,). It is 0 for a window without targets."""
    return error_BT.sum(dim=1) / target_BT.sum(dim=1).clamp(min=1)


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> Policy:
    """Load a trained policy, ready to act.

    Args:
        path: a file, a checkpoint's folder, or a run by its folder or name, as in `files.policy_file`.
        device: device of the weights.

    Raises:
        FileNotFoundError: there is no policy at the path.
        ValueError: the file holds no policy, or a policy that does not fit this version of Longview.
    """
    return policy_from_bytes(policy_file(Path(path)).read_bytes(), device)


def policy_to_bytes(policy: Policy) -> bytes:
    """Encode weights, statistics, config and task as safetensors with JSON metadata."""
    return b"".join(policy_parts(policy))


def policy_parts(policy: Policy) -> list[memoryview]:
    """Return the bytes of `policy_to_bytes` in parts. On a CPU, they are views of the weights."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in policy.state_dict().items()}
    return file_parts(tensors, {FORMAT: json.dumps(description(policy))})


def description(policy: Policy) -> dict[str, Any]:
    """Describe a policy for `untrained`: its config and its task."""
    return {"policy": asdict(policy.config), "task": policy.spec.to_dict()}


def policy_from_bytes(data: bytes | memoryview, device: str | torch.device = "cpu") -> Policy:
    """Decode the bytes of `policy_to_bytes` as a policy in evaluation mode.

    Raises:
        ValueError: the bytes are no policy or damaged; or config, task and weights do not fit each other or
            this version of Longview.
    """
    written, about, tensors = described(data, "a policy", FORMAT, OLD_FORMAT)
    try:
        policy = untrained(about, written)
        policy.load_state_dict(tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"the policy does not fit this version of Longview: {error}") from error
    return policy.eval().to(device)


def described(
    data: bytes | memoryview, kind: str, *formats: str
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Decode a file of safetensors that describes itself: its format, its description and its tensors.

    Args:
        data: the file.
        kind: what the file should hold, for the error.
        formats: formats that can be read.

    Raises:
        ValueError: the file has none of these formats, or is damaged.
    """
    data = bytes(data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header["__metadata__"]
        written = next((each for each in formats if each in metadata), formats[-1])
        return written, json.loads(metadata[written]), load(data)
    except (ValueError, KeyError, SafetensorError) as error:
        known = " or ".join(formats)
        raise ValueError(f"not {kind} of format {known} ({len(data)} bytes): {error!r}") from error


def untrained(about: Mapping[str, Any], written: str = FORMAT) -> Policy:
    """Make the untrained policy of a file's description.

    Args:
        about: description with the config `policy` and the `task`.
        written: format that the config is in.

    Raises:
        TypeError, ValueError, KeyError: the description does not fit this version of Longview.
    """
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in about["policy"].items()}
    config = policy_config(**settings) if written == FORMAT else _old_config(settings)
    return config.make(TaskSpec.from_dict(about["task"]))


def _old_config(settings: Mapping[str, Any]) -> PolicyConfig:
    """Make the config of a file of `OLD_FORMAT`, without the fields of other architectures."""
    known = {field.name for field in fields(policy_class(settings))}
    others = {"widths", "kernel", "groups", "depth", "heads", "heads_per_key"} - known
    return policy_config(**{name: value for name, value in settings.items() if name not in others})
