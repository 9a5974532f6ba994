"""Settings of recurrent policies. Importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from longview.learner.config import AS_SIZE, PolicyConfig, one_of, positive, require
from longview.replay.episode import TaskSpec

if TYPE_CHECKING:
    from longview.learner.policies.recurrent.policy import MixturePolicy


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(PolicyConfig):
    """Settings of a recurrent network over the frames' tokens, whose state predicts the actions."""

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"token_size": 64, "camera_width": 16, "hidden": 128},
        "small": {"token_size": 128, "camera_width": 32, "hidden": 256},
        "paper": {"token_size": 256, "camera_width": 64, "hidden": 1024},
    }

    kind: str = "recurrent"
    cell: Literal["gru", "linear"] = "gru"
    """Network that carries the state: `gru`; or `linear`, a state that decays at a rate which follows from
    the frame, as in selective state-space models (minGRU, arXiv 2410.01201)."""
    hidden: int = AS_SIZE
    """Number of units of the state that is carried from step to step."""
    components: int = 1
    """Number of components of the mixture that the state predicts. 1 is plain regression. It learns memory
    soonest, because a wrong guess costs it most (docs/policies.md)."""
    spread: float = 0.1
    """Standard deviation of a component, in normalised units: half the range of the data is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("cell", self.cell, ("gru", "linear"))
        positive(self, "hidden", "components")
        require(self.spread > 0, f"spread must be positive, not {self.spread}")

    def make(self, spec: TaskSpec) -> "MixturePolicy":
        from longview.learner.policies.recurrent.policy import MixturePolicy

        return MixturePolicy(self, spec)
