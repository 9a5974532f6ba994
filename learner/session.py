"""Acting with history: one session keeps the histories of many simulators or robots.

Legend (docs/notation.md): B slots of one call, F frames, T action positions, P past positions, A action
dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.memory import History, memory_of
from longview.learner.policy import Policy

Frames = Mapping[str, NDArray[Any]]
"""Consecutive observations by key, each an array (n, ...), oldest first."""


class PolicySession:
    """Session in which one policy acts for many slots. A slot is one simulator or robot with its own history.

    The session stores the raw frames of the longest context, so that new weights can encode them again. Frame
    and action of step i of a slot's episode lie in place i modulo the longest context.
    """

    def __init__(self, policy: Policy, slots: int, version: int = 0, history: History = "own") -> None:
        """
        Args:
            policy: acts.
            slots: number of slots.
            version: version of the policy.
            history: past frames that the policy is shown, as in `memory_of`.
        """
        self._longest, spec = policy.horizon.context, policy.spec
        places = slots, self._longest
        self._frames = {
            key: np.zeros((*places, *array.shape), array.dtype) for key, array in spec.observation.items()
        }
        self._executed = np.zeros((*places, *spec.action.shape), np.float32)
        """Executed actions; NaN where the caller did not pass them."""
        self._steps = np.zeros(slots, np.int64)
        """Number of steps of each slot's episode so far, skipped ones included."""
        self._seen = np.zeros(places, np.bool_)
        """Whether the step in each place has a frame; false for a skipped step."""
        self._policy, self._history = policy, history
        self.load(version, policy)

    def load(self, version: int, policy: Policy) -> None:
        """Act with another policy from now on. The histories stay.

        Args:
            version: version of the policy.
            policy: policy for the same task and horizon.

        Raises:
            ValueError: the policy is for another task or another horizon.
        """
        for name in ("spec", "horizon"):
            ours, theirs = getattr(self._policy, name), getattr(policy, name)
            if ours != theirs:
                raise ValueError(f"policy version {version} does not fit the session: {theirs}, not {ours}")
        policy.eval()
        if policy.device.type == "cpu":
            # Images have this layout. With another one, convolutions would rearrange their weights at every
            # call.
            policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            # By default a GPU rounds what convolutions read to 10 bits, and would act otherwise than a CPU.
            torch.backends.cudnn.allow_tf32 = False
        self.version, self._policy = version, policy
        self._bounds = policy.action_bounds()
        self._memory = memory_of(policy, len(self._steps), self._history)

    @property
    def execute(self) -> int:
        """Number of actions that `act` chooses for each slot, T_a."""
        return self._policy.horizon.execute

    @property
    def max_delay(self) -> int:
        """Most actions that may be decided already when `act` is called."""
        return self._policy.horizon.max_delay

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Frames],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
        skipped: Sequence[int] | None = None,
        decided: Sequence[NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Choose actions (B, T_a, A) within `Policy.action_bounds`, to be executed from each newest frame on.

        Args:
            slots: the B slots that decide.
            new_frames: each slot's frames since its last decision, the present one included.
            executed: each slot's actions (n, A) executed since its last decision; empty right after a reset.
                Their number is checked against the frames, so that a mistake in the caller shows. After
                skipped steps, the actions up to the first new frame may be left out.
            reset: (B,); true where a new episode began, before which the slot's history is forgotten.
            T_o: context length, at most the policy's longest.
            rngs: source of randomness for each slot. A slot's actions are a function of it and the slot's
                history. They differ by rounding, at most about 1e-6, with the slots that decide beside it.
            skipped: for each slot, the number of steps whose frames were lost between its last decision and
                its first new frame; by default 0. The policy sees them masked, as missing.
            decided: for each slot, the actions (n, A) that are executed from the newest frame on, whatever is
                chosen; n is at most `max_delay`, by default 0. They are the first ones that are returned, and
                the other ones continue them.

        Raises:
            ValueError: T_o is out of range; a slot does not exist or is repeated; the arguments have
                different lengths; or a slot has no generator, no new frame, something else than arrays, a
                frame that does not fit the task, frames that do not fit its actions, or too many decided
                actions. The histories then stay as they were.
        """
        horizon = self._policy.horizon
        if not 1 <= T_o <= horizon.context:
            raise ValueError(f"T_o must be in 1..{horizon.context} for this policy, not {T_o}")
        skipped = [0] * len(slots) if skipped is None else skipped
        nothing = np.empty((0, *self._policy.spec.action.shape), np.float32)
        decided = [nothing] * len(slots) if decided is None else decided
        self._check(
            slots,
            new_frames=new_frames,
            executed=executed,
            reset=reset,
            rngs=rngs,
            skipped=skipped,
            decided=decided,
        )
        for slot, rng, ahead in zip(slots, rngs, decided, strict=True):
            if not isinstance(rng, np.random.Generator):
                raise ValueError(f"slot {slot}: rng is {_shown(rng)}, expected a generator")
            self._check_decided(slot, ahead)
        inputs = list(zip(slots, new_frames, executed, reset, skipped, strict=True))
        new_B = [self._count(*each) for each in inputs]
        for each, count in zip(inputs, new_B, strict=True):
            self._remember(*each, count)
        slot_B = np.array(slots, np.int64)
        steps_B = self._steps[slot_B]
        past_BPA = self._past(slot_B, np.minimum(steps_B, T_o))
        known_BTA = np.concatenate((past_BPA, self._ahead(decided)), axis=1)
        with torch.inference_mode():
            action_BTA = self._memory.sample(
                slot_B, steps_B, np.array(new_B), T_o, self._stored, self._was_seen, known_BTA, rngs
            )
        now = slice(horizon.past, horizon.past + horizon.execute)
        return action_BTA[:, now].clip(*self._bounds)

    def _check(self, slots: Sequence[int], **arguments: Any) -> None:
        """Refuse slots that do not exist or are repeated, and arguments that do not have an entry for each.

        Raises:
            ValueError: the message names the slots or the argument.
        """
        there = len(self._steps)
        if not len(slots) or any(slot not in range(there) for slot in slots):
            raise ValueError(f"slots must be some of 0..{there - 1}, not {list(slots)}")
        if len(set(slots)) < len(slots):
            raise ValueError(f"slots must not be repeated: {list(slots)}")
        for name, given in arguments.items():
            listed = given.ndim > 0 if isinstance(given, np.ndarray) else isinstance(given, Sequence)
            if not listed or len(given) != len(slots):
                found = f"{len(given)} entries" if listed else _shown(given)
                raise ValueError(f"{name} must have an entry for each of {len(slots)} slots, not {found}")

    def _check_decided(self, slot: int, decided: NDArray[np.float32]) -> None:
        """Refuse decided actions that are too many for the policy, or no actions of its task."""
        shape = self._policy.spec.action.shape
        if not isinstance(decided, np.ndarray) or decided.ndim == 0 or decided.shape[1:] != shape:
            sides = ", ".join(map(str, ("n", *shape)))
            raise ValueError(f"slot {slot}: decided actions are {_shown(decided)}, expected float32[{sides}]")
        if len(decided) > self.max_delay:
            raise ValueError(
                f"slot {slot}: {len(decided)} actions are decided already, but this policy was trained to "
                f"continue at most {self.max_delay} (learner.policy.max_delay)"
            )
        if not np.isfinite(decided).all():
            raise ValueError(f"slot {slot}: decided actions are not finite")

    def _count(
        self, slot: int, frames: Frames, executed: NDArray[np.float32], fresh: np.bool_, skipped: int
    ) -> int:
        """Check a slot's new frames and actions, and return the number of frames."""
        spec = self._policy.spec
        if not isinstance(frames, Mapping):
            raise ValueError(f"slot {slot}: new frames are {_shown(frames)}, expected arrays by key")
        arrays = [frame for key in spec.observation if isinstance(frame := frames.get(key), np.ndarray)]
        count = max((len(frame) for frame in arrays if frame.ndim), default=0)
        for key, array in spec.observation.items():
            frame, expected = frames.get(key), (count, *array.shape)
            if not isinstance(frame, np.ndarray) or frame.shape != expected or frame.dtype != array.dtype:
                raise ValueError(
                    f"slot {slot}: {key} is {_shown(frame)}, expected {array.dtype}{list(expected)}"
                )
            if array.dtype == "float32" and not np.isfinite(frame).all():
                bad = np.argwhere(~np.isfinite(frame))[0, 0]
                raise ValueError(f"slot {slot}: {key} is not finite in new frame {bad} of {count}")
        if skipped < 0 or skipped != int(skipped):
            raise ValueError(f"slot {slot}: skipped must be a number of steps, not {skipped}")
        if not isinstance(executed, np.ndarray) or not executed.ndim:
            raise ValueError(f"slot {slot}: executed actions are {_shown(executed)}, expected an array")
        since = count + skipped
        if count < 1 or len(executed) not in (count - 1, since - 1, 0 if fresh else since):
            gap = f" after {skipped} skipped" if skipped else ""
            raise ValueError(
                f"slot {slot}: {len(executed)} executed actions do not fit {count} new frames{gap}"
            )
        if executed.shape[1:] != spec.action.shape:
            shape = list(executed.shape[1:])
            raise ValueError(f"slot {slot}: executed actions are {shape}, expected {list(spec.action.shape)}")
        return count

    def _remember(
        self,
        slot: int,
        frames: Frames,
        executed: NDArray[np.float32],
        fresh: np.bool_,
        skipped: int,
        count: int,
    ) -> None:
        """Store a slot's skipped steps, new frames and actions."""
        if fresh:
            self._steps[slot] = 0
            self._memory.forget(slot)
        since = skipped + count
        row_F = np.arange(max(0, since - self._longest), since)
        place_F = (self._steps[slot] + row_F) % self._longest
        self._seen[slot, place_F] = row_F >= skipped
        for key, history in self._frames.items():
            history[slot, place_F[row_F >= skipped]] = frames[key][-self._longest :]
        # `before` holds the action before each step. The caller may not know the first ones.
        before, known = np.full((len(row_F), *executed.shape[1:]), np.nan), executed[-len(row_F) :]
        before[len(row_F) - len(known) :] = known
        self._executed[slot, (place_F - 1) % self._longest] = before
        self._steps[slot] += since

    def _stored(self, slot_F: NDArray[np.int64], step_F: NDArray[np.int64]) -> Frames:
        """Look up the frames (F, ...) by key at steps of the slots' episodes."""
        at = slot_F, step_F % self._longest
        return {key: history[at] for key, history in self._frames.items()}

    def _was_seen(self, slots: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Look up which steps of the slots' episodes have a frame, in any shape."""
        seen: NDArray[np.bool_] = self._seen[slots, steps % self._longest]
        return seen

    def _past(self, slot_B: NDArray[np.int64], known_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the executed actions (B, P, A) at the past positions; NaN before the context and at steps
        that were skipped, where the policy does not see what it would compare with them."""
        age_P = np.arange(self._policy.horizon.past, 0, -1)
        slot_B1, step_BP = slot_B[:, None], self._steps[slot_B, None] - 1 - age_P
        executed_BPA: NDArray[np.float32] = self._executed[slot_B1, step_BP % self._longest]
        executed_BPA[(age_P >= known_B[:, None]) | ~self._was_seen(slot_B1, step_BP)] = np.nan
        return executed_BPA

    def _ahead(self, decided: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the decided actions from now on, as many positions (B, T, A) as any slot has; NaN where a
        slot has fewer."""
        longest = max(map(len, decided))
        ahead_BTA = np.full((len(decided), longest, *self._policy.spec.action.shape), np.nan, np.float32)
        for row, actions in enumerate(decided):
            ahead_BTA[row, : len(actions)] = actions
        return ahead_BTA


def _shown(value: Any) -> str:
    """Describe what was given in place of an array."""
    if value is None:
        return "missing"
    return (
        f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    )
