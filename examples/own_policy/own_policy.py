"""A kind of policy in one file: the mean of the context's tokens, and a small network that predicts actions.

Installed, it is trained and evaluated like any other:

    longview demo --task return_point learner.policy.kind=mean_pool
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.config import AS_SIZE, PolicyConfig, positive
from longview.learner.policy import Policy
from longview.learner.windows import Batch
from longview.replay.episode import TaskSpec


@dataclass(frozen=True, kw_only=True)
class MeanPoolConfig(PolicyConfig):
    """Settings of the kind `mean_pool`, the keys `learner.policy.*`."""

    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"token_size": 32, "camera_width": 16, "hidden": 64},
        "small": {"token_size": 128, "camera_width": 32, "hidden": 256},
    }

    kind: str = "mean_pool"
    hidden: int = AS_SIZE
    """Width of the hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "hidden")

    def make(self, spec: TaskSpec) -> "MeanPoolPolicy":
        return MeanPoolPolicy(self, spec)


class MeanPoolPolicy(Policy):
    """Predicts actions from the present token and the mean of all tokens of the context."""

    def __init__(self, config: MeanPoolConfig, spec: TaskSpec) -> None:
        super().__init__(config, spec)
        outputs = self.horizon.positions * self.action_size
        self.head = nn.Sequential(
            nn.Linear(2 * config.token_size, config.hidden), nn.GELU(), nn.Linear(config.hidden, outputs)
        )

    def error(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the squared error of each position's action: (B, T), 0 where there is no target."""
        predicted = self.predict(self.batch_tokens(batch, generator), self.tensor(batch.seen_BS))
        wanted = self.actions(self.tensor(batch.action_BTA))
        error: Tensor = (predicted - wanted).square().mean(dim=2) * self.tensor(batch.target_BT)
        return error

    def sample(
        self,
        token_BSE: Tensor,
        seen_BS: NDArray[np.bool_],
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        return self.actions.invert(self.predict(token_BSE, self.tensor(seen_BS))).cpu().numpy()

    def predict(self, token_BSE: Tensor, seen_BS: Tensor) -> Tensor:
        """Return normalised actions (B, T, A)."""
        weight_BS1 = seen_BS.unsqueeze(2).float()
        mean_BE = (token_BSE * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1)
        out: Tensor = self.head(torch.cat([token_BSE[:, -1], mean_BE], dim=1))
        return out.unflatten(1, (self.horizon.positions, self.action_size))
