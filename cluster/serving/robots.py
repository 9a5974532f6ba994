"""Robots that a server acts for: their places, their episodes, and the questions that their calls ask.

Legend (docs/notation.md): T action positions, A action dimensions.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longview.cluster.serving.calls import Call, CallError
from longview.cluster.serving.deciding import Question
from longview.cluster.serving.ensemble import ensembled

if TYPE_CHECKING:
    from longview.cluster.serving.recorder import Recording
    from longview.learner.session import PolicySession


class NoPlaceError(Exception):
    """Every place belongs to a robot that is connected."""


@dataclass(eq=False)
class Robot:
    """A robot and its episode under way."""

    slot: int
    """Place of the robot: its slot in every session."""
    rng: np.random.Generator
    """Source of the noise of its actions."""
    sent: NDArray[np.float32]
    """Actions (T_a, A) that were sent last; (0, A) before the first ones."""
    connection: Any = None
    """Connection that speaks for the robot; None while there is none."""
    left_at: float = field(default_factory=time.monotonic)
    """Monotonic time at which its last connection ended."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    """Secret by which another connection goes on with the episode."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lock that is held while a call is worked on."""
    session: "PolicySession | None" = None
    """Session that acts in the episode; None before the first call, and after an outcome."""
    steps: int = 0
    """Number of steps of the episode so far, skipped ones included."""
    chunks: deque[tuple[int, NDArray[np.float32]]] = field(default_factory=deque)
    """Decisions of the episode that reach the present step, as `ensembled` takes them."""
    called_at: float = field(default_factory=time.monotonic)
    """Monotonic time of the last call."""
    recording: "Recording | None" = None
    """Recording of the episode; None where none is made."""

    def question(
        self, call: Call, newest: "PolicySession", between: int, delay: int, *, reset: bool
    ) -> Question:
        """Make the question that a call asks.

        Args:
            call: the call.
            newest: session that acts if an episode begins.
            between: steps from one call to the next, where a call holds the present observation alone.
            delay: number of sent actions that are under way, unless the call says otherwise.
            reset: whether an episode begins.

        Raises:
            CallError: the executed actions do not fit the frames, or have to be given; or fewer actions than
                `delay` are left of those sent.
        """
        session = newest if reset or self.session is None else self.session
        reset = reset or self.session is None
        count, skipped, executed = call.count, call.skipped, call.executed
        held = len(next(iter(call.frames.values())))
        if skipped is None:
            skipped = between - 1 if call.single and not reset else 0
        since = count + skipped
        if executed is None:
            # A robot that does not say it has executed what it was sent.
            executed = self.sent[: 0 if reset else since]
        if len(executed) not in (count - 1, since - 1, 0 if reset else since):
            raise CallError(
                f"{len(executed)} executed actions do not fit {count} new frames after {skipped} skipped "
                f"steps: say by `executed` which {count - 1 if reset else since} were executed"
            )
        delay = 0 if reset else delay if call.delay is None else call.delay
        decided = self.sent[since : since + delay]
        if len(decided) < delay:
            raise CallError(
                f"delay {delay} needs as many actions under way, and {len(decided)} of the {len(self.sent)} "
                f"that were sent are left after {since} steps"
            )
        # Frames that are too old for any context are as good as skipped, with the actions before them.
        older = count - held
        if len(executed) == count - 1:
            executed = executed[older:]
        return Question(
            session, self.slot, call.frames, executed, skipped + older, decided, reset, call.T_o, self.rng
        )

    def answered(
        self, question: Question, actions_TA: NDArray[np.float32], decay: float | None
    ) -> NDArray[np.float32]:
        """Take in the answer to a question, and return the actions (T_a, A) to send.

        Args:
            question: the question.
            actions_TA: the answer.
            decay: decay of temporal ensembling, as for `ensembled`; None sends each decision as it is.
        """
        if question.reset:
            self.steps = 0
            self.chunks.clear()
        self.session, self.sent = question.session, actions_TA
        self.steps += question.skipped + question.count
        if decay is not None:
            now = self.steps - 1
            self.chunks.append((now, actions_TA))
            while now - self.chunks[0][0] >= len(actions_TA):
                self.chunks.popleft()
            self.sent = ensembled(self.chunks, now, decay)
            self.sent[: len(question.decided)] = question.decided
        return self.sent


class Robots:
    """Places of robots. A robot without a connection keeps its place for a while, unless another needs it."""

    def __init__(
        self,
        places: int,
        actions: int,
        keep_seconds: float,
        forget: Callable[[Robot], None],
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """
        Args:
            places: most robots at a time.
            actions: action dimensions A.
            keep_seconds: seconds for which a robot without a connection keeps its place.
            forget: called with a robot that loses its place.
            rng: makes the source of the noise of a robot's actions.
        """
        self._keep_seconds, self._forget, self._rng = keep_seconds, forget, rng
        self._nothing = np.empty((0, actions), np.float32)
        self._free = list(range(places))[::-1]
        self._robots: dict[str, Robot] = {}
        """Robots by token."""

    def __iter__(self) -> Iterator[Robot]:
        return iter(list(self._robots.values()))

    def enter(self, token: str | None) -> Robot:
        """Return the robot with a token; a new one if there is none.

        Raises:
            NoPlaceError: every place belongs to a robot that is connected.
        """
        robot = self._robots.get(token or "")
        if robot is None:
            if not self._free:
                self._make_room()
            robot = Robot(self._free.pop(), self._rng(), self._nothing)
            self._robots[robot.token] = robot
        return robot

    def leave(self, robot: Robot, connection: Any) -> None:
        """End what a connection does for a robot. Another one may have come in its place."""
        if robot.connection is connection:
            robot.connection, robot.left_at = None, time.monotonic()

    def sweep(self) -> None:
        """Forget the robots that have had no connection for too long."""
        for robot in self._away():
            if time.monotonic() - robot.left_at > self._keep_seconds:
                self.forget(robot)

    def forget(self, robot: Robot) -> None:
        """Take a robot's place away."""
        del self._robots[robot.token]
        self._free.append(robot.slot)
        self._forget(robot)

    def _make_room(self) -> None:
        """Forget the robot that has been away for longest."""
        away = self._away()
        if not away:
            raise NoPlaceError(f"all {len(self._robots)} places are taken")
        self.forget(min(away, key=lambda robot: robot.left_at))

    def _away(self) -> list[Robot]:
        """List the robots without a connection, except those whose last call is still worked on."""
        return [robot for robot in self if robot.connection is None and not robot.lock.locked()]
