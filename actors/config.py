"""Settings of the actors and of evaluation; importable without any simulator."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CamerasConfig:
    """Which cameras a policy sees through; with none, nothing is rendered, and no renderer is needed."""

    names: tuple[str, ...] = ()
    """Of the simulator's cameras, such as `agentview` and `robot0_eye_in_hand`."""
    size: int = 84
    """Pixels a side."""
    quality: Literal["fast", "full"] = "fast"
    """`fast` has no shadows, reflections and multisampling."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.quality not in ("fast", "full"):
            raise ValueError(f"quality must be fast or full, not {self.quality!r}")


NO_CAMERAS = CamerasConfig()


@dataclass(frozen=True)
class ActorsConfig:
    """How many simulators there are, and what they collect."""

    count: int = 2
    """Actor processes."""
    simulators: int = 16
    """M: simulators that one actor steps in lockstep."""
    demonstrations: int | None = None
    """Expert episodes to start from; by default the task's own N."""
    noise: float = 0.1
    """Standard deviation of what is added to an expert's executed actions, as a share of half the action
    range: demonstrations then show how to come back. The label stays the expert's own action."""
    episodes_per_version: int = 32
    """Episodes to collect with a published version, labelled by the expert (DAgger) where there is one. A
    version that comes while the last one's are still being collected gets none; 0 collects none at all."""
    cameras: CamerasConfig = NO_CAMERAS
    """Cameras whose pictures the policy sees."""
    recycle: int = 500
    """Episodes after which an actor that renders is replaced by a new process: OpenGL has been seen to abort
    old ones. One that renders nothing lives as long as the run."""
    beta_until: float = 0.5
    """Share of training after which the expert no longer takes over in collected episodes. Before, beta, the
    chance that a decision is the expert's, falls linearly from 1 (Ross et al. 2011, arXiv 1011.0686)."""

    def __post_init__(self) -> None:
        for name in ("count", "simulators", "recycle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.demonstrations is not None and self.demonstrations < 1:
            raise ValueError(f"demonstrations must be at least 1, not {self.demonstrations}")
        if self.episodes_per_version < 0:
            raise ValueError(f"episodes_per_version must not be negative: {self.episodes_per_version}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must lie in [0, 1], not {self.noise}")
        if not 0 < self.beta_until <= 1:
            raise ValueError(f"beta_until must lie in (0, 1], not {self.beta_until}")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, on seeds that no training episode ever has."""

    context_lengths: tuple[int, ...] | None = None
    """T_o to evaluate, ascending; by default all that the task's spec names."""
    episodes: int = 20
    """Episodes per context length for versions published during training; 0 evaluates only the last one."""
    final_episodes: int = 200
    """Episodes per context length for the last version."""

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.final_episodes < 1:
            raise ValueError(
                "episodes must not be negative and final_episodes at least 1, "
                f"not {self.episodes} and {self.final_episodes}"
            )
        lengths = self.context_lengths
        if lengths is not None and (not lengths or lengths[0] < 1 or list(lengths) != sorted(set(lengths))):
            raise ValueError(f"context_lengths must ascend from 1 or more, not {list(lengths)}")
