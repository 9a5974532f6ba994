"""Inference for many clients: requests are gathered into batches, and a session of each version answers.

A client is an actor with simulators of its own. Several versions act at a time: while an evaluation acts with
one version, collection acts with a newer one. A client stays with one version for a whole episode, so no
history moves from one version to another.

A server may lose histories: it was restarted, dropped a version that nobody used, or needed more room. It
then answers None, and the client sends its newest frames again.

Legend (docs/notation.md): B slots of a request, F frames, T action positions, A action dimensions.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.config import Horizon
from longview.learner.policy import Policy
from longview.learner.session import Frames, PolicySession

log = logging.getLogger(__name__)

UNUSED_SECONDS = 60.0
"""Time after which a version that nobody used is dropped, once another one is loaded."""

Actions = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Request:
    """Request of one client to decide for B of its simulators."""

    client: str
    """Name of the client; stays the same when it restarts."""
    version: int
    """Policy version to decide with."""
    T_o: int
    """Context length to decide with."""
    slots: Sequence[int]
    """B numbers of simulators of the client."""
    reset: NDArray[np.bool_]
    """(B,), true where the history up to now is forgotten first."""
    steps: NDArray[np.int64]
    """(B,), number of steps of each episode before its first new frame. After a reset, these steps count as
    lost: the policy sees them masked."""
    counts: NDArray[np.int64]
    """(B,), number of new frames of each simulator."""
    frames: Frames
    """New frames (F, ...) by key, simulator after simulator, each oldest first."""
    executed: NDArray[np.float32]
    """(n, A), actions executed since the last decisions, in the same order: one for each new frame, except
    the first one after a reset."""
    noise: Sequence[Mapping[str, Any]]
    """State of the generator of each simulator's noise."""
    decided: Sequence[NDArray[np.float32]] | None = None
    """For each simulator, (n, A): actions from now on that are decided already; None: none are."""
    arrived: float = field(default_factory=time.monotonic)
    """Monotonic time of the request's arrival."""
    answer: Future[Actions | None] = field(default_factory=Future)
    """The actions (B, T_a, A); None if the server does not know a simulator's history."""

    @property
    def kind(self) -> tuple[int, int]:
        """Version and T_o."""
        return self.version, self.T_o


class Gathered(Protocol):
    """Part of a request that decides which batch it is in."""

    @property
    def kind(self) -> Hashable:
        """What the requests of one batch have in common: the weights and the T_o to decide with."""

    @property
    def slots(self) -> Sequence[int]:
        """Simulators or robots to decide for."""

    @property
    def arrived(self) -> float:
        """Monotonic time of the request's arrival."""

    @property
    def answer(self) -> Future[Any]:
        """Future that the batch's decision, or its error, is set on."""


Asked = TypeVar("Asked", bound=Gathered)


