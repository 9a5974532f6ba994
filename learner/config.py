"""Settings of policy and training. Importable without torch, so that a wrong value fails at once."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

from longview.replay.episode import ACTION, Selection, TaskSpec

if TYPE_CHECKING:
    from longview.learner.policy import Policy

Normalization = Literal["min_max", "mean_std", "identity"]


@dataclass(frozen=True)
class Horizon:
    """Numbers of steps that a policy sees, predicts and executes. docs/architecture.md draws them."""

    context: int
    """Longest context length T_o."""
    past: int
    """Executed actions that are predicted again."""
    future: int
    """Actions predicted from now on, the present one included."""
    execute: int
    """Actions executed before the next decision, T_a."""
    max_delay: int = 0
    """Most actions from now on that may be decided already, and that a decision continues."""

    @property
    def positions(self) -> int:
        """Number of action positions, T_p: past actions, oldest first, then future ones."""
        return self.past + self.future

    @property
    def after(self) -> int:
        """Number of steps after now that a training window needs."""
        return self.future - 1


SMALLEST_CROP: Final = 33
"""Smallest side of a crop, in pixels. A ResNet18 reduces 32 pixels to one place, which locates nothing."""

AS_SIZE: Final[Any] = None
"""Default of fields that `PolicyConfig.sizes` sets by size. A finished config holds the value instead."""

SHAPES_COMPILED: Final = 32
"""More shapes than a training compiles: two for each doubling of the longest T_o, and one."""

POLICIES: Final = "longview.policies"
"""Group of the entry points of policies.

The entry point `<kind>` names the config class of a kind, with its default architecture. The entry point
`<kind>.<architecture>` names the config class of one architecture."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Settings that every kind of policy has: horizons, encoding of frames, normalisation.

    A kind of policy is a subclass with its own fields and checks, registered as an entry point of the group
    `longview.policies` (docs/policies.md).
    """

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Values of the fields whose default is `AS_SIZE`, by size."""
    acting: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that say how a trained policy acts, and that training does not follow from."""

    kind: str
    """Kind of policy: `diffusion`, `recurrent`, or a kind of an installed package."""
    size: str = "tiny"
    """Size of the networks: `tiny`, `small` or `paper`. It sets every field that has no other default."""
    context_length: int | None = None
    """Longest context length T_o, in steps. None: the longest of the task's own list."""
    past_actions: int | Literal["all"] = 2
    """Executed actions that are predicted again, as an auxiliary target. `all`: as many as the longest
    context holds."""
    future_actions: int = 10
    """Actions predicted from now on, the present one included."""
    execute: int = 8
    """Actions executed before the next decision, T_a."""
    token_size: int = AS_SIZE
    """Width of the token that a frame becomes."""
    camera_width: int = AS_SIZE
    """Channels of the first stage of a camera's ResNet18; the later stages have 2, 4 and 8 times as many."""
    camera_stages: int = 4
    """Number of the ResNet18's stages, from 1 to 4. With fewer of them a camera's network is faster, and
    locates things on a finer map."""
    crop: float = 0.9
    """Share of an image's height and width that a camera's network sees: a random part in training, the
    centre when acting."""
    share_cameras: bool = False
    """Use one network for all cameras, rather than one each."""
    normalize: Mapping[str, Normalization] = field(default_factory=dict)
    """Normalisation by observation key, or of "action": min_max, mean_std or identity. Default: min_max, and
    identity for keys that end in _quat."""

    def __post_init__(self) -> None:
        for own in fields(self):
            if own.name in ("kind", "architecture") and getattr(self, own.name) != own.default:
                raise ValueError(
                    f"{own.name} of {type(self).__name__} is {own.default}, not {getattr(self, own.name)!r}: "
                    "policy_config makes configs of all of them"
                )
        one_of("size", self.size, tuple(self.sizes))
        for name, value in self.sizes[self.size].items():
            if getattr(self, name) is AS_SIZE:
                object.__setattr__(self, name, value)
        positive(self, "future_actions", "execute", "token_size", "camera_width")
        require(
            self.context_length is None or self.context_length >= 1,
            f"context_length must be at least 1, not {self.context_length}",
        )
        require(
            self.past_actions == "all" or (isinstance(self.past_actions, int) and self.past_actions >= 0),
            f'past_actions must be 0 or more, or "all", not {self.past_actions!r}',
        )
        require(
            self.execute <= self.future_actions,
            f"execute {self.execute} exceeds future_actions {self.future_actions}",
        )
        require(0 < self.crop <= 1, f"crop must be in (0, 1], not {self.crop}")
        require(
            self.camera_width % 16 == 0,
            f"camera_width must be a multiple of 16, the channels of a group, not {self.camera_width}",
        )
        require(1 <= self.camera_stages <= 4, f"camera_stages must be 1 to 4, not {self.camera_stages}")
        for key, how in self.normalize.items():
            one_of(f"normalize.{key}", how, get_args(Normalization))

    def make(self, spec: TaskSpec) -> "Policy":
        """Make an untrained policy for a task. Imports torch.

        Raises:
            ValueError: the config does not fit the task.
        """
        raise NotImplementedError

    def horizon(self, spec: TaskSpec) -> Horizon:
        """Return the horizon of the policy for one task.

        Raises:
            ValueError: the network cannot predict this number of actions.
        """
        context = self.context_length or spec.context_lengths[-1]
        past = context - 1 if self.past_actions == "all" else min(self.past_actions, context - 1)
        return Horizon(context, past, self.future_actions, self.execute)

    def normalization(self, spec: TaskSpec) -> dict[str, Normalization]:
        """Return the normalisation of a task's action and of each state observation, by key.

        Raises:
            ValueError: `normalize` names a camera, or a key that the task does not have.
        """
        keys = [key for key, array in spec.observation.items() if not array.is_image]
        kinds: dict[str, Normalization] = {
            key: "identity" if key.endswith("_quat") else "min_max" for key in (*keys, ACTION)
        }
        unknown = sorted(self.normalize.keys() - kinds.keys())
        require(
            not unknown,
            f"normalize: {unknown} are not vectors of task {spec.name}, which has {', '.join(kinds)}",
        )
        return {**kinds, **self.normalize}

    def crops(self, spec: TaskSpec) -> dict[str, tuple[int, int]]:
        """Return height and width of each camera's crop in pixels, by the camera's key.

        Raises:
            ValueError: a side is shorter than `SMALLEST_CROP` pixels.
        """
        crops = {}
        for key, array in sorted(spec.observation.items()):
            if array.is_image:
                height, width = (round(self.crop * side) for side in array.shape[:2])
                require(
                    min(height, width) >= SMALLEST_CROP,
                    f"crop {self.crop:g} leaves {height} x {width} pixels of {key}, "
                    f"but each side must have at least {SMALLEST_CROP}",
                )
                crops[key] = height, width
        return crops


