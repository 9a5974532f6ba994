"""A recurrent policy: a GRU over the frames of the last T_o steps -> T_p actions.

Legend: B windows or robots, S observed steps (T_o), T action positions (T_p), A action dimensions, E token
size, H numbers of the GRU's state, K components of the mixture.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.policies.recurrent.config import RecurrentConfig
from longview.learner.policy import RecurrentPolicy
from longview.learner.windows import Batch
from longview.replay.episode import TaskSpec


class GRUPolicy(RecurrentPolicy):
    """Predicts whole chunks of actions as a mixture, from the state of a GRU.

    A component is a chunk, not an action: what is executed belongs to one plan. With one component this is
    regression. The recurrent baselines of arXiv 2108.03298 have mixture heads for single actions.
    """

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig, spec: TaskSpec) -> None:
        super().__init__(config, spec)
        self.gru = nn.GRU(config.token_size, config.hidden, batch_first=True)
        outputs = config.components * (self.horizon.positions * self.action_size + 1)
        self.head = nn.Sequential(
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, outputs),
        )

    @property
    def trunk(self) -> nn.Module:
        return self.head

    def error(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the squared error by position, (B, T), 0 where there is no target.

        Each component's error counts by its share of the window (expectation maximisation), and how far the
        shares are from the predicted ones is spread over the targets. The gradient is that of the mixture's
        negative log likelihood with fixed variance, times twice the variance.
        """
        seen_BS, target_BT = self.tensor(batch.seen_BS), self.tensor(batch.target_BT)
        state_BH = self.states_after(self.batch_tokens(batch, generator), seen_BS)
        action_BKTA, logit_BK = self.mixture(state_BH)
        wanted_B1TA = self.actions(self.tensor(batch.action_BTA)).unsqueeze(1)
        error_BKT = (action_BKTA - wanted_B1TA).square().mean(dim=3) * target_BT.unsqueeze(1)
        temperature = 2 * self.config.spread**2 / self.action_size
        log_BK = logit_BK.log_softmax(dim=1)
        share_BK = (log_BK - error_BKT.sum(dim=2) / temperature).softmax(dim=1).detach()
        surprise_B1 = (share_BK * (share_BK.clamp_min(1e-9).log() - log_BK)).sum(dim=1, keepdim=True)
        spread_BT = target_BT * temperature * surprise_B1 / target_BT.sum(dim=1, keepdim=True)
        error_BT: Tensor = (share_BK.unsqueeze(2) * error_BKT).sum(dim=1) + spread_BT
        return error_BT

    def initial_state(self, count: int) -> Tensor:
        return torch.zeros(count, self.config.hidden, device=self.device)

    def advance(self, state_BH: Tensor, token_BE: Tensor) -> Tensor:
        _, state_1BH = self.gru(token_BE.unsqueeze(1), state_BH.unsqueeze(0))
        after_BH: Tensor = state_1BH.squeeze(0)
        return after_BH

    def decide(self, state_BH: Tensor, rng: np.random.Generator) -> NDArray[np.float32]:
        action_BKTA, logit_BK = self.mixture(state_BH)
        # The component with the largest logit plus Gumbel noise is one drawn by the shares.
        noise_BK = self.tensor(rng.gumbel(size=logit_BK.shape).astype(np.float32))
        chosen_B = (logit_BK + noise_BK).argmax(dim=1)
        action_BTA = action_BKTA[torch.arange(len(state_BH), device=self.device), chosen_B]
        bounded_BTA = action_BTA.clamp(self.actions.low, self.actions.high)
        return self.actions.invert(bounded_BTA).cpu().numpy()

    def states_after(self, token_BSE: Tensor, seen_BS: Tensor) -> Tensor:
        """Return the states (B, H) after the last of the observed steps.

        Steps that were not seen come first in a window. They are moved behind the seen ones, where they
        change no state that is used.
        """
        count_B1 = seen_BS.sum(dim=1, keepdim=True)
        place_S = torch.arange(seen_BS.shape[1], device=self.device)
        order_BS1 = ((place_S - count_B1) % seen_BS.shape[1]).unsqueeze(2)
        state_BSH, _ = self.gru(token_BSE.gather(1, order_BS1.expand_as(token_BSE)))
        last_B1H = (count_B1 - 1).unsqueeze(2).expand(-1, -1, state_BSH.shape[2])
        state_BH: Tensor = state_BSH.gather(1, last_B1H).squeeze(1)
        return state_BH

    def mixture(self, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the components' normalised actions (B, K, T, A) and the logits (B, K) of their shares."""
        out_BKF = self.head(state_BH).unflatten(1, (self.config.components, -1))
        action_BKTA = out_BKF[..., :-1].unflatten(2, (self.horizon.positions, self.action_size))
        return action_BKTA, out_BKF[..., -1]
