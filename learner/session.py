"""Acting with history.

Legend: B simulators of one call, F frames, T action positions, P past ones, A action dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.memory import memory_of
from longview.learner.policy import Policy

Frames = Mapping[str, NDArray[Any]]
"""Consecutive observations by key, (n, ...) each, oldest first."""


class PolicySession:
    """One policy acting in many simulators ("slots"), each with a history of its own.

    Raw frames of the longest context are kept, so that new weights can read them again. What belongs to step
    i of a slot's episode lies in place i modulo the longest context.
    """

    def __init__(self, policy: Policy, slots: int, version: int = 0) -> None:
        self._longest, spec = policy.horizon.context, policy.spec
        places = slots, self._longest
        self._frames = {
            key: np.zeros((*places, *array.shape), array.dtype) for key, array in spec.observation.items()
        }
        self._executed = np.zeros((*places, *spec.action.shape), np.float32)
        """Executed actions; NaN where the caller did not tell."""
        self._steps = np.zeros(slots, np.int64)
        """Steps of each slot's episode so far."""
        self._policy = policy
        self.load(version, policy)

    def load(self, version: int, policy: Policy) -> None:
        """Act with this policy from now on; histories stay.

        Raises:
            ValueError: it is a policy for another task or another longest context.
        """
        for name in ("spec", "horizon"):
            ours, theirs = getattr(self._policy, name), getattr(policy, name)
            if ours != theirs:
                raise ValueError(f"policy version {version} does not fit the session: {theirs}, not {ours}")
        # Images come in this layout: otherwise convolutions would rearrange their weights at every call.
        policy.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.version, self._policy = version, policy
        self._bounds = policy.action_bounds()
        self._memory = memory_of(policy, len(self._steps))

    @property
    def execute(self) -> int:
        """T_a: actions that `act` decides on for each slot."""
        return self._policy.horizon.execute

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Frames],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """Choose actions (B, T_a, A) within `Policy.action_bounds`, to be executed from each newest frame on.

        Args:
            slots: which simulators decide, B of them.
            new_frames: for each, its frames since its last decision, the present one included.
            executed: for each, the actions (n, A) executed since then; empty right after a reset. They
                are checked against the frames, so that a slip in the caller shows.
            reset: (B,); true: a new episode began, forget this slot's history first.
            T_o: context length to act with, at most the policy's longest.
            rng: source of the decision's randomness; the actions are a function of it and the histories.

        Raises:
            ValueError: T_o is out of range; or a slot has no new frame, or one that is not as the task says,
                or does not fit its actions. The histories are then as before.
        """
        horizon = self._policy.horizon
        if not 1 <= T_o <= horizon.context:
            raise ValueError(f"T_o must be in 1..{horizon.context} for this policy, not {T_o}")
        told = list(zip(slots, new_frames, executed, reset, strict=True))
        new_B = [self._count(*each) for each in told]
        for each, count in zip(told, new_B, strict=True):
            self._remember(*each, count)
        slot_B = np.array(slots, np.int64)
        steps_B = self._steps[slot_B]
        past_BPA = self._past(slot_B, np.minimum(steps_B, T_o))
        with torch.inference_mode():
            action_BTA = self._memory.sample(
                slot_B, steps_B, np.array(new_B), T_o, self._stored, past_BPA, rng
            )
        now = slice(horizon.past, horizon.past + horizon.execute)
        return action_BTA[:, now].clip(*self._bounds)

    def _count(self, slot: int, frames: Frames, executed: NDArray[np.float32], fresh: np.bool_) -> int:
        """Count a slot's new frames, if they and its actions are as they should be."""
        spec = self._policy.spec
        count = max((len(frames[key]) for key in spec.observation if key in frames), default=0)
        for key, array in spec.observation.items():
            frame, expected = frames.get(key), (count, *array.shape)
            if frame is None or frame.shape != expected or frame.dtype != array.dtype:
                found = "missing" if frame is None else f"{frame.dtype}{list(frame.shape)}"
                raise ValueError(f"slot {slot}: {key} is {found}, expected {array.dtype}{list(expected)}")
            if array.dtype == "float32" and not np.isfinite(frame).all():
                bad = np.argwhere(~np.isfinite(frame))[0, 0]
                raise ValueError(f"slot {slot}: {key} is not finite in new frame {bad} of {count}")
        if count < 1 or len(executed) not in ((0, count - 1) if fresh else (count - 1, count)):
            raise ValueError(f"slot {slot}: {len(executed)} executed actions do not fit {count} new frames")
        if executed.shape[1:] != spec.action.shape:
            shape = list(executed.shape[1:])
            raise ValueError(f"slot {slot}: executed actions are {shape}, expected {list(spec.action.shape)}")
        return count

    def _remember(
        self, slot: int, frames: Frames, executed: NDArray[np.float32], fresh: np.bool_, count: int
    ) -> None:
        """Store a slot's new frames and actions."""
        if fresh:
            self._steps[slot] = 0
            self._memory.forget(slot)
        step_F = self._steps[slot] + np.arange(count)[-self._longest :]
        place_F = step_F % self._longest
        for key, history in self._frames.items():
            history[slot, place_F] = frames[key][-self._longest :]
        # The action before each frame; the first ones may not have been told.
        before = np.full((count, *executed.shape[1:]), np.nan)
        before[count - len(executed) :] = executed
        self._executed[slot, (step_F - 1) % self._longest] = before[-self._longest :]
        self._steps[slot] += count

    def _stored(self, slot_F: NDArray[np.int64], step_F: NDArray[np.int64]) -> Frames:
        """Look up frames (F, ...) by key, of these slots and steps of their episodes."""
        at = slot_F, step_F % self._longest
        return {key: history[at] for key, history in self._frames.items()}

    def _past(self, slot_B: NDArray[np.int64], known_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what was executed at the past positions, (B, P, A); NaN where the context does not reach."""
        age_P = np.arange(self._policy.horizon.past, 0, -1)
        place_BP = (self._steps[slot_B, None] - 1 - age_P) % self._longest
        executed_BPA: NDArray[np.float32] = self._executed[slot_B[:, None], place_BP]
        executed_BPA[age_P >= known_B[:, None]] = np.nan
        return executed_BPA