def policy_config(like: PolicyConfig | None = None, /, **settings: Any) -> PolicyConfig:
    """Make the config of the kind and architecture of policy that the settings name.

    Args:
        like: config to start from. Its fields that the new kind or architecture does not have are left out.
        settings: fields of the config; `kind` and `architecture` choose its class.

    Raises:
        ValueError: the kind or architecture is not installed, or a setting is unknown or wrong.
    """
    start = {} if like is None else {own.name: getattr(like, own.name) for own in fields(like)}
    if "kind" in settings and settings["kind"] != start.get("kind"):
        start.pop("architecture", None)
    chosen = policy_class(start | settings)
    known = {own.name for own in fields(chosen)}
    if unknown := settings.keys() - known:
        raise ValueError(
            f"{min(unknown)} is unknown to {chosen.__name__}, which has {', '.join(sorted(known))}"
        )
    if like is not None and type(like) is not chosen:
        start = {name: value for name, value in start.items() if name in known - {"kind", "architecture"}}
    return chosen(**start | settings)


def policy_class(settings: Mapping[str, Any]) -> type[PolicyConfig]:
    """Return the config class for `kind` and `architecture` of some settings.

    Raises:
        ValueError: the kind or the architecture is not installed.
    """
    kind, architecture = settings.get("kind", "diffusion"), settings.get("architecture")
    names = policy_names()
    one_of("kind", kind, [name for name in names if "." not in name])
    if architecture is None:
        return names[kind].load()  # type: ignore[no-any-return]
    one_of("architecture", architecture, architectures(kind))
    return names[f"{kind}.{architecture}"].load()  # type: ignore[no-any-return]


