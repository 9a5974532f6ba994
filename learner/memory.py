"""Memory of a session, slot by slot: tokens of the newest frames, or states of fixed size.

Legend (docs/notation.md): B slots of one call, S observed steps, F frames, P past steps, T action
positions, A action dimensions, E token features, Y chains of states, U units of a state, R rows: chains of
all slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from longview.learner.policy import Policy, RecurrentPolicy

Array = NDArray[Any]
Integers = NDArray[np.int64]

Stored = Callable[[Integers, Integers], Mapping[str, Array]]
"""Function of slots (F,) and steps (F,) of their episodes that returns the frames (F, ...) by key."""

Seen = Callable[[Integers, Integers], NDArray[np.bool_]]
"""Function of slots and steps of their episodes, in any shape, that tells which steps have a frame."""

History = Literal["own", "reversed"]
"""Past frames that a policy is shown: those of the slot's episode, or the same in reverse order."""

ENCODED_AT_ONCE = 64
"""Frames encoded per call. More images overflow a CPU's caches and take longer each."""

CHAINS = 4
"""Chains of states per slot of a recurrent policy. Each chain starts anew every T_o steps, T_o / `CHAINS`
after the one before it. The oldest chain has seen more than (1 - 1 / CHAINS) T_o and at most T_o of the
newest steps."""


