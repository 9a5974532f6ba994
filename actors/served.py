"""Acting with a policy that a server holds for many actors.

The server keeps the history of each simulator, and may lose it. The actor therefore keeps the newest T_o
frames of each episode under way, and sends them again if the server asks for them. The recorded steps are no
substitute: an evaluation records none, and a recorder sends chunks away while the episode goes on.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longview.replay.episode import Array

Frames = Mapping[str, Array]


class Send(Protocol):
    """Function that sends a request to a server."""

    def __call__(
        self,
        *,
        T_o: int,
        slots: Sequence[int],
        reset: NDArray[np.bool_],
        steps: NDArray[np.int64],
        counts: NDArray[np.int64],
        frames: Frames,
        executed: NDArray[np.float32],
        noise: Sequence[Mapping[str, Any]],
        decided: Sequence[NDArray[np.float32]] | None,
    ) -> Callable[[], NDArray[np.float32] | None]:
        """Send a request, and return a function that waits for its answer: actions (B, T_a, A); None if the
        server has lost a history.

        Args:
            T_o: context length to decide with.
            slots: B numbers of simulators.
            reset: (B,), true where the history up to now is to be forgotten first.
            steps: (B,), number of steps of each episode before its first new frame.
            counts: (B,), number of new frames of each simulator.
            frames: new frames (F, ...) by key, simulator after simulator, each oldest first.
            executed: (n, A), executed actions in the same order: one for each new frame, except the first one
                after a reset.
            noise: state of the generator of each simulator's noise.
            decided: for each simulator, (n, A): actions from now on that are decided already; None: none are.
        """


@dataclass
class _History:
    """Newest frames of one simulator's episode, and the actions executed before them."""

    steps: int = 0
    """Number of steps of the episode so far."""
    kept: int = 0
    """Number of the newest steps that are kept."""
    parts: deque[tuple[Frames, NDArray[np.float32]]] = field(default_factory=deque)
    """Frames and executed actions between two decisions, oldest first."""

    def add(self, frames: Frames, executed: NDArray[np.float32], T_o: int) -> None:
        """Add new frames, and drop those that no decision with T_o needs."""
        self.parts.append((frames, executed))
        self.steps, self.kept = self.steps + _count(frames), self.kept + _count(frames)
        while self.kept - (oldest := _count(self.parts[0][0])) >= T_o:
            self.parts.popleft()
            self.kept -= oldest

    def newest(self, T_o: int) -> tuple[Frames, NDArray[np.float32]]:
        """Return up to T_o frames, and the actions executed between them."""
        count = min(T_o, self.kept)
        frames = {
            key: np.concatenate([part[key] for part, _ in self.parts])[-count:] for key in self.parts[0][0]
        }
        executed = np.concatenate([actions for _, actions in self.parts])
        return frames, executed[len(executed) - (count - 1) :]


class ServedPolicy:
    """Policy that a server holds; a `rollout.RemotePolicy`."""

    def __init__(self, execute: int, max_delay: int, send: Send) -> None:
        """
        Args:
            execute: T_a of the policy.
            max_delay: most actions of a simulator that may be decided already.
            send: sends a request to the server.
        """
        self.execute, self.max_delay = execute, max_delay
        self._send = send
        self._histories: dict[int, _History] = {}

    def act(self, *arguments: Any, **told: Any) -> NDArray[np.float32]:
        """Decide for B simulators, as `rollout.Policy.act`."""
        return self.ask(*arguments, **told)()

    def ask(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Frames],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
        *,
        decided: Sequence[NDArray[np.float32]] | None = None,
    ) -> Callable[[], NDArray[np.float32]]:
        """Ask for a decision, and return a function that waits for it, as `rollout.RemotePolicy.ask`."""
        self._histories |= {slot: _History() for slot, fresh in zip(slots, reset, strict=True) if fresh}
        histories = [self._histories[slot] for slot in slots]
        for history, frames, actions in zip(histories, new_frames, executed, strict=True):
            history.add(frames, actions, T_o)
        noise = [rng.bit_generator.state for rng in rngs]

        def send(
            reset: NDArray[np.bool_], parts: Sequence[tuple[Frames, NDArray[np.float32]]]
        ) -> Callable[[], NDArray[np.float32] | None]:
            counts = np.array([_count(frames) for frames, _ in parts])
            return self._send(
                T_o=T_o,
                slots=slots,
                reset=reset,
                steps=np.array([history.steps for history in histories]) - counts,
                counts=counts,
                frames={key: np.concatenate([frames[key] for frames, _ in parts]) for key in parts[0][0]},
                executed=np.concatenate([actions for _, actions in parts]),
                noise=noise,
                decided=decided,
            )

        answer = send(reset, list(zip(new_frames, executed, strict=True)))

        def wait() -> NDArray[np.float32]:
            actions = answer()
            while actions is None:
                actions = send(np.ones_like(reset), [history.newest(T_o) for history in histories])()
            return actions

        return wait


def _count(frames: Frames) -> int:
    return len(next(iter(frames.values())))