def architectures(kind: str) -> list[str]:
    """List the installed architectures of a kind. The list is empty for a kind with only one network."""
    return [name.partition(".")[2] for name in policy_names() if name.startswith(f"{kind}.")]


@cache
def policy_names() -> Mapping[str, EntryPoint]:
    """Return the installed entry points of policies, by name."""
    return {entry.name: entry for entry in entry_points(group=POLICIES)}


@dataclass(frozen=True)
class CurriculumConfig:
    """Settings of the context length of each training step. learner/curriculum.py has the formulas."""

    kind: Literal["fixed", "progressive", "sprinkle", "lengths"] = "progressive"
    """Curriculum: `fixed`, always the longest T_o; `progressive`, longer T_o as training goes on; `sprinkle`,
    at random the longest or a shorter T_o; `lengths`, T_o drawn by weights."""
    ramp: float = 0.5
    """Share of the training, in (0, 1], after which `progressive` reaches the longest T_o."""
    full: float = 0.5
    """Probability, in [0, 1], that `progressive` and `sprinkle` use the longest T_o reached so far. Otherwise
    they draw a shorter T_o. 0.8 is published for `sprinkle`. More short contexts are cheaper and improve the
    short T_o."""
    shorter: Literal["uniform", "log"] = "log"
    """Distribution of the shorter T_o. `log` gives every doubling of the length the same share, because the
    shortest contexts have the least information and need the most training."""
    lengths: Mapping[int, float] = field(default_factory=dict)
    """Weight of each T_o for `lengths`, 0 or more, in any unit."""

    def __post_init__(self) -> None:
        kinds = ("fixed", "progressive", "sprinkle", "lengths")
        require(
            self.kind in kinds,
            f"kind must be one of {', '.join(kinds)}, not {self.kind!r}",
        )
        require(
            self.shorter in ("uniform", "log"),
            f"shorter must be uniform or log, not {self.shorter!r}",
        )
        require(0 < self.ramp <= 1, f"ramp must be in (0, 1], not {self.ramp}")
        require(0 <= self.full <= 1, f"full must be in [0, 1], not {self.full}")
        weights = self.lengths.values()
        require(
            (sum(weights) > 0) == (self.kind == "lengths") and all(0 <= w < math.inf for w in weights),
            f"lengths are {dict(self.lengths)} and kind is {self.kind!r}: kind 'lengths' "
            "needs weights of 0 or more with a positive sum, others none",
        )

    def check(self, longest: int) -> None:
        """Require that a policy with this longest T_o takes every context length of `lengths`.

        Raises:
            ValueError: it does not take one.
        """
        unfit = [context_length for context_length in self.lengths if not 1 <= context_length <= longest]
        require(not unfit, f"lengths must lie in 1..{longest}, the longest T_o, not {unfit}")


