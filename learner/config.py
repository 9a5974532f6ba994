"""Configuration of policy and training. Importable without torch, so that a wrong value fails at once."""

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


SMALLEST_CROP: Final = 33
"""A ResNet18 reduces 32 pixels a side to a single place. Fewer than this many leave nothing to locate."""

AS_SIZE: Final[Any] = None
"""A field that was not given: `PolicyConfig.sizes` sets it. A config that is made holds the value itself."""

POLICIES: Final = "longview.policies"
"""Entry points of policies. `<kind>` names the config class of a kind, and so its default architecture;
`<kind>.<architecture>` names that of each of its architectures."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What every kind of policy has: how far it looks back, what it predicts, how it sees a frame.

    A kind of policy is a subclass that adds its own fields and checks, and is registered as an entry point of
    the group `longview.policies` (docs/policies.md).
    """

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Values of the fields that were not given, by size."""

    kind: str
    """Kind of policy: `diffusion` or `recurrent`, or one of an installed package."""
    size: str = "tiny"
    """`tiny`, `small` or `paper`: sets every field whose default is none."""
    context_length: int | None = None
    """Longest T_o, in steps. None: the longest of the task's own list."""
    past_actions: int | Literal["all"] = 2
    """Executed actions that are predicted again, as an auxiliary target. `all`: as many as the longest
    context holds."""
    future_actions: int = 10
    """Actions predicted from now on, the present one included."""
    execute: int = 8
    """T_a: actions executed before the next decision."""
    token_size: int = AS_SIZE
    """Width of the token that a frame becomes."""
    camera_width: int = AS_SIZE
    """Channels of the first stage of a camera's ResNet18; the later stages have 2, 4 and 8 times as many."""
    crop: float = 0.9
    """Share of an image's height and width that a camera's network sees: a random part in training, the
    centre when acting."""
    share_cameras: bool = False
    """Use one network for all cameras, rather than one each."""
    normalize: Mapping[str, Normalization] = field(default_factory=dict)
    """How to normalise an observation key or "action". Default: min_max, and identity for keys that end in
    _quat."""

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
        for key, how in self.normalize.items():
            one_of(f"normalize.{key}", how, get_args(Normalization))

    def make(self, spec: TaskSpec) -> "Policy":
        """Make the untrained policy for a task. Imports torch.

        Raises:
            ValueError: the config does not fit the task.
        """
        raise NotImplementedError

    def horizon(self, spec: TaskSpec) -> Horizon:
        """Return the horizons for one task.

        Raises:
            ValueError: the network cannot predict this number of actions.
        """
        context = self.context_length or spec.context_lengths[-1]
        past = context - 1 if self.past_actions == "all" else min(self.past_actions, context - 1)
        return Horizon(context, past, self.future_actions, self.execute)

    def normalization(self, spec: TaskSpec) -> dict[str, Normalization]:
        """Return how each state observation of a task is normalised, by its key, and how the action is.

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
            f"normalize: {unknown} are no vectors of task {spec.name}, which has {', '.join(kinds)}",
        )
        return {**kinds, **self.normalize}

    def crops(self, spec: TaskSpec) -> dict[str, tuple[int, int]]:
        """Return height and width, in pixels, of what each camera's network sees, by the camera's key.

        Raises:
            ValueError: there are fewer than `SMALLEST_CROP` pixels a side.
        """
        crops = {}
        for key, array in sorted(spec.observation.items()):
            if array.is_image:
                height, width = (round(self.crop * side) for side in array.shape[:2])
                require(
                    min(height, width) >= SMALLEST_CROP,
                    f"crop {self.crop:g} leaves {height} x {width} pixels of {key}, "
                    f"there must be {SMALLEST_CROP} a side",
                )
                crops[key] = height, width
        return crops


def policy_config(like: PolicyConfig | None = None, /, **settings: Any) -> PolicyConfig:
    """Make the config of a kind and architecture of policy, with these settings.

    Args:
        like: a config to start from. Settings of it that another kind or architecture does not have are left
            out.
        settings: fields of the config; `kind` and `architecture` choose its class.

    Raises:
        ValueError: kind or architecture are not installed, or a setting is unknown or wrong.
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
    """Return the config class that `kind` and `architecture` of some settings name.

    Raises:
        ValueError: they are not installed.
    """
    kind, architecture = settings.get("kind", "diffusion"), settings.get("architecture")
    names = policy_names()
    one_of("kind", kind, [name for name in names if "." not in name])
    if architecture is None:
        return names[kind].load()  # type: ignore[no-any-return]
    one_of("architecture", architecture, architectures(kind))
    return names[f"{kind}.{architecture}"].load()  # type: ignore[no-any-return]


def architectures(kind: str) -> list[str]:
    """List the installed architectures of a kind; empty for a kind that has but one."""
    return [name.partition(".")[2] for name in policy_names() if name.startswith(f"{kind}.")]


@cache
def policy_names() -> Mapping[str, EntryPoint]:
    """Return the installed entry points of policies, by name."""
    return {entry.name: entry for entry in entry_points(group=POLICIES)}


