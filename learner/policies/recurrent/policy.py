"""Recurrent policy: a network over the frames of the last T_o steps predicts T_p actions.

Legend (docs/notation.md): B windows or robots, S observed steps (T_o), T action positions (T_p), A action
dimensions, E token features, U units of the state, M mixture components.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longview.learner.policies.recurrent.config import RecurrentConfig
from longview.learner.policy import RecurrentPolicy
from longview.learner.windows import Batch
from longview.replay.episode import TaskSpec


class LinearCell(nn.Module):
    """State that mixes in each token at a rate that follows from the token alone: minGRU, arXiv 2410.01201.

    It is called as `nn.GRU` with one layer and `batch_first`.
    """

    def __init__(self, size: int, units: int, longest: int) -> None:
        """
        Args:
            size: E.
            units: U.
            longest: longest context. Untrained units remember for one step up to as many, in even ratios, as
                in the chrono initialisation of arXiv 1804.11188.
        """
        super().__init__()
        self.rate_and_value = nn.Linear(size, 2 * units)
        with torch.no_grad():
            self.rate_and_value.bias[:units] = -torch.linspace(0, math.log(longest), units)

    def forward(self, token_BSE: Tensor, state_1BU: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logit_BSU, value_BSU = self.rate_and_value(token_BSE).chunk(2, dim=2)
        rate_BSU = logit_BSU.sigmoid()
        state_BU = torch.zeros_like(value_BSU[:, 0]) if state_1BU is None else state_1BU[0]
        states = []
        for rate_BU, value_BU in zip(rate_BSU.unbind(1), value_BSU.unbind(1), strict=True):
            state_BU = torch.lerp(state_BU, value_BU, rate_BU)
            states.append(state_BU)
        return torch.stack(states, dim=1), state_BU.unsqueeze(0)


class MixturePolicy(RecurrentPolicy):
    """Policy that predicts a mixture of whole chunks of actions from the state of a recurrent network.

    A component is a chunk, not a single action, so the executed actions belong to one plan. With one
    component this is regression. The recurrent baselines of arXiv 2108.03298 have mixtures of single actions.
    """

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig, spec: TaskSpec) -> None:
        super().__init__(config, spec)
        sizes = config.token_size, config.hidden
        self.cell = (
            nn.GRU(*sizes, batch_first=True)
            if config.cell == "gru"
            else LinearCell(*sizes, self.horizon.context)
        )
        outputs = config.components * (self.horizon.positions * self.action_size + 1)
        self.head = nn.Sequential(
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, outputs),
        )

    def compile_loss(self, **options: Any) -> None:
        # torch does not compile the cell itself.
        self.mixture_error = torch.compile(self.mixture_error, **options)  # type: ignore[method-assign]

    def error(self, batch: Batch[Any], generator: torch.Generator) -> Tensor:
        """Return the error of the mixture at each position: (B, T), 0 where there is no target."""
        token_BSE, seen_BS = self.batch_tokens(batch, generator), self.tensor(batch.seen_BS)
        return self.mixture_error(batch, self.states_after(token_BSE, seen_BS))

    def mixture_error(self, batch: Batch[Any], state_BU: Tensor) -> Tensor:
        """Return the error of the mixture that the states predict, as `error`.

        Each component's squared error is weighted by its posterior share of the window (expectation
        maximisation). The divergence of these shares from the predicted ones is spread over the targets. The
        gradient is that of the mixture's negative log likelihood with fixed variance, times twice the
        variance.
        """
        target_BT = self.tensor(batch.target_BT)
        action_BMTA, logit_BM = self.mixture(state_BU)
        wanted_B1TA = self.actions(self.tensor(batch.action_BTA)).unsqueeze(1)
        error_BMT = (action_BMTA - wanted_B1TA).square().mean(dim=3) * target_BT.unsqueeze(1)
        temperature = 2 * self.config.spread**2 / self.action_size
        log_BM = logit_BM.log_softmax(dim=1)
        share_BM = (log_BM - error_BMT.sum(dim=2) / temperature).softmax(dim=1).detach()
        surprise_B1 = (share_BM * (share_BM.clamp_min(1e-9).log() - log_BM)).sum(dim=1, keepdim=True)
        targets_B1 = target_BT.sum(dim=1, keepdim=True).clamp(min=1)
        spread_BT = target_BT * temperature * surprise_B1 / targets_B1
        error_BT: Tensor = (share_BM.unsqueeze(2) * error_BMT).sum(dim=1) + spread_BT
        return error_BT

    def initial_state(self, count: int) -> Tensor:
        return torch.zeros(count, self.config.hidden, device=self.device)

    def advance(self, state_BU: Tensor, token_BE: Tensor) -> Tensor:
        _, state_1BU = self.cell(token_BE.unsqueeze(1), state_BU.unsqueeze(0))
        after_BU: Tensor = state_1BU.squeeze(0)
        return after_BU

    def decide(self, state_BU: Tensor, rngs: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        action_BMTA, logit_BM = self.mixture(state_BU)
        # The largest logit plus Gumbel noise draws a component by its share.
        noise = [rng.gumbel(size=self.config.components) for rng in rngs]
        noise_BM = self.tensor(np.array(noise, np.float32))
        chosen_B = (logit_BM + noise_BM).argmax(dim=1)
        action_BTA = action_BMTA[torch.arange(len(state_BU), device=self.device), chosen_B]
        bounded_BTA = action_BTA.clamp(self.actions.low, self.actions.high)
        return self.actions.invert(bounded_BTA).cpu().numpy()

    def states_after(self, token_BSE: Tensor, seen_BS: Tensor) -> Tensor:
        """Return the states (B, U) after the last observed step.

        Steps that were not seen are moved behind the seen ones, where they change no state that is used.
        """
        count_B1 = seen_BS.sum(dim=1, keepdim=True)
        order_BS1 = (~seen_BS).byte().argsort(dim=1, stable=True).unsqueeze(2)
        state_BSU, _ = self.cell(token_BSE.gather(1, order_BS1.expand_as(token_BSE)))
        last_B1U = (count_B1 - 1).unsqueeze(2).expand(-1, -1, state_BSU.shape[2])
        state_BU: Tensor = state_BSU.gather(1, last_B1U).squeeze(1)
        return state_BU

    def mixture(self, state_BU: Tensor) -> tuple[Tensor, Tensor]:
        """Return the components' normalised actions (B, M, T, A) and the logits (B, M) of their shares."""
        outputs = self.head(state_BU).unflatten(1, (self.config.components, -1))
        action_BMTA = outputs[..., :-1].unflatten(2, (self.horizon.positions, self.action_size))
        return action_BMTA, outputs[..., -1]
