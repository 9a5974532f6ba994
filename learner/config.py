"""Configuration of policy and training. Importable without torch, so that a wrong value fails at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from longview.replay.episode import ACTION, Selection, TaskSpec

Architecture = Literal["unet_cross", "unet_film", "dit"]
Size = Literal["tiny", "small", "paper"]
Prediction = Literal["epsilon", "sample"]
Normalization = Literal["min_max", "mean_std", "identity"]


@dataclass(frozen=True)
class Horizon:
    """How many steps a policy sees, predicts and executes (the picture is in docs/architecture.md)."""

    context: int
    """Longest T_o."""
    past: int
    """Executed actions that are denoised again."""
    future: int
    """Actions denoised from now on, the present one included."""
    execute: int
    """T_a."""

    @property
    def positions(self) -> int:
        """T_p: past actions, oldest first, then future ones."""
        return self.past + self.future

    @property
    def after(self) -> int:
        """Steps after now that a training window needs."""
        return self.future - 1


SIZES: Final[Mapping[str, Mapping[str, Any]]] = {
    "tiny": {
        "widths": (32,), "token_size": 32, "heads": 4, "heads_per_key": 1, "dropout": 0.0, "depth": 3,
        "camera_width": 16,
    },
    "small": {
        "widths": (64, 128), "token_size": 128, "heads": 4, "heads_per_key": 4, "dropout": 0.0, "depth": 4,
        "camera_width": 32,
    },
    "paper": {
        "widths": (256, 512, 1024), "token_size": 256, "heads": 8, "heads_per_key": 1, "dropout": 0.1,
        "depth": 8, "camera_width": 64,
    },
}  # fmt: skip
"""What the fields of a PolicyConfig are that were not given. `tiny` learns low-dimensional tasks on a CPU in
minutes; `paper` is what is published."""

SMALLEST_CROP: Final = 33
"""A ResNet18 makes one place of 32 pixels a side: of fewer than this, a map of a single place."""

AS_SIZE: Final[Any] = None
"""Not given: as `SIZES` has it. A config that is made holds the value itself."""


@dataclass(frozen=True)
class PolicyConfig:
    """A diffusion policy: the network, how far it sees, what it predicts."""

    architecture: Architecture = "unet_cross"
    """A 1-D UNet over actions that attends to one token per observed step, or that is scaled and shifted by
    all of them; or a transformer."""
    size: Size = "tiny"
    """Sets widths, token_size, heads, heads_per_key, dropout, depth and camera_width where not given."""
    context_length: int | None = None
    """Longest T_o; none: the longest of the task's own list."""
    past_actions: int | Literal["all"] = 2
    """Executed actions that are denoised too; `all`: as many as the longest context holds."""
    future_actions: int = 10
    execute: int = 8
    """T_a: actions executed before the next decision."""
    widths: tuple[int, ...] = AS_SIZE
    """UNets: channels of each level; every further level halves the action axis."""
    kernel: int = 5
    """UNets: width of the convolutions over actions."""
    groups: int = 8
    """UNets: of the normalisation."""
    depth: int = AS_SIZE
    """dit: blocks."""
    heads: int = AS_SIZE
    """unet_cross, dit: of the attention."""
    heads_per_key: int = AS_SIZE
    """Heads that share keys and values of the context: the more, the cheaper long contexts are."""
    dropout: float = AS_SIZE
    """0.1 is published, for policies a thousand times the size of `tiny`."""
    token_size: int = AS_SIZE
    """Width of the tokens of observed steps and of the diffusion step; dit: of everything."""
    camera_width: int = AS_SIZE
    """Channels of the first stage of a camera's ResNet18; the later ones have 2, 4 and 8 times as many."""
    crop: float = 0.9
    """Share of an image's height and width that a camera's network is shown: anywhere in training, the centre
    in acting."""
    share_cameras: bool = False
    """One network for all cameras, rather than one each."""
    normalize: Mapping[str, Normalization] = field(default_factory=dict)
    """By observation key, or "action". Otherwise min_max, and identity for keys that end in _quat."""
    prediction: Prediction = "sample"
    """What the network is trained to tell: the actions without the noise, or the noise, as published. Where
    there is much noise, which way to go is decided, and hardly changes what the noise was: told by `epsilon`,
    memory is learnt late or not at all (docs/method.md)."""
    diffusion_steps: int = 100
    sampling_steps: int = 10
    candidates: int = 1
    """Samples per decision, of which the one is executed whose past actions are closest to those that were.
    Past-token prediction, arXiv 2505.09561."""

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, Architecture)
        _one_of("size", self.size, Size)
        _one_of("prediction", self.prediction, Prediction)
        for name, value in SIZES[self.size].items():
            if getattr(self, name) is AS_SIZE:
                object.__setattr__(self, name, value)
        _positive(self, "future_actions", "execute", "kernel", "groups", "depth", "heads", "token_size")
        _positive(self, "heads_per_key", "camera_width", "diffusion_steps", "sampling_steps", "candidates")
        _require(
            self.context_length is None or self.context_length >= 1,
            f"learner.policy.context_length must be at least 1, not {self.context_length}",
        )
        _require(
            self.past_actions == "all" or (isinstance(self.past_actions, int) and self.past_actions >= 0),
            f'learner.policy.past_actions must be 0 or more, or "all", not {self.past_actions!r}',
        )
        _require(
            self.execute <= self.future_actions,
            f"learner.policy.execute {self.execute} exceeds future_actions {self.future_actions}",
        )
        _require(self.kernel % 2 == 1, f"learner.policy.kernel must be odd, not {self.kernel}")
        _require(self.token_size % 2 == 0, f"learner.policy.token_size must be even, not {self.token_size}")
        _require(0 <= self.dropout < 1, f"learner.policy.dropout must be in [0, 1), not {self.dropout}")
        _require(0 < self.crop <= 1, f"learner.policy.crop must be in (0, 1], not {self.crop}")
        _require(
            self.diffusion_steps % self.sampling_steps == 0,
            f"learner.policy.diffusion_steps {self.diffusion_steps} is not a multiple of "
            f"sampling_steps {self.sampling_steps}",
        )
        _require(
            self.candidates == 1 or self.past_actions != 0,
            f"learner.policy.candidates {self.candidates} are told apart by their past actions: "
            "past_actions must not be 0",
        )
        _require(
            self.camera_width % 16 == 0,
            f"learner.policy.camera_width must be a multiple of 16, the channels of a group, "
            f"not {self.camera_width}",
        )
        for key, kind in self.normalize.items():
            _one_of(f"normalize.{key}", kind, Normalization)
        _require(len(self.widths) > 0, "learner.policy.widths must name at least one level")
        _require(
            self.heads % self.heads_per_key == 0,
            f"learner.policy.heads {self.heads} must be a multiple of heads_per_key {self.heads_per_key}",
        )
        if self.architecture == "dit":
            _require(
                self.token_size % self.heads == 0,
                f"learner.policy.token_size {self.token_size} must be a multiple of heads {self.heads}",
            )
        else:
            heads = self.heads if self.architecture == "unet_cross" else 1
            for name, value in (("groups", self.groups), ("heads", heads)):
                _require(
                    all(width > 0 and width % value == 0 for width in self.widths),
                    f"learner.policy.widths {list(self.widths)} must be multiples of {name} {value}",
                )

    def horizon(self, spec: TaskSpec) -> Horizon:
        """The horizons for one task.

        Raises:
            ValueError: T_p does not fit the UNet's downsampling.
        """
        context = self.context_length or spec.context_lengths[-1]
        past = context - 1 if self.past_actions == "all" else min(self.past_actions, context - 1)
        positions = past + self.future_actions
        factor = 1 if self.architecture == "dit" else 2 ** (len(self.widths) - 1)
        _require(
            positions % factor == 0,
            f"T_p {positions} (past {past} + learner.policy.future_actions {self.future_actions}) is not "
            f"divisible by {factor}, the UNet's downsampling at {len(self.widths)} widths: "
            f"use future_actions {self.future_actions + -positions % factor}",
        )
        return Horizon(context, past, self.future_actions, self.execute)

    def normalization(self, spec: TaskSpec) -> dict[str, Normalization]:
        """How each state observation of a task is normalised, by its key, and how the action is.

        Raises:
            ValueError: `normalize` names what the task does not have, or a camera.
        """
        keys = [key for key, array in spec.observation.items() if not array.is_image]
        kinds: dict[str, Normalization] = {
            key: "identity" if key.endswith("_quat") else "min_max" for key in (*keys, ACTION)
        }
        unknown = sorted(self.normalize.keys() - kinds.keys())
        _require(
            not unknown,
            f"learner.policy.normalize: {unknown} are no vectors of task {spec.name}, which has "
            f"{', '.join(kinds)}",
        )
        return {**kinds, **self.normalize}

    def crops(self, spec: TaskSpec) -> dict[str, tuple[int, int]]:
        """Height and width of what is shown to the network of each camera of a task, by its key.

        Raises:
            ValueError: there are fewer than `SMALLEST_CROP` pixels a side.
        """
        crops = {}
        for key, array in sorted(spec.observation.items()):
            if array.is_image:
                height, width = (round(self.crop * side) for side in array.shape[:2])
                _require(
                    min(height, width) >= SMALLEST_CROP,
                    f"learner.policy.crop {self.crop:g} leaves {height} x {width} pixels of {key}, "
                    f"there must be {SMALLEST_CROP} a side",
                )
                crops[key] = height, width
        return crops