@dataclass(frozen=True)
class AdaptersConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) of the policy in `start_from`. docs/finetune.md explains
    them."""

    rank: int = 0
    """Rank of the change that is trained of each weight matrix. The weights in `start_from` stay as they are,
    and what does not fit there is trained as a whole. 0: all weights are trained."""
    alpha: float = 16.0
    """Factor of the change, over `rank`. A larger one makes each training step change the weights more."""
    layers: tuple[str, ...] = ("*",)
    """Patterns of the names of weights that get an adapter, such as `denoiser.*`. A weight matrix that has
    fewer numbers than its adapter is trained as a whole."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"rank must not be negative: {self.rank}")
        positive(self, "alpha")
        require(len(self.layers) > 0, "layers must hold at least one pattern")


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the training of one policy at many context lengths."""

    policy: PolicyConfig = field(default_factory=policy_config)
    """Policy that is trained."""
    start_from: str | None = None
    """Trained policy whose weights a new training begins from: a file, a checkpoint's folder, or a run by its
    folder or name. It may be of another task. What fits is taken, and what does not is named. None: the
    weights are random at first."""
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    """Adapters, which are trained in place of all weights."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Context length of each training step."""
    mix: Mapping[str, float] = field(
        default_factory=lambda: {
            "demo": 0.75,
            "import": 0.75,
            "human": 0.75,
            "correction": 0.25,
            "rollout/success": 0.25,
        }
    )
    """Weight of each stratum in the draws, in any unit. A stratum is a source such as `demo`, or a source and
    an outcome such as `rollout/success`, with `*` for any. A stratum without steps to learn from gives its
    share to the others. Steps of an expert or a person and labelled steps are learnt from; where a stratum
    names the outcome `success`, all steps are."""
    outcomes: tuple[str, ...] = ()
    """Outcomes of the episodes to learn from, such as [success]. Empty: all but `invalid`."""
    draw_by: Literal["steps", "episodes", "recency", "priority"] = "steps"
    """Distribution of the draws within a stratum. `steps`: every step is equally likely; `episodes`: every
    episode is, and every step in it; `recency`: newer episodes are likelier; `priority`: episodes are drawn
    in proportion to priorities, set from outside or by `priority_power`."""
    priority_power: float = 0.0
    """Power of an episode's recent loss, relative to the mean, that becomes its priority, for `priority`. 0:
    priorities are set from outside. New episodes have priority 1, that of a mean loss."""
    half_life: float = 1000.0
    """Half-life for `recency`: number of newer episodes in its stratum after which an episode is drawn half
    as often."""
    steps: int = 2400
    """Training steps of the whole run."""
    seed: int | None = None
    """Seed of the initial weights, the batches and the curriculum, at least 0. None: the run's seed. With
    another seed, a run trains anew on the same demonstrations, and is evaluated on the same episodes."""
    encoder_steps: int = 0
    """First of these steps, which train the encoder of frames: every context is a single frame. From then on
    it stays as it is. With cameras this goes for their networks alone; what they see in a frame is computed
    once, and training is as fast as from state. 0: all is trained throughout, at every context length."""
    history_dropout: float = 0.0
    """Probability, in [0, 1), with which training hides a past frame, as if it were missing."""
    history_noise: float = 0.0
    """Standard deviation of the noise that training adds to the states of past frames, in normalised units:
    half the range of the data is 1."""
    batch_size: int = 64
    """Windows per training step, shared out evenly over the learner ranks: each takes batch_size / G."""
    loaders: int = 3
    """Threads of each rank that prepare batches. Each prepares one, so this is also the number of batches
    that are ready in advance."""
    windows_per_segment: int | None = None
    """Windows cut from one segment of an episode. More windows mean fewer frames to read and encode, but a
    less varied batch. None: 8 for a task with cameras, else 1."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the multiplications in the loss. Weights are always float32."""
    compile: bool = False
    """Compile the encoder, the network and the loss, for a few context lengths, to which shorter contexts are
    padded. Compiling takes minutes at the start and makes steps faster. It needs a C++ compiler where the
    learner runs."""
    learning_rate: float = 3e-3
    """Largest learning rate. The rate rises linearly over `warmup` steps, then falls to zero as a cosine."""
    warmup: int = 100
    """Training steps until the learning rate is at its largest; fewer than `steps`."""
    betas: tuple[float, float] = (0.95, 0.999)
    """Decay rates of AdamW's two moments, in [0, 1)."""
    weight_decay: float = 1e-6
    """Weight decay of AdamW, at least 0."""
    clip: float = 1.0
    """Largest norm of the gradient. Longer gradients are scaled down to it."""
    ema_power: float = 0.75
    """Power p of the weights' average, which acts. Its decay is 1 - (1 + step) ** -p."""
    ema_max: float = 0.9999
    """Largest decay of the weights' average, in [0, 1)."""
    publish_every: int = 300
    """Training steps between two published versions. Where actors collect, the first one comes after a
    fiftieth of the training, if that is earlier."""
    checkpoint_every: int = 600
    """Training steps between two checkpoints."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints that are kept."""
    report_every: int = 25
    """Training steps between two reports of progress."""
    validation_episodes: int = 8
    """Held-out demonstrations, on which every published version is validated. With an expert, this many extra
    demonstrations are collected. Of imported data the last ones are held out, unless they would be half or
    more."""

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size", "publish_every", "checkpoint_every", "keep_checkpoints")
        positive(self, "report_every", "learning_rate", "clip", "ema_power", "loaders")
        require(
            self.windows_per_segment is None or self.windows_per_segment >= 1,
            f"windows_per_segment must be at least 1, not {self.windows_per_segment}",
        )
        require(self.seed is None or self.seed >= 0, f"seed must not be negative, not {self.seed}")
        require(
            self.precision in ("float32", "bfloat16"),
            f"precision must be float32 or bfloat16, not {self.precision!r}",
        )
        require(
            self.validation_episodes >= 0,
            f"validation_episodes must not be negative: {self.validation_episodes}",
        )
        require(
            0 <= self.encoder_steps < self.steps,
            f"encoder_steps {self.encoder_steps} must be fewer than steps {self.steps}",
        )
        require(
            0 <= self.warmup < self.steps,
            f"warmup {self.warmup} must be shorter than steps {self.steps}",
        )
        require(
            not self.encoder_steps
            or self.warmup < min(len(self.part(0)), len(self.part(self.encoder_steps))),
            f"warmup {self.warmup} must be shorter than encoder_steps {self.encoder_steps}, and than the "
            f"steps from then to {self.steps}",
        )
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), not {list(self.betas)}",
        )
        require(self.weight_decay >= 0, f"weight_decay must not be negative: {self.weight_decay}")
        require(0 <= self.ema_max < 1, f"ema_max must be in [0, 1), not {self.ema_max}")
        require(self.priority_power >= 0, f"priority_power must not be negative: {self.priority_power}")
        require(
            self.priority_power == 0 or self.draw_by == "priority",
            f"priority_power {self.priority_power:g} has no effect with draw_by {self.draw_by}: set "
            "draw_by to priority",
        )
        require(
            not self.adapters.rank or self.start_from is not None,
            f"adapters.rank {self.adapters.rank} needs a trained policy: set learner.start_from",
        )
        require(
            not self.adapters.rank or not self.encoder_steps,
            f"encoder_steps {self.encoder_steps} trains a whole encoder: set it to 0 with adapters",
        )
        require(
            not self.encoder_steps or not getattr(self.policy, "recent_encoder", False),
            f"encoder_steps {self.encoder_steps} trains one encoder: set policy.recent_encoder to false",
        )
        require(
            0 <= self.history_dropout < 1, f"history_dropout must be in [0, 1), not {self.history_dropout}"
        )
        require(self.history_noise >= 0, f"history_noise must not be negative: {self.history_noise}")
        self.selection(None)

    def selection(self, task: str | None) -> Selection:
        """Return which steps the store may draw, and how likely they are.

        Args:
            task: name of the only task to draw from. None: any task.
        """
        return Selection(self.mix, self.draw_by, self.half_life, self.outcomes, task)

    @property
    def drawn_ahead(self) -> int:
        """Largest number of batches that are drawn before their training step: those of the loaders, and one
        for each shape that is compiled."""
        return self.loaders + (SHAPES_COMPILED if self.compile else 0)

    def part(self, step: int) -> range:
        """Return the part of the training that a step belongs to: the encoder's steps, or all later ones."""
        first = range(self.encoder_steps)
        return first if step in first else range(self.encoder_steps, self.steps)

    def windows(self, spec: TaskSpec, world: int = 1) -> int:
        """Return the number of windows per segment for one task.

        Args:
            spec: the task's.
            world: G, number of learner ranks.

        Raises:
            ValueError: the ranks cannot share out batch_size in whole segments.
        """
        cameras = any(array.is_image for array in spec.observation.values())
        windows = self.windows_per_segment or (8 if cameras else 1)
        share = f"{world} learner ranks x windows_per_segment" if world > 1 else "windows_per_segment"
        require(
            self.batch_size % (world * windows) == 0,
            f"batch_size {self.batch_size} is not a multiple of {share} {windows}",
        )
        return windows

    def segments(self, spec: TaskSpec, world: int = 1) -> int:
        """Return the number of segments that each learner rank draws for a training step.

        Args:
            spec: the task's.
            world: G, number of learner ranks.
        """
        return self.batch_size // (world * self.windows(spec, world))


def positive(config: Any, *names: str) -> None:
    """Require that fields of a config are above zero.

    Raises:
        ValueError: a field is not; the message names it and its value.
    """
    for name in names:
        require(getattr(config, name) > 0, f"{name} must be positive, not {getattr(config, name)}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Require that a value is one of the allowed ones.

    Raises:
        ValueError: it is not; the message lists the allowed values.
    """
    allowed = list(allowed)
    require(value in allowed, f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def require(condition: bool, message: str) -> None:
    """Require that a condition holds.

    Args:
        condition: result of a check.
        message: error message; it starts with the name of a field.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(message)
