"""Settings of actors and evaluation. Importing them needs no simulator."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CamerasConfig:
    """Cameras whose pictures a policy sees. Without any, nothing is rendered and no renderer is needed."""

    names: tuple[str, ...] = ()
    """Names of the simulator's cameras, such as `agentview` and `robot0_eye_in_hand`."""
    size: int = 84
    """Width and height of the pictures in pixels."""
    quality: Literal["fast", "full"] = "fast"
    """Quality of rendering: `fast` leaves out shadows, reflections and multisampling."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.quality not in ("fast", "full"):
            raise ValueError(f"quality must be fast or full, not {self.quality!r}")


NO_CAMERAS = CamerasConfig()
"""Settings of a run that renders nothing."""


@dataclass(frozen=True)
class ActorsConfig:
    """Number of actors and simulators, and what they collect."""

    count: int = 2
    """Number of actor processes."""
    simulators: int = 16
    """M: simulators that one actor steps in lockstep."""
    demonstrations: int | None = None
    """Expert episodes to train on from the start; by default the task's own N."""
    noise: float = 0.1
    """Standard deviation of noise on an expert's executed actions, as a share of half the action range.
    Demonstrations then show how to recover. The label stays the expert's own action."""
    episodes_per_version: int = 32
    """Episodes to collect with a published version; an expert labels them where there is one (DAgger). A
    version published while those of an earlier one are still being collected gets none. 0 collects none."""
    cameras: CamerasConfig = NO_CAMERAS
    """Cameras whose pictures the policy sees."""
    recycle: int = 500
    """Episodes after which a new process replaces an actor that renders, since OpenGL has aborted old
    processes. An actor that renders nothing lives as long as the run."""
    beta_until: float = 0.5
    """Share of training after which the expert no longer acts in collected episodes. Before, the probability
    beta that the expert makes a decision falls linearly from 1 (Ross et al. 2011, arXiv 1011.0686)."""

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
    """Extent of evaluation. Its seeds are those of no training episode."""

    context_lengths: tuple[int, ...] | None = None
    """Context lengths T_o to evaluate, ascending; by default all that the task names."""
    episodes: int = 20
    """Episodes per context length for a version published during training; 0 evaluates only the last one."""
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