@dataclass(frozen=True)
class CurriculumConfig:
    """Which T_o each training step uses; the formulas are in learner/curriculum.py."""

    kind: Literal["fixed", "progressive", "sprinkle", "lengths"] = "progressive"
    ramp: float = 0.5
    """progressive: share of the training after which the longest T_o is reached; as published, perhaps."""
    full: float = 0.5
    """progressive, sprinkle: probability of the longest T_o reached so far; otherwise a shorter one.
    Published is 0.8 for sprinkle; more short contexts are cheaper, and serve the short T_o."""
    shorter: Literal["uniform", "log"] = "log"
    """How shorter ones are drawn; `log` gives every doubling of the length the same share: the short ones
    have to get by with little, and need it."""
    lengths: Mapping[int, float] = field(default_factory=dict)
    """lengths: T_o -> its part of the training steps, in any unit."""

    def __post_init__(self) -> None:
        kinds = ("fixed", "progressive", "sprinkle", "lengths")
        _require(
            self.kind in kinds,
            f"learner.curriculum.kind must be one of {', '.join(kinds)}, not {self.kind!r}",
        )
        _require(
            self.shorter in ("uniform", "log"),
            f"learner.curriculum.shorter must be uniform or log, not {self.shorter!r}",
        )
        _require(0 < self.ramp <= 1, f"learner.curriculum.ramp must be in (0, 1], not {self.ramp}")
        _require(0 <= self.full <= 1, f"learner.curriculum.full must be in [0, 1], not {self.full}")
        weights = self.lengths.values()
        _require(
            (sum(weights) > 0) == (self.kind == "lengths") and all(0 <= w < math.inf for w in weights),
            f"learner.curriculum.lengths are {dict(self.lengths)} and kind is {self.kind!r}: kind 'lengths' "
            "needs weights of 0 or more with a positive sum, others none",
        )

    def check(self, longest: int) -> None:
        """Is there no length that a policy with this longest T_o does not take?

        Raises:
            ValueError: there is.
        """
        unfit = [length for length in self.lengths if not 1 <= length <= longest]
        _require(
            not unfit, f"learner.curriculum.lengths must lie in 1..{longest}, the longest T_o, not {unfit}"
        )


