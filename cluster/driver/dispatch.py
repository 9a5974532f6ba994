"""Gives orders to actors and takes results back, even if actors die or leave in between."""

import logging
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from longview.actors.worker import Order, Result
from longview.cluster.driver.collection import Hold
from longview.cluster.driver.orders import Orders
from longview.cluster.roles.ray import Handle
from longview.cluster.run.ending import RunFailed

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""Failures of an actor in a row after which the run fails."""

REST_SECONDS = 5.0
"""Time after which an idle actor reports what it waits for."""
LEAVING_SECONDS = 60.0
"""Time that a leaving actor gets to finish its order."""


@dataclass(eq=False)
class Actor:
    """A rollout actor, as the dispatcher knows it."""

    name: str
    """Name of the actor; stays the same when it restarts."""
    handle: Handle
    """Ray's handle on the actor."""
    node: str | None = None
    """The Ray node that the actor is on; None while it starts, waits for room, or restarts."""
    order: Order | None = None
    """The order that the actor is working on."""
    failures: int = 0
    """Failures in a row."""
    idle_since: float = field(default_factory=time.monotonic)
    """Monotonic time at which the actor's last result came, or at which it began to start."""
    rested: float = 0.0
    """Monotonic time at which the actor, idle, was last asked to report."""
    resting: Any = None
    """Ray's reference to the answer; None before the first."""
    held: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds without an order since its last order or report, by `Hold.part`."""
    leaves_by: float | None = None
    """Monotonic time by which the actor has to be gone; None if it stays."""


class Dispatcher:
    """Keeps every actor busy, and gives an order again if its actor dies. An actor gets no order before Ray
    has placed it, so an actor that waits for room holds up nothing."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._actors: list[Actor] = []
        self._looked = time.monotonic()
        """When orders were last given."""
        self._held: Hold | None = None
        """Why actors without an order have had to wait since then."""
        self._asked: dict[Any, Actor] = {}
        """Actors that owe an answer, by Ray's reference to it: a result, or the node that the actor is on."""
        self.restarts = Counter[str]()
        """Actors that were started again, by cause."""
        self.errors = 0
        """Orders that failed without the actor's death."""

    @property
    def names(self) -> set[str]:
        """Names of all actors, leaving ones included."""
        return {actor.name for actor in self._actors}

    @property
    def leaving(self) -> int:
        """Number of actors that are leaving."""
        return sum(actor.leaves_by is not None for actor in self._actors)

    @property
    def staying(self) -> int:
        """Number of actors that are not leaving, placed or not."""
        return len(self._actors) - self.leaving

    @property
    def there(self) -> int:
        """Number of actors that are not leaving and that Ray has placed."""
        return sum(actor.leaves_by is None and actor.node is not None for actor in self._actors)

    @property
    def versions(self) -> set[int]:
        """Policy versions of the orders under way."""
        orders = [actor.order for actor in self._actors if actor.order is not None]
        return {order.version for order in orders if order.version is not None}

    def add(self, name: str, handle: Handle) -> None:
        """Take on an actor, which may still be starting."""
        self._actors.append(Actor(name, handle))
        self._await(self._actors[-1])

    def let_go(self, count: int) -> None:
        """Have `count` actors leave. Actors that are not placed yet leave first, then those with the fewest
        others on their nodes, so that nodes become empty and the cluster can shrink. An actor finishes its
        order before it leaves; after `LEAVING_SECONDS` it is ended, and another actor gets the order."""
        staying = [actor for actor in self._actors if actor.leaves_by is None]
        together = Counter(actor.node for actor in staying)
        staying.sort(key=lambda actor: (actor.node is not None, together[actor.node], actor.node))
        for actor in staying[:count]:
            actor.leaves_by = time.monotonic() + LEAVING_SECONDS
            if actor.order is None:
                self._end(actor)

    def dispatch(
        self, newest: int | None, trained: int, weights: Callable[[int], tuple[list[Any], float]]
    ) -> None:
        """Give orders to all idle actors, first to those that have waited longest.

        Args:
            newest: the newest policy version.
            trained: training steps done, as last reported.
            weights: returns a version's bytes as a list of one Ray reference, and the seconds since the
                version was published.
        """
        busy = set(self._asked.values())
        since, self._looked = self._looked, time.monotonic()
        without_order = [actor for actor in self._actors if actor not in busy]
        for actor in without_order:
            if self._held is not None:
                # Not the part of the last turn in which the actor still worked.
                actor.held[self._held.part] += self._looked - max(since, actor.idle_since)
        idle = deque(sorted(without_order, key=attrgetter("idle_since")))
        while idle and (order := self._orders.take(newest, trained)) is not None:
            actor = idle.popleft()
            published, age = ([], 0.0) if order.version is None else weights(order.version)
            work = actor.handle.work.remote(order, newest, published, age, dict(actor.held))
            actor.order, actor.held = order, defaultdict(float)
            self._asked[work] = actor
        self._held = self._orders.held
        for actor in idle:
            due = self._looked - max(actor.rested, actor.idle_since) > REST_SECONDS
            # Calls to an actor that does not get to answer would fill this process's memory.
            if due and (actor.resting is None or ray.wait([actor.resting], timeout=0)[0]):
                actor.resting = actor.handle.rest.remote(dict(actor.held))
                actor.rested, actor.held = self._looked, defaultdict(float)

    def collect(self, timeout: float) -> Iterator[tuple[Order, Result]]:
        """Yield all results that have come, waiting up to `timeout` seconds for the first.

        Raises:
            RunFailed: an actor has failed `MAX_FAILURES` times in a row.
        """
        self._abandon()
        if not self._asked:
            time.sleep(timeout)
            return
        if not ray.wait(list(self._asked), timeout=timeout)[0]:
            return
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for reference in ready:
            actor = self._asked.pop(reference)
            order, actor.order, actor.idle_since = actor.order, None, time.monotonic()
            try:
                answer = ray.get(reference)
            except (RayActorError, RayTaskError) as error:
                actor.node = None
                if order is not None:
                    self._orders.give_back(order)
                if actor.leaves_by is None:
                    self._failed(actor, error)
                    self._await(actor)
            else:
                if order is None:
                    actor.node = answer
                else:
                    actor.failures = 0
                    if answer.worn and actor.leaves_by is None:
                        log.info("an actor has rendered for long enough, and is replaced by a new process")
                        ray.kill(actor.handle, no_restart=False)
                        self.restarts["worn"] += 1
                        self._await(actor)
                    yield order, answer
            if actor.leaves_by is not None:
                self._end(actor)

    def _await(self, actor: Actor) -> None:
        """Ask an actor for its node; it answers once Ray has placed it."""
        actor.node = None
        self._asked[actor.handle.node.remote()] = actor

    def _abandon(self) -> None:
        """End actors that have not left in time. Their orders then fail and are given back."""
        now = time.monotonic()
        for actor in self._actors:
            if actor.leaves_by is not None and now > actor.leaves_by:
                log.warning("%s has not finished its order in time, and is ended", actor.name)
                ray.kill(actor.handle)
                actor.leaves_by = math.inf

    def _end(self, actor: Actor) -> None:
        self._actors.remove(actor)
        if actor.node is None:
            self._asked = {reference: asked for reference, asked in self._asked.items() if asked is not actor}
            ray.kill(actor.handle)
        else:
            # A kill could lose the actor's last report, which may still be under way.
            actor.handle.__ray_terminate__.remote()

    def _failed(self, actor: Actor, error: Exception) -> None:
        log.warning("an actor failed: %s", error)
        if isinstance(error, RayActorError):
            self.restarts[cause_of(error)] += 1
        else:
            self.errors += 1
        actor.failures += 1
        if actor.failures >= MAX_FAILURES:
            cause = getattr(error, "cause", None) or error
            raise RunFailed(f"an actor failed {MAX_FAILURES} times in a row: {cause}") from error


def cause_of(death: RayActorError) -> str:
    """Name the cause of a Ray actor's death: `preempted` if its node was taken away, else `died`."""
    return "preempted" if death.preempted else "died"