class Gatherer(Generic[Asked]):
    """Queue of requests that hands them out in batches. Thread-safe.

    All requests of a batch are of one kind. A batch is complete when its oldest request has
    waited for `wait_seconds`, or when it has `max_batch` simulators.
    """

    def __init__(self, max_batch: int, wait_seconds: float) -> None:
        """
        Args:
            max_batch: largest number of simulators of a batch; a larger request is a batch of its own.
            wait_seconds: longest time for which a request waits for others.
        """
        self._max_batch, self._wait_seconds = max_batch, wait_seconds
        self._waiting: list[Asked] = []
        self._arrived = threading.Condition()

    def put(self, request: Asked) -> None:
        """Add a request."""
        with self._arrived:
            self._waiting.append(request)
            self._arrived.notify()

    def take(self) -> list[Asked]:
        """Wait for the next batch, and take it off the queue."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting)
            oldest = self._waiting[0]
            left = oldest.arrived + self._wait_seconds - time.monotonic()
            self._arrived.wait_for(lambda: self._beside(oldest) >= self._max_batch, max(0.0, left))
            batch, simulators = [oldest], len(oldest.slots)
            for request in self._waiting[1:]:
                fits = simulators + len(request.slots) <= self._max_batch
                if fits and request.kind == oldest.kind:
                    batch.append(request)
                    simulators += len(request.slots)
            self._waiting = [request for request in self._waiting if request not in batch]
            return batch

    def _beside(self, oldest: Asked) -> int:
        """Count the simulators of all waiting requests that could be in one batch with the oldest."""
        return sum(len(request.slots) for request in self._waiting if request.kind == oldest.kind)


def answer(batch: Sequence[Asked], decide: Callable[[Sequence[Asked]], Iterable[Any]]) -> None:
    """Answer the requests of a batch. One that is wrong gets the error, and does not spoil the others.

    Args:
        batch: the requests.
        decide: returns the answers to some requests. What raises a ValueError is refused as a whole, and may
            be asked again in parts.
    """
    try:
        answers = decide(batch)
    except torch.AcceleratorError:
        log.critical("the device fails: this process ends, so that another one is started", exc_info=True)
        os._exit(1)
    except ValueError as error:
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
        else:
            for request in batch:
                answer([request], decide)
    except Exception as error:
        for request in batch:
            request.answer.set_exception(error)
    else:
        for request, found in zip(batch, answers, strict=True):
            request.answer.set_result(found)


class PolicyServer:
    """Policies that decide for many clients, in a thread of their own."""

    def __init__(
        self,
        slots: int,
        max_batch: int,
        wait_seconds: float,
        count: Callable[[int, Sequence[float]], None] = lambda simulators, waits: None,
    ) -> None:
        """
        Args:
            slots: number of all clients' simulators that is expected; more of them find room, too.
            max_batch: as for `Gatherer`.
            wait_seconds: as for `Gatherer`.
            count: called before each batch with its number of simulators, and the seconds that each of its
                requests has waited.
        """
        self._slots, self._count = slots, count
        self._gatherer = Gatherer[Request](max_batch, wait_seconds)
        self._versions: dict[int, _Version] = {}
        self._loading = threading.Lock()
        threading.Thread(target=self._serve, name="inference", daemon=True).start()

    def load(self, version: int, fetch: Callable[[], Policy]) -> Horizon:
        """Load a version, unless it is loaded already, and return its horizon.

        Args:
            version: version of the policy.
            fetch: returns the policy; called only if it is needed.
        """
        with self._loading:
            if version not in self._versions:
                policy, now = fetch(), time.monotonic()
                used = {
                    version: loaded
                    for version, loaded in self._versions.items()
                    if now - loaded.used_at < UNUSED_SECONDS
                }
                self._versions = used | {version: _Version(policy, self._slots)}
            return self._versions[version].policy.horizon

    def ask(self, request: Request) -> Future[Actions | None]:
        """Take in a request; its answer comes with the batch that it is in."""
        self._gatherer.put(request)
        return request.answer

    def _serve(self) -> None:
        while True:
            batch = self._gatherer.take()
            now = time.monotonic()
            simulators = sum(len(request.slots) for request in batch)
            self._count(simulators, [now - request.arrived for request in batch])
            answer(batch, self._decide)

    def _decide(self, batch: Sequence[Request]) -> Sequence[Actions | None]:
        """Decide for requests of one version and one T_o; None where a request goes on with an unknown
        history."""
        loaded = self._versions.get(batch[0].version)
        return [None] * len(batch) if loaded is None else loaded.decide(batch)


class _Version:
    """One version of the policy, and the simulators that it decides for."""

    def __init__(self, policy: Policy, slots: int) -> None:
        self.policy = policy
        self.used_at = time.monotonic()
        self._begin(slots)

    def _begin(self, slots: int) -> None:
        """Begin without any history."""
        self._session = PolicySession(self.policy, slots)
        self._places: dict[tuple[str, int], int] = {}
        """Slot of the session that each client's simulator has."""
        self._steps = np.zeros(slots, np.int64)
        """Number of steps of each slot's episode so far."""
        self._rngs = [np.random.default_rng() for _ in range(slots)]

    def decide(self, batch: Sequence[Request]) -> list[Actions | None]:
        """Answer requests of one T_o, each with the actions of its simulators."""
        self.used_at = time.monotonic()
        asking = {(request.client, slot) for request in batch for slot in request.slots}
        if (wanted := len(asking | self._places.keys())) > len(self._rngs):
            self._begin(2 * wanted)
        known = [request for request in newest(batch) if self._knows(request)]
        if not known:
            return [None] * len(batch)
        places = [
            self._places.setdefault((request.client, slot), len(self._places))
            for request in known
            for slot in request.slots
        ]
        for place, state in zip(places, (state for request in known for state in request.noise), strict=True):
            self._rngs[place].bit_generator.state = state
        reset, steps, counts = (
            np.concatenate([getattr(request, name) for request in known])
            for name in ("reset", "steps", "counts")
        )
        actions_BTA = self._session.act(
            places,
            [frames for request in known for frames in _frames(request)],
            [actions for request in known for actions in _executed(request)],
            reset,
            known[0].T_o,
            [self._rngs[place] for place in places],
            np.where(reset, steps, 0).tolist(),
            [actions for request in known for actions in self._decided(request)],
        )
        self._steps[places] = steps + counts
        ends = np.cumsum([len(request.slots) for request in known])[:-1]
        parts = iter(np.split(actions_BTA, ends))
        return [next(parts) if request in known else None for request in batch]

    def _decided(self, request: Request) -> Sequence[NDArray[np.float32]]:
        """Return the decided actions of each simulator of a request."""
        nothing = np.empty((0, *self.policy.spec.action.shape), np.float32)
        return [nothing] * len(request.slots) if request.decided is None else request.decided

    def _knows(self, request: Request) -> bool:
        """Tell whether the histories of a request's simulators end where the request goes on."""
        places = [self._places.get((request.client, slot)) for slot in request.slots]
        return all(
            fresh or (place is not None and self._steps[place] == steps)
            for place, fresh, steps in zip(places, request.reset, request.steps, strict=True)
        )


def newest(batch: Sequence[Request]) -> list[Request]:
    """Return the requests of a batch, without those whose simulators a later one asks for, too: their client
    has failed since, and does not wait for them any more."""
    later, kept = set[tuple[str, int]](), list[Request]()
    for request in reversed(batch):
        asking = {(request.client, slot) for slot in request.slots}
        if not asking & later:
            kept.append(request)
        later |= asking
    return kept[::-1]


def _frames(request: Request) -> list[Frames]:
    """Return the new frames of each simulator of a request."""
    ends = np.cumsum(request.counts)[:-1]
    parts = {key: np.split(frames, ends) for key, frames in request.frames.items()}
    return [{key: part[row] for key, part in parts.items()} for row in range(len(request.slots))]


def _executed(request: Request) -> list[NDArray[np.float32]]:
    """Return the executed actions of each simulator of a request."""
    return np.split(request.executed, np.cumsum(request.counts - request.reset)[:-1])