@dataclass(frozen=True)
class LearnerConfig:
    """Training of one policy at many context lengths."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    mix: Mapping[str, float] = field(default_factory=lambda: {"demo": 0.75, "import": 0.75, "dagger": 0.25})
    """Parts of the draws by source, in any unit; one without episodes gives its part to the others. By
    source, as `demo`, or by source and outcome, as `rollout/success`, with `*` for any."""
    outcomes: tuple[str, ...] = ()
    """Learn only from episodes that ended so: [success] is success only. None: from all."""
    draw_by: Literal["steps", "episodes", "recency", "priority"] = "steps"
    """Of a part of the mix all steps are drawn alike; or all episodes are, and of an episode all steps; or
    newer episodes more often; or in proportion to priorities that something else gives them."""
    half_life: float = 1000.0
    """By recency, an episode is drawn half as often as one that is newer by so many of its part."""
    steps: int = 2400
    batch_size: int = 64
    """Windows per step and rank."""
    windows_per_segment: int | None = None
    """Windows cut from one place of an episode: with more of them, fewer frames have to be read and encoded,
    and a batch is less varied. None: 8 where there are cameras, else 1."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the multiplications in the loss; weights are float32 always."""
    compile: bool = False
    """Compile the denoiser, for a few context lengths to which the others are padded: minutes at the start,
    for faster steps. Needs a C++ compiler where the learner runs."""
    learning_rate: float = 3e-3
    """Peak; linear warm-up, then a cosine to zero."""
    warmup: int = 100
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema_power: float = 0.75
    """The average that acts decays by 1 - (1 + step) ** -ema_power, at most ema_max."""
    ema_max: float = 0.9999
    publish_every: int = 300
    checkpoint_every: int = 600
    keep_checkpoints: int = 3
    report_every: int = 25
    validation_episodes: int = 8
    """Demonstrations that are never trained on: on them every published version is validated. They are the
    last ones; an expert gives so many more, of imported ones they are part, unless that were half of them."""

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "publish_every", "checkpoint_every", "keep_checkpoints")
        _positive(self, "report_every", "learning_rate", "clip", "ema_power")
        _require(
            self.windows_per_segment is None or self.windows_per_segment >= 1,
            f"learner.windows_per_segment must be at least 1, not {self.windows_per_segment}",
        )
        _require(
            self.precision in ("float32", "bfloat16"),
            f"learner.precision must be float32 or bfloat16, not {self.precision!r}",
        )
        _require(
            self.validation_episodes >= 0,
            f"learner.validation_episodes must not be negative: {self.validation_episodes}",
        )
        _require(
            0 <= self.warmup < self.steps,
            f"learner.warmup {self.warmup} must be shorter than learner.steps {self.steps}",
        )
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"learner.betas must be two numbers in [0, 1), not {list(self.betas)}",
        )
        _require(self.weight_decay >= 0, f"learner.weight_decay must not be negative: {self.weight_decay}")
        _require(0 <= self.ema_max < 1, f"learner.ema_max must be in [0, 1), not {self.ema_max}")
        self.selection(None)

    def selection(self, task: str | None) -> Selection:
        """What to ask the store for.

        Args:
            task: the only one to draw from; None: any.
        """
        try:
            return Selection(self.mix, self.draw_by, self.half_life, self.outcomes, task)
        except ValueError as error:
            raise ValueError(f"learner.{error}") from None

    def windows(self, spec: TaskSpec) -> int:
        """Windows per segment for one task.

        Raises:
            ValueError: batch_size is not a multiple of them.
        """
        cameras = any(array.is_image for array in spec.observation.values())
        windows = self.windows_per_segment or (8 if cameras else 1)
        _require(
            self.batch_size % windows == 0,
            f"learner.batch_size {self.batch_size} is not a multiple of windows_per_segment {windows}",
        )
        return windows


def _positive(config: PolicyConfig | LearnerConfig, *names: str) -> None:
    path = "learner.policy" if isinstance(config, PolicyConfig) else "learner"
    for name in names:
        _require(getattr(config, name) > 0, f"{path}.{name} must be positive, not {getattr(config, name)}")


def _one_of(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices)
    _require(value in allowed, f"learner.policy.{name} must be one of {', '.join(allowed)}, not {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
