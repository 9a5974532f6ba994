"""Decisions for many robots: their questions are gathered into batches, which a thread answers.

A session holds one version of the policy, with a slot for each robot. A robot keeps its session for a whole
episode, so no history moves from one version to another. A session that no robot holds is freed.

Legend (docs/notation.md): B robots of one batch, T action positions, A action dimensions.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longview.replay.episode import Array

if TYPE_CHECKING:
    from longview.learner.policy import Policy
    from longview.learner.session import PolicySession

WAIT_SECONDS = 0.002
"""Longest time for which a question waits for those of other robots."""


@dataclass(frozen=True, eq=False)
class Question:
    """Question of one robot: which actions from the newest frame on? See `PolicySession.act`."""

    session: "PolicySession"
    """Session of the robot's episode."""
    slot: int
    """Slot of the robot in its session."""
    frames: Mapping[str, Array]
    """New frames by key, oldest first."""
    executed: NDArray[np.float32]
    """Actions executed since the last decision."""
    skipped: int
    """Steps without a frame before the first new frame."""
    decided: NDArray[np.float32]
    """Actions under way: the robot executes them from the newest frame on, whatever is chosen."""
    reset: bool
    """Whether an episode begins."""
    T_o: int
    """Context length to decide with."""
    rng: np.random.Generator
    """Source of the noise of the robot's actions."""
    arrived: float = field(default_factory=time.monotonic)
    """Monotonic time of the question's arrival."""
    answer: "Future[NDArray[np.float32]]" = field(default_factory=Future)
    """The actions (T_a, A)."""

    @property
    def kind(self) -> "tuple[PolicySession, int]":
        """Session and T_o."""
        return self.session, self.T_o

    @property
    def count(self) -> int:
        """Number of new frames."""
        return len(next(iter(self.frames.values())))

    @property
    def slots(self) -> Sequence[int]:
        """The robot's slot alone."""
        return [self.slot]


class Decider:
    """Thread that answers questions in batches, each with one call of a session."""

    def __init__(self, robots: int, count: Callable[[int], None]) -> None:
        """
        Args:
            robots: most robots of a batch.
            count: called with the number of robots of each batch.
        """
        from longview.learner.inference import Gatherer

        self._gatherer = Gatherer[Question](robots, WAIT_SECONDS)
        self._count = count
        threading.Thread(target=self._decide, name="decider", daemon=True).start()

    def ask(self, question: Question) -> "Future[NDArray[np.float32]]":
        """Take in a question. A robot asks its next one once this one is answered."""
        question.answer.set_running_or_notify_cancel()  # from now on nobody can cancel it
        self._gatherer.put(question)
        return question.answer

    def _decide(self) -> None:
        from longview.learner.inference import answer

        while True:
            batch = self._gatherer.take()
            self._count(len(batch))
            answer(batch, _decided)


def _decided(batch: Sequence[Question]) -> NDArray[np.float32]:
    """Return the actions (B, T_a, A) for the questions of one batch."""
    return batch[0].session.act(
        [question.slot for question in batch],
        [question.frames for question in batch],
        [question.executed for question in batch],
        np.array([question.reset for question in batch]),
        batch[0].T_o,
        [question.rng for question in batch],
        [question.skipped for question in batch],
        [question.decided for question in batch],
    )


def warm_session(policy: "Policy", version: int, robots: int) -> "PolicySession":
    """Make a session for robots, and let it decide once: the first decision takes much longer than others.

    Args:
        policy: the policy.
        version: its version.
        robots: number of slots.
    """
    from longview.learner.session import PolicySession

    session, spec = PolicySession(policy, robots, version), policy.spec
    frames = {key: np.zeros((1, *array.shape), array.dtype) for key, array in spec.observation.items()}
    nothing = np.empty((0, *spec.action.shape), np.float32)
    session.act([0], [frames], [nothing], np.array([True]), policy.horizon.context, [np.random.default_rng()])
    return session
