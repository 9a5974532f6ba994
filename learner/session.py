"""Acting with history.

Legend: B simulators of one call, N candidates of each, S observed steps (T_o), L steps of which tokens are
wanted, F frames, T action positions, P past ones, A action dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.policy import DiffusionPolicy

Frames = Mapping[str, NDArray[Any]]
"""Consecutive observations by key, (n, ...) each, oldest first."""
ENCODED_AT_ONCE = 64
"""Frames: of images, what so many need still fits a CPU's caches; more take it longer each."""


class PolicySession:
    """One policy acting in many simulators ("slots"), each with a history of its own.

    What belongs to step i of a slot's episode lies in place i modulo the longest context. A frame becomes a
    token when it comes, and never again with the same weights; after new ones, when a context needs it.
    """

    def __init__(self, policy: DiffusionPolicy, slots: int, version: int = 0) -> None:
        self._longest, spec = policy.horizon.context, policy.spec
        places = slots, self._longest
        self._frames = {
            key: np.zeros((*places, *array.shape), array.dtype) for key, array in spec.observation.items()
        }
        self._encoded = np.zeros(places, np.bool_)
        self._executed = np.zeros((*places, *spec.action.shape), np.float32)
        """NaN where the caller did not tell."""
        self._steps = np.zeros(slots, np.int64)
        """How many the slot's episode has so far."""
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
        # Laid out as images are: convolutions would bring their weights into that order at every call.
        policy.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.version, self._policy = version, policy
        self._tokens = policy.signal.new_zeros(*self._encoded.shape, policy.config.token_size)
        self._encoded[:] = False

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
            ValueError: T_o is out of range; or a slot has no new frame, or one that is not as the task says,
                or does not fit its actions. The histories are then as before.
        """
        policy, horizon, spec = self._policy, self._policy.horizon, self._policy.spec
        if not 1 <= T_o <= horizon.context:
            raise ValueError(f"T_o must be in 1..{horizon.context} for this policy, not {T_o}")
        told = list(zip(slots, new_frames, executed, reset, strict=True))
        new_B = [self._count(*each) for each in told]
        for each, count in zip(told, new_B, strict=True):
            self._remember(*each, count)
        slot_B1 = np.array(slots)[:, None]
        steps_B1 = self._steps[slot_B1]
        known_B1 = np.minimum(steps_B1, T_o)
        step_BS = steps_B1 + np.arange(-known_B1.max(), 0)
        rows, candidates = len(told), policy.config.candidates
        noise_NTA = rng.standard_normal((rows * candidates, horizon.positions, *spec.action.shape))
        with torch.inference_mode():
            self._encode(slot_B1, np.maximum(known_B1, np.array(new_B)[:, None]))
            # Where there is no such step the oldest one stands in, under a mask.
            token_BSE = self._tokens[slot_B1, step_BS.clip(0) % self._longest]
            action_NTA = policy.sample(token_BSE, step_BS >= 0, noise_NTA)
        action_BNTA = action_NTA.reshape(rows, candidates, *action_NTA.shape[1:])
        best_B = policy.closest(action_BNTA, self._past(slot_B1, known_B1))
        now = slice(horizon.past, horizon.past + horizon.execute)
        return action_BNTA[np.arange(rows), best_B, now].clip(spec.action.low, spec.action.high)

    def _count(self, slot: int, frames: Frames, executed: NDArray[np.float32], fresh: np.bool_) -> int:
        """How many new frames a slot has, if they and its actions are as they should be."""
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
        if fresh:
            self._steps[slot] = 0
        step_F = self._steps[slot] + np.arange(count)[-self._longest :]
        place_F = step_F % self._longest
        for key, history in self._frames.items():
            history[slot, place_F] = frames[key][-self._longest :]
        self._encoded[slot, place_F] = False
        # Those before each of the frames; the first ones may not have been told.
        before = np.full((count, *executed.shape[1:]), np.nan)
        before[count - len(executed) :] = executed
        self._executed[slot, (step_F - 1) % self._longest] = before[-self._longest :]
        self._steps[slot] += count

    def _encode(self, slot_B1: NDArray[np.int64], wanted_B1: NDArray[np.int64]) -> None:
        """Make tokens of those among each slot's so many newest frames that are none yet."""
        wanted_B1 = wanted_B1.clip(max=self._longest)
        step_BL = self._steps[slot_B1] + np.arange(-wanted_B1.max(), 0)
        place_BL = step_BL % self._longest
        wanted_BL = step_BL >= self._steps[slot_B1] - wanted_B1
        row_F, column_F = np.nonzero(wanted_BL & ~self._encoded[slot_B1, place_BL])
        slot_F, place_F = slot_B1[row_F, 0], place_BL[row_F, column_F]
        for start in range(0, len(slot_F), ENCODED_AT_ONCE):
            at = slot_F[start : start + ENCODED_AT_ONCE], place_F[start : start + ENCODED_AT_ONCE]
            frames = {key: history[at] for key, history in self._frames.items()}
            self._tokens[at] = self._policy.tokens(frames)
            self._encoded[at] = True

    def _past(self, slot_B1: NDArray[np.int64], known_B1: NDArray[np.int64]) -> NDArray[np.float32]:
        """What was executed at the past positions (B, P, A); NaN where the context does not reach."""
        age_P = np.arange(self._policy.horizon.past, 0, -1)
        place_BP = (self._steps[slot_B1] - 1 - age_P) % self._longest
        executed_BPA: NDArray[np.float32] = self._executed[slot_B1, place_BP]
        executed_BPA[age_P >= known_B1] = np.nan
        return executed_BPA