class Memory(ABC):
    """Memory of one policy for many slots. Steps count from the start of a slot's episode."""

    @abstractmethod
    def forget(self, slot: int) -> None:
        """Forget a slot's episode, because a new one begins."""

    @abstractmethod
    def sample(
        self,
        slot_B: Integers,
        steps_B: Integers,
        new_B: Integers,
        T_o: int,
        stored: Stored,
        seen: Seen,
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        """Take in the newest frames, then choose actions (B, T, A) as `Policy.sample` does.

        Args:
            slot_B: slots that decide, each once.
            steps_B: number of steps of each slot's episode so far, the present one included.
            new_B: number of each slot's newest frames that came since its last decision.
            T_o: context length.
            stored: looks up frames of the session.
            seen: looks up which steps have a frame; the others are skipped steps.
            known_BTA: known actions of the first positions, as in `Policy.sample`.
            rngs: B sources of randomness, as in `Policy.sample`.
        """


def memory_of(policy: Policy, slots: int, history: History = "own") -> Memory:
    """Make an empty memory of the kind that a policy needs.

    Raises:
        ValueError: the policy carries a state, which cannot be shown another history.
    """
    if not isinstance(policy, RecurrentPolicy):
        return Tokens(policy, slots, history)
    if history != "own":
        raise ValueError(f"history {history!r} is not for a policy that carries a state from frame to frame")
    return States(policy, slots)


class Tokens(Memory):
    """Tokens of each slot's newest frames, as many as the longest context.

    Each slot has as many places as the longest context is long. The token of step i of an episode lies in
    place i modulo that number. A frame is encoded once, when a context needs it.
    """

    def __init__(self, policy: Policy, slots: int, history: History = "own") -> None:
        self._policy, self._longest, self._history = policy, policy.horizon.context, history
        self._sample = policy.sampler()
        self._tokens = torch.zeros(slots * self._longest, policy.token_size, device=policy.device)
        self._step = np.full((slots, self._longest), -1)
        """Step whose token lies in each place; -1 for none."""

    def forget(self, slot: int) -> None:
        self._step[slot] = -1

    def sample(
        self,
        slot_B: Integers,
        steps_B: Integers,
        new_B: Integers,
        T_o: int,
        stored: Stored,
        seen: Seen,
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        slot_B1, steps_B1 = slot_B[:, None], steps_B[:, None]
        known_B1 = np.minimum(steps_B1, T_o)
        self._encode(slot_B1, steps_B1, np.maximum(known_B1, new_B[:, None]), stored, seen)
        step_BS = steps_B1 + np.arange(-known_B1.max(), 0)
        # Steps without a frame are masked, whatever token lies in their places; before an episode's first
        # step it is the token of that step.
        step_BS = self._shown(step_BS)
        place_BS = slot_B1 * self._longest + step_BS.clip(0) % self._longest
        token_BSE = functional.embedding(self._policy.tensor(place_BS), self._tokens)
        return self._sample(token_BSE, (step_BS >= 0) & seen(slot_B1, step_BS), known_BTA, rngs)

    def _shown(self, step_BS: Integers) -> Integers:
        """Return the steps of the frames that the policy is shown; a negative step is none.

        Args:
            step_BS: steps of the contexts, oldest first; the last is now.
        """
        if self._history == "own" or step_BS.shape[1] == 1:
            return step_BS
        past_BP, now_B1 = step_BS[:, :-1], step_BS[:, -1:]
        oldest_B1 = past_BP.clip(0).min(axis=1, keepdims=True)
        reversed_BP = np.where(past_BP < 0, -1, oldest_B1 + now_B1 - 1 - past_BP)
        return np.concatenate((reversed_BP, now_B1), axis=1)

    def _encode(
        self, slot_B1: Integers, steps_B1: Integers, wanted_B1: Integers, stored: Stored, seen: Seen
    ) -> None:
        """Encode the frames of each slot's `wanted_B1` newest steps, except those encoded before."""
        wanted_B1 = wanted_B1.clip(max=self._longest)
        step_BS = steps_B1 + np.arange(-wanted_B1.max(), 0)
        missing_BS = (self._step[slot_B1, step_BS % self._longest] != step_BS) & seen(slot_B1, step_BS)
        row_F, column_F = np.nonzero((step_BS >= steps_B1 - wanted_B1) & missing_BS)
        slot_F, step_F = slot_B1[row_F, 0], step_BS[row_F, column_F]
        place_F = slot_F * self._longest + step_F % self._longest
        self._tokens[self._policy.tensor(place_F)] = encoded(self._policy, stored, slot_F, step_F)
        self._step.reshape(-1)[place_F] = step_F


class States(Memory):
    """States of a recurrent policy, `CHAINS` for each slot at every context length.

    A state cannot forget its oldest step. Therefore a chain of states starts anew every T_o steps, and the
    oldest chain decides. Chain y starts at the steps that equal y T_o / CHAINS modulo T_o. A skipped step
    changes no state, but a chain may start with it.
    """

    def __init__(self, policy: RecurrentPolicy, slots: int) -> None:
        self._policy = policy
        self._initial_1U = policy.initial_state(1)
        self._states = self._initial_1U.repeat(slots, CHAINS, 1)
        self._taken_in = np.zeros(slots, np.int64)
        """Number of steps of each slot's episode that its states have taken in."""
        self._T_o = np.zeros(slots, np.int64)
        """Context length of each slot's states; 0 for a slot without states."""

    def forget(self, slot: int) -> None:
        self._T_o[slot] = 0

    def sample(
        self,
        slot_B: Integers,
        steps_B: Integers,
        new_B: Integers,
        T_o: int,
        stored: Stored,
        seen: Seen,
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        first_B = np.where(self._T_o[slot_B] == T_o, self._taken_in[slot_B], 0)
        first_B = np.maximum(first_B, steps_B - T_o)
        pending_B = steps_B - first_B
        # The first pending frame of each slot, then the second ones, and so on.
        place_F, row_F = np.nonzero(np.arange(pending_B.max())[:, None] < pending_B)
        slot_F, step_F = slot_B[row_F], first_B[row_F] + place_F
        seen_F = seen(slot_F, step_F)
        tensor, known = self._policy.tensor, np.flatnonzero(seen_F)
        token_FE = torch.zeros(len(step_F), self._policy.token_size, device=self._policy.device)
        token_FE[tensor(known)] = encoded(self._policy, stored, slot_F[known], step_F[known])
        begins_FY = step_F[:, None] % T_o == np.arange(CHAINS) * T_o // CHAINS
        begins_FY |= step_F[:, None] == np.maximum(steps_B - T_o, 0)[row_F, None]
        frames = (tensor(slot_F), token_FE, tensor(begins_FY), tensor(seen_F))
        counts = np.bincount(place_F).tolist()
        for frame in zip(*(torch.split(part, counts) for part in frames), strict=True):
            self._advance(*frame)
        self._taken_in[slot_B], self._T_o[slot_B] = steps_B, T_o
        oldest = tensor(slot_B), tensor(self._oldest(steps_B, T_o))
        return self._policy.decide(self._states[oldest], rngs)

    def _advance(self, slot_B: Tensor, token_BE: Tensor, begins_BY: Tensor, seen_B: Tensor) -> None:
        """Advance the states of slots by one step each, if it was seen. Chains that begin with this step
        start anew."""
        state_BYU = torch.where(begins_BY.unsqueeze(2), self._initial_1U, self._states[slot_B])
        token_RE = token_BE.repeat_interleave(CHAINS, dim=0)
        after_BYU = self._policy.advance(state_BYU.flatten(0, 1), token_RE).view_as(state_BYU)
        self._states[slot_B] = torch.where(seen_B[:, None, None], after_BYU, state_BYU)

    @staticmethod
    def _oldest(steps_B: Integers, T_o: int) -> Integers:
        """Find each slot's oldest chain: (B,). At the start of an episode, all chains begin together."""
        age_BY = (steps_B[:, None] - 1 - np.arange(CHAINS) * T_o // CHAINS) % T_o
        oldest_B: Integers = np.minimum(age_BY, steps_B[:, None] - 1).argmax(axis=1)
        return oldest_B


def encoded(policy: Policy, stored: Stored, slot_F: Integers, step_F: Integers) -> Tensor:
    """Encode frames as tokens (F, E), `ENCODED_AT_ONCE` at a time."""
    starts = range(0, len(slot_F), ENCODED_AT_ONCE)
    parts = [slice(start, start + ENCODED_AT_ONCE) for start in starts]
    tokens = [policy.tokens(stored(slot_F[part], step_F[part])) for part in parts]
    return torch.cat(tokens) if tokens else torch.empty(0, policy.token_size, device=policy.device)
