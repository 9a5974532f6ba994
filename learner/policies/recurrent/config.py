"""Settings of recurrent policies. Importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longview.learner.config import AS_SIZE, PolicyConfig, positive, require
from longview.replay.episode import TaskSpec

if TYPE_CHECKING:
    from longview.learner.policies.recurrent.policy import GRUPolicy


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(PolicyConfig):
    """Settings of a GRU over the frames' tokens, whose state predicts the actions."""

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"token_size": 64, "camera_width": 16, "hidden": 128},
        "small": {"token_size": 128, "camera_width": 32, "hidden": 256},
        "paper": {"token_size": 256, "camera_width": 64, "hidden": 1024},
    }

    kind: str = "recurrent"
    hidden: int = AS_SIZE
    """Number of the GRU's units, which it carries from step to step."""
    components: int = 1
    """Number of components of the mixture that the state predicts. 1 is plain regression. It learns memory
    soonest, because a wrong guess costs it most (docs/policies.md)."""
    spread: float = 0.1
    """Standard deviation of a component, in normalised units: half the range of the data is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "hidden", "components")
        require(self.spread > 0, f"spread must be positive, not {self.spread}")

    def make(self, spec: TaskSpec) -> "GRUPolicy":
        from longview.learner.policies.recurrent.policy import GRUPolicy

        return GRUPolicy(self, spec)
