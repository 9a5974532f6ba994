"""Configuration of policy and training. Importable without torch, so that a wrong value fails at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from replay.episode import SOURCES, TaskSpec


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


@dataclass(frozen=True)
class PolicyConfig:
    """A 1-D UNet over actions, with cross-attention to one token per observed step."""

    context_length: int | None = None
    """Longest T_o; none: the longest of the task's own list."""
    past_actions: int | Literal["all"] = 2
    """Executed actions that are denoised too; `all`: as many as the longest context holds."""
    future_actions: int = 10
    execute: int = 8
    """T_a: actions executed before the next decision."""
    widths: tuple[int, ...] = (32,)
    """Channels of each level; every further level halves the action axis. One narrow level is enough for
    low-dimensional tasks on a CPU; published policies have 256, 512, 1024."""
    kernel: int = 5
    groups: int = 8
    heads: int = 4
    dropout: float = 0.0
    """0.1 is published, for policies a thousand times this size."""
    token_size: int = 32
    """Width of the tokens of observed steps and of the diffusion step."""
    diffusion_steps: int = 100
    sampling_steps: int = 10

    def __post_init__(self) -> None:
        _positive(self, "future_actions", "execute", "kernel", "groups", "heads", "token_size")
        _positive(self, "diffusion_steps", "sampling_steps")
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
        _require(
            self.diffusion_steps % self.sampling_steps == 0,
            f"learner.policy.diffusion_steps {self.diffusion_steps} is not a multiple of "
            f"sampling_steps {self.sampling_steps}",
        )
        _require(len(self.widths) > 0, "learner.policy.widths must name at least one level")
        for name, value in (("groups", self.groups), ("heads", self.heads)):
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
        positions, factor = past + self.future_actions, 2 ** (len(self.widths) - 1)
        _require(
            positions % factor == 0,
            f"T_p {positions} (past {past} + learner.policy.future_actions {self.future_actions}) is not "
            f"divisible by {factor}, the UNet's downsampling at {len(self.widths)} widths: "
            f"use future_actions {self.future_actions + -positions % factor}",
        )
        return Horizon(context, past, self.future_actions, self.execute)


@dataclass(frozen=True)
class CurriculumConfig:
    """Which T_o each training step uses; the formulas are in learner/curriculum.py."""

    kind: Literal["fixed", "progressive", "sprinkle"] = "progressive"
    ramp: float = 0.3
    """progressive: share of the training after which the longest T_o is reached. Published, perhaps: 0.5;
    memory is learnt at long T_o only, and wants most of the steps."""
    full: float = 0.7
    """progressive, sprinkle: probability of the longest T_o reached so far; otherwise a shorter one.
    Published is 0.8 for sprinkle; more short contexts are cheaper, and serve the short T_o."""
    shorter: Literal["uniform", "log"] = "uniform"
    """How shorter ones are drawn; `log` gives every doubling of the length the same share."""

    def __post_init__(self) -> None:
        kinds = ("fixed", "progressive", "sprinkle")
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


@dataclass(frozen=True)
class LearnerConfig:
    """Training of one policy at many context lengths."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    mix: Mapping[str, float] = field(default_factory=lambda: {"demo": 0.75, "import": 0.75, "dagger": 0.25})
    """Parts of the draws by source, in any unit; one without episodes gives its part to the others."""
    steps: int = 2400
    batch_size: int = 64
    """Windows per step and rank."""
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

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size", "publish_every", "checkpoint_every", "keep_checkpoints")
        _positive(self, "report_every", "learning_rate", "clip", "ema_power")
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
        unknown = sorted(self.mix.keys() - set(SOURCES))
        _require(not unknown, f"learner.mix: unknown sources {unknown}, there are {', '.join(SOURCES)}")
        _require(
            min(self.mix.values(), default=0) >= 0 and sum(self.mix.values()) > 0,
            f"learner.mix needs shares of 0 or more with a positive sum, not {dict(self.mix)}",
        )


def _positive(config: PolicyConfig | LearnerConfig, *names: str) -> None:
    path = "learner.policy" if isinstance(config, PolicyConfig) else "learner"
    for name in names:
        _require(getattr(config, name) > 0, f"{path}.{name} must be positive, not {getattr(config, name)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
