"""Settings of diffusion policies, one class for each architecture. Importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from longview.learner.config import AS_SIZE, Horizon, PolicyConfig, one_of, positive, require
from longview.replay.episode import TaskSpec

if TYPE_CHECKING:
    from longview.learner.policies.diffusion.denoisers.denoiser import Denoiser
    from longview.learner.policies.diffusion.policy import DiffusionPolicy

Prediction = Literal["epsilon", "sample"]

SHARED: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"token_size": 32, "camera_width": 16, "dropout": 0.0},
    "small": {"token_size": 128, "camera_width": 32, "dropout": 0.0},
    "paper": {"token_size": 256, "camera_width": 64, "dropout": 0.1},
}
"""Settings by size that every architecture has. `tiny` learns low-dimensional tasks on a CPU in minutes;
`paper` is the published size."""
WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"widths": (32,)},
    "small": {"widths": (64, 128)},
    "paper": {"widths": (256, 512, 1024)},
}
"""Settings by size of the UNets."""
HEADS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"heads": 4, "heads_per_key": 1},
    "small": {"heads": 4, "heads_per_key": 4},
    "paper": {"heads": 8, "heads_per_key": 1},
}
"""Settings by size of the attention to the context."""
DEPTHS: Mapping[str, Mapping[str, Any]] = {"tiny": {"depth": 3}, "small": {"depth": 4}, "paper": {"depth": 8}}
"""Settings by size of the transformer."""

MLPS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"width": 256, "depth": 3},
    "small": {"width": 512, "depth": 3},
    "paper": {"width": 1024, "depth": 6},
}
"""Settings by size of the MLP."""


def joined(*tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Join tables of settings by size. Each size gets the settings of all tables."""
    return {size: {name: value for table in tables for name, value in table[size].items()} for size in SHARED}


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(PolicyConfig):
    """Settings that diffusion policies of every architecture have."""

    acting = frozenset({"sampling_steps", "candidates"})

    kind: str = "diffusion"
    architecture: str
    """Network that denoises actions: `unet_cross`, a 1-D UNet over actions that attends to one token per
    observed step; `unet_film`, the same UNet, scaled and shifted by all tokens together; `dit`, a
    transformer."""
    dropout: float = AS_SIZE
    """Share of activations that training drops. 0.1 is published, for policies a thousand times the size of
    `tiny`."""
    prediction: Prediction = "sample"
    """Prediction of the network: `sample`, the actions without the noise, or `epsilon`, the noise, as
    published. With `epsilon`, memory is learnt late or not at all: a policy chooses its direction at high
    noise, where the noise hardly depends on the actions (docs/method.md)."""
    diffusion_steps: int = 100
    """Diffusion steps in training."""
    sampling_steps: int = 3
    """Diffusion steps in acting, at most `diffusion_steps`. A decision gets longer with each. `epsilon` needs
    10 or more (docs/policies.md)."""
    candidates: int = 1
    """Samples per decision. The sample whose past actions are closest to the executed ones is executed:
    self-verification, arXiv 2505.09561."""
    max_delay: int = 0
    """Most steps, up to half of `execute`, that a robot makes while it waits for a decision. The policy is
    trained to continue the actions of these steps, as in arXiv 2512.05964 (docs/serve.md). 0: it knows of no
    such actions."""
    frame_stride: int = 1
    """Distance, in steps, between the frames that the policy sees of the context, counted back from now. The
    frames between them are left out."""
    keyframes: int = 0
    """Number of past frames that the policy sees beside the present one: those at which what is seen changes
    its course most. 0: it sees all."""
    memory_tokens: int = 0
    """Number of tokens of a gated memory, to which the context is reduced; the denoiser sees them and the
    present frame. 0: it sees one token per frame."""
    recent_encoder: bool = False
    """Encode the two newest frames by an encoder of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("prediction", self.prediction, get_args(Prediction))
        positive(self, "diffusion_steps", "sampling_steps", "candidates", "frame_stride")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")
        require(self.token_size % 2 == 0, f"token_size must be even, not {self.token_size}")
        for name in ("keyframes", "memory_tokens"):
            require(getattr(self, name) >= 0, f"{name} must not be negative: {getattr(self, name)}")
        require(
            not self.memory_tokens or self.token_size % 4 == 0,
            f"token_size must be a multiple of 4, the heads of a memory, not {self.token_size}",
        )
        require(
            self.sampling_steps <= self.diffusion_steps,
            f"sampling_steps {self.sampling_steps} exceeds diffusion_steps {self.diffusion_steps}",
        )
        require(
            self.candidates == 1 or self.past_actions != 0,
            f"candidates {self.candidates} are told apart by their past actions: past_actions must not be 0",
        )
        require(self.max_delay >= 0, f"max_delay must not be negative: {self.max_delay}")
        require(
            2 * self.max_delay <= self.execute,
            f"max_delay {self.max_delay} exceeds half of execute {self.execute}: decisions would overlap",
        )

    def make(self, spec: TaskSpec) -> "DiffusionPolicy":
        from longview.learner.policies.diffusion.policy import DiffusionPolicy

        return DiffusionPolicy(self, spec)

    def horizon(self, spec: TaskSpec) -> Horizon:
        return replace(super().horizon(spec), max_delay=self.max_delay)

    def input_size(self, action_size: int) -> int:
        """Return the denoiser's number of input channels at each position.

        With `max_delay`, a mark of the known actions follows the dimensions of the action.
        """
        return action_size + (self.max_delay > 0)

    def given(self, context: int) -> int:
        """Return the number of tokens that the denoiser is given at most, for the longest context T_o."""
        return self.memory_tokens + 1 if self.memory_tokens else -(-context // self.frame_stride)

    def denoiser(self, horizon: Horizon, action_size: int) -> "Denoiser":
        """Make the untrained network that denoises actions. Imports torch.

        Args:
            horizon: the policy's horizon, with the number of tokens that the denoiser is given as context.
            action_size: A, dimensions of an action.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(DiffusionConfig):
    """Settings of a network that attends to the tokens of the context."""

    heads: int = AS_SIZE
    """Number of heads in every attention."""
    heads_per_key: int = AS_SIZE
    """Number of heads that share keys and values of the context. More of them make long contexts cheaper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "heads", "heads_per_key")
        require(
            self.heads % self.heads_per_key == 0,
            f"heads {self.heads} must be a multiple of heads_per_key {self.heads_per_key}",
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig(DiffusionConfig):
    """Settings that both UNets have."""

    widths: tuple[int, ...] = AS_SIZE
    """Channels of each level. Every further level halves the action axis."""
    kernel: int = 5
    """Width of the convolutions over actions, an odd number of positions."""
    groups: int = 8
    """Number of groups of channels in the normalisation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "kernel", "groups")
        require(self.kernel % 2 == 1, f"kernel must be odd, not {self.kernel}")
        require(len(self.widths) > 0, "widths must name at least one level")
        multiples("groups", self.groups, self.widths)

    def horizon(self, spec: TaskSpec) -> Horizon:
        horizon = super().horizon(spec)
        factor, positions = 2 ** (len(self.widths) - 1), horizon.positions
        require(
            positions % factor == 0,
            f"future_actions {self.future_actions} and {horizon.past} past ones make T_p {positions}, which "
            f"is not divisible by {factor}, the UNet's downsampling at {len(self.widths)} widths: "
            f"use future_actions {self.future_actions + -positions % factor}",
        )
        return horizon