@dataclass(frozen=True)
class CurriculumConfig:
    """Which T_o each training step uses; the formulas are in learner/curriculum.py."""

    kind: Literal["fixed", "progressive", "sprinkle", "lengths"] = "progressive"
    """Curriculum: always the longest T_o; longer ones as training goes on; the longest or a shorter one at
    random; or lengths by weights."""
    ramp: float = 0.5
    """progressive: share of the training, in (0, 1], after which the longest T_o is reached."""
    full: float = 0.5
    """progressive, sprinkle: probability, in [0, 1], of the longest T_o reached so far; otherwise a shorter
    one is drawn. 0.8 is published for sprinkle. More short contexts are cheaper and improve the short T_o."""
    shorter: Literal["uniform", "log"] = "log"
    """Distribution of the shorter T_o. `log` gives every doubling of the length the same share, because the
    shortest contexts have the least information and need the most training."""
    lengths: Mapping[int, float] = field(default_factory=dict)
    """lengths: weight of each T_o, 0 or more, in any unit."""

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
        """Is there no length that a policy with this longest T_o does not take?

        Raises:
            ValueError: there is.
        """
        unfit = [length for length in self.lengths if not 1 <= length <= longest]
        require(not unfit, f"lengths must lie in 1..{longest}, the longest T_o, not {unfit}")


@dataclass(frozen=True)
class LearnerConfig:
    """Training of one policy at many context lengths."""

    policy: PolicyConfig = field(default_factory=policy_config)
    """The policy that is trained."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Context length of each training step."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"demo": 0.75, "import": 0.75, "dagger": 0.25})
    """Weight of each stratum in the draws, in any unit: a source such as `demo`, or a source and an outcome
    such as `rollout/success`, with `*` for any. A stratum without episodes gives its share to the others."""
    outcomes: tuple[str, ...] = ()
    """Outcomes to learn from, such as [success]. Empty: all but `invalid`."""
    draw_by: Literal["steps", "episodes", "recency", "priority"] = "steps"
    """What is equally likely within a stratum: every step; or every episode, and every step of it. `recency`
    draws newer episodes more often, `priority` in proportion to priorities set from outside."""
    half_life: float = 1000.0
    """recency: number of newer episodes in its stratum after which an episode is drawn half as often."""
    steps: int = 2400
    """Training steps of the whole run."""
    batch_size: int = 64
    """Windows per training step, shared out evenly over the learner ranks: each takes batch_size / G."""
    windows_per_segment: int | None = None
    """Windows cut from one segment of an episode. More of them mean fewer frames to read and encode, and a
    less varied batch. None: 8 for a task with cameras, else 1."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the multiplications in the loss. Weights are always float32."""
    compile: bool = False
    """Compile the policy's network, for a few context lengths to which the others are padded. Compiling takes
    minutes at the start and makes steps faster. Needs a C++ compiler where the learner runs."""
    learning_rate: float = 3e-3
    """Largest learning rate: it rises linearly over `warmup` steps, then falls to zero as a cosine."""
    warmup: int = 100
    """Training steps until the learning rate is at its largest; fewer than `steps`."""
    betas: tuple[float, float] = (0.95, 0.999)
    """Decay rates of AdamW's two moments, in [0, 1)."""
    weight_decay: float = 1e-6
    """Weight decay of AdamW, at least 0."""
    clip: float = 1.0
    """Largest norm of the gradient. Longer gradients are scaled down to it."""
    ema_power: float = 0.75
    """Power p of the average of the weights, which acts: its decay is 1 - (1 + step) ** -p."""
    ema_max: float = 0.9999
    """Largest decay of the average of the weights, in [0, 1)."""
    publish_every: int = 300
    """Training steps between two published versions."""
    checkpoint_every: int = 600
    """Training steps between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""
    report_every: int = 25
    """Training steps between two reports of progress."""
    validation_episodes: int = 8
    """Held-out demonstrations, on which every published version is validated. With an expert, this many
    extra are collected. Of imported data the last ones are used, unless that would be half or more."""

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size", "publish_every", "checkpoint_every", "keep_checkpoints")
        positive(self, "report_every", "learning_rate", "clip", "ema_power")
        require(
            self.windows_per_segment is None or self.windows_per_segment >= 1,
            f"windows_per_segment must be at least 1, not {self.windows_per_segment}",
        )
        require(
            self.precision in ("float32", "bfloat16"),
            f"precision must be float32 or bfloat16, not {self.precision!r}",
        )
        require(
            self.validation_episodes >= 0,
            f"validation_episodes must not be negative: {self.validation_episodes}",
        )
        require(
            0 <= self.warmup < self.steps,
            f"warmup {self.warmup} must be shorter than steps {self.steps}",
        )
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), not {list(self.betas)}",
        )
        require(self.weight_decay >= 0, f"weight_decay must not be negative: {self.weight_decay}")
        require(0 <= self.ema_max < 1, f"ema_max must be in [0, 1), not {self.ema_max}")
        self.selection(None)

    def selection(self, task: str | None) -> Selection:
        """What to ask the store for.

        Args:
            task: the only one to draw from; None: any.
        """
        return Selection(self.mix, self.draw_by, self.half_life, self.outcomes, task)

    def windows(self, spec: TaskSpec, world: int = 1) -> int:
        """Return the windows per segment for one task.

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


def positive(config: Any, *names: str) -> None:
    """Require that these fields of a config are above zero.

    Raises:
        ValueError: one is not; the message names it and its value.
    """
    for name in names:
        require(getattr(config, name) > 0, f"{name} must be positive, not {getattr(config, name)}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Require that a value is one of those allowed.

    Raises:
        ValueError: it is not; the message lists them.
    """
    allowed = list(allowed)
    require(value in allowed, f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def require(condition: bool, message: str) -> None:
    """Require a condition.

    Raises:
        ValueError: it does not hold; with this message, which starts with the name of a field.
    """
    if not condition:
        raise ValueError(message)
