"""Acting with history.

Legend: B simulators of one call, S observed steps (T_o), T action positions (T_p), A action dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.policy import DiffusionPolicy

Frames = Mapping[str, NDArray[Any]]
"""Consecutive observations by key, (n, ...) each, oldest first."""


class PolicySession:
    """One policy acting in many simulators ("slots"), each with a history of its own.

    Histories hold raw frames, so new weights simply take over.
    """

    def __init__(self, policy: DiffusionPolicy, slots: int, version: int = 0) -> None:
        longest, observation = policy.horizon.context, policy.spec.observation
        self._history = {
            key: np.zeros((slots, longest, *spec.shape), spec.dtype) for key, spec in observation.items()
        }
        self._known = np.zeros(slots, np.int64)
        self._policy = policy
        self.load(version, policy)

    def load(self, version: int, policy: DiffusionPolicy) -> None:
        """Act with this policy from now on; histories stay.

        Raises:
            ValueError: it is a policy for another task or another longest context.
        """
        for name in ("spec", "horizon"):
            ours, theirs = getattr(self._policy, name), getattr(policy, name)
            if ours != theirs:
                raise ValueError(f"policy version {version} does not fit the session: {theirs}, not {ours}")
        self.version, self._policy = version, policy.eval()

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Frames],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """Actions (B, T_a, A) within the task's range, to be executed from each slot's newest frame on.

        Args:
            slots: which simulators decide, B of them.
            new_frames: for each, its frames since its last decision, the present one included.
            executed: for each, the actions (n, A) executed since then; empty right after a reset. They
                are checked against the frames, so that a slip in the caller shows.
            reset: (B,); true: a new episode began, forget this slot's history first.
            T_o: context length to act with, at most the policy's longest.
            rng: of the initial noise; the actions are a function of it and the histories.

        Raises:
            ValueError: T_o is out of range, or a slot has no new frame or does not fit its actions.
        """
        horizon, spec = self._policy.horizon, self._policy.spec
        if not 1 <= T_o <= horizon.context:
            raise ValueError(f"T_o must be in 1..{horizon.context} for this policy, not {T_o}")
        for slot, frames, actions, fresh in zip(slots, new_frames, executed, reset, strict=True):
            self._remember(slot, frames, len(actions), bool(fresh))
        index = np.asarray(slots)
        known_B = np.minimum(self._known[index], T_o)
        length = int(known_B.max())
        noise_BTA = rng.standard_normal((len(slots), horizon.positions, *spec.action.shape))
        with torch.inference_mode():
            action_BTA = self._policy.sample(
                {key: history[index, -length:] for key, history in self._history.items()},
                np.arange(-length, 0) >= -known_B[:, None],
                noise_BTA,
            )
        now = slice(horizon.past, horizon.past + horizon.execute)
        return action_BTA[:, now].clip(spec.action.low, spec.action.high)

    def _remember(self, slot: int, frames: Frames, executed: int, fresh: bool) -> None:
        count = len(next(iter(frames.values())))
        if count < 1 or executed not in ((0, count - 1) if fresh else (count - 1, count)):
            raise ValueError(f"slot {slot}: {executed} executed actions do not fit {count} new frames")
        if fresh:
            self._known[slot] = 0
        self._known[slot] += count
        for key, history in self._history.items():
            history[slot] = np.concatenate((history[slot], frames[key]))[-history.shape[1] :]