@dataclass(frozen=True, kw_only=True)
class UNetCrossConfig(AttentionConfig, UNetConfig):
    """Settings of a UNet whose blocks attend to one token per observed step."""

    sizes: ClassVar = joined(SHARED, WIDTHS, HEADS)

    architecture: str = "unet_cross"

    def __post_init__(self) -> None:
        super().__post_init__()
        multiples("heads", self.heads, self.widths)

    def denoiser(self, horizon: Horizon, action_size: int) -> "Denoiser":
        from longview.learner.policies.diffusion.denoisers.conditioning import AttentionLayer, CrossAttention
        from longview.learner.policies.diffusion.denoisers.unet import UNet

        layer = partial(AttentionLayer, heads=self.heads, dropout=self.dropout)
        return UNet(self, action_size, layer, partial(CrossAttention, self))


@dataclass(frozen=True, kw_only=True)
class UNetFilmConfig(UNetConfig):
    """Settings of a UNet whose blocks are scaled and shifted by all tokens together."""

    sizes: ClassVar = joined(SHARED, WIDTHS)

    architecture: str = "unet_film"

    def denoiser(self, horizon: Horizon, action_size: int) -> "Denoiser":
        from longview.learner.policies.diffusion.denoisers.conditioning import FilmConditioning, ScaleAndShift
        from longview.learner.policies.diffusion.denoisers.unet import UNet

        return UNet(self, action_size, ScaleAndShift, partial(FilmConditioning, self, horizon))


@dataclass(frozen=True, kw_only=True)
class DiTConfig(AttentionConfig):
    """Settings of a transformer over the actions. All its layers have the width `token_size`."""

    sizes: ClassVar = joined(SHARED, DEPTHS, HEADS)

    architecture: str = "dit"
    depth: int = AS_SIZE
    """Number of the transformer's blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "depth")
        require(
            self.token_size % self.heads == 0,
            f"token_size {self.token_size} must be a multiple of heads {self.heads}",
        )

    def denoiser(self, horizon: Horizon, action_size: int) -> "Denoiser":
        from longview.learner.policies.diffusion.denoisers.dit import DiT

        return DiT(self, horizon, action_size)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(AttentionConfig):
    """Settings of an MLP over all actions, which is told a summary of the context."""

    sizes: ClassVar = joined(SHARED, MLPS, HEADS)

    architecture: str = "mlp"
    width: int = AS_SIZE
    """Channels of the MLP."""
    depth: int = AS_SIZE
    """Number of the MLP's residual blocks."""
    queries: int = 4
    """Number of vectors, made from the present observation, that attend to the context."""
    looks: int = 2
    """Times that they attend. A later look can depend on what an earlier one found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "width", "depth", "queries", "looks")
        require(
            self.token_size % self.heads == 0,
            f"token_size {self.token_size} must be a multiple of heads {self.heads}",
        )

    def denoiser(self, horizon: Horizon, action_size: int) -> "Denoiser":
        from longview.learner.policies.diffusion.denoisers.mlp import MLP

        return MLP(self, horizon, action_size)


def multiples(name: str, value: int, widths: tuple[int, ...]) -> None:
    """Require that every width is a multiple of the value of another setting.

    Args:
        name: name of that setting.
        value: value of that setting.
        widths: channels of each level of a UNet.

    Raises:
        ValueError: a width is not a multiple.
    """
    require(
        all(width > 0 and width % value == 0 for width in widths),
        f"widths {list(widths)} must be multiples of {name} {value}",
    )
