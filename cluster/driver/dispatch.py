"""Orders to actors and results back, whatever dies or leaves in between."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from longview.actors.worker import Order, Result
from longview.cluster.driver.orders import Orders
from longview.cluster.roles.ray import Handle

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""An actor that fails this often in a row will not get further by itself."""

LEAVING_SECONDS = 60.0
"""So long an actor that is to leave has to finish its order."""


class RunFailed(Exception):
    """The run cannot go on; all that it had is saved."""


@dataclass(eq=False)
class Actor:
    """A rollout actor, as the dispatcher knows it."""

    name: str
    handle: Handle
    node: str | None = None
    """The Ray node that it is on; None while it starts, waits for room, or comes back."""
    order: Order | None = None
    """What it is at."""
    failures: int = 0
    """In a row."""
    leaves_by: float | None = None
    """When it is to be gone, by the monotonic clock; None if it is to stay."""


class Dispatcher:
    """Keeps every actor busy with orders, and gives an order again if its actor dies over it. An actor gets
    none before it is there, so that one that waits for room holds up nothing."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._actors: list[Actor] = []
        self._asked: dict[Any, Actor] = {}
        """By the answer to come: to its order, or else to where it is. An idle actor is asked nothing."""
        self.restarts = Counter[str]()
        """Actors that were started again, by cause."""
        self.errors = 0
        """Orders that failed without the actor's death."""

    @property
    def names(self) -> set[str]:
        """Of all actors, leaving ones included."""
        return {actor.name for actor in self._actors}

    @property
    def leaving(self) -> int:
        """How many actors are about to leave."""
        return sum(actor.leaves_by is not None for actor in self._actors)

    @property
    def staying(self) -> int:
        """How many actors are not, wherever they are."""
        return len(self._actors) - self.leaving

    @property
    def there(self) -> int:
        """How many of these are there."""
        return sum(actor.leaves_by is None and actor.node is not None for actor in self._actors)

    @property
    def versions(self) -> set[int]:
        """Versions that orders under way act with."""
        orders = [actor.order for actor in self._actors if actor.order is not None]
        return {order.version for order in orders if order.version is not None}

    def add(self, name: str, handle: Handle) -> None:
        """An actor more, which may have been started just now."""
        self._actors.append(Actor(name, handle))
        self._await(self._actors[-1])

    def let_go(self, count: int) -> None:
        """Have so many actors leave: first those that are not there yet, then those with the fewest others
        on their nodes, so that nodes become empty and the cluster can shrink. One with an order finishes that
        first; if it takes longer than `LEAVING_SECONDS`, it is ended, and another gets the order."""
        staying = [actor for actor in self._actors if actor.leaves_by is None]
        together = Counter(actor.node for actor in staying)
        staying.sort(key=lambda actor: (actor.node is not None, together[actor.node], actor.node))
        for actor in staying[:count]:
            actor.leaves_by = time.monotonic() + LEAVING_SECONDS
            if actor.order is None:
                self._end(actor)

    def dispatch(self, newest: int | None, weights: Callable[[int], tuple[list[Any], float]]) -> None:
        """Give orders to all idle actors.

        Args:
            newest: the newest version.
            weights: of a version: references to its bytes, and the seconds since it was published.
        """
        busy = set(self._asked.values())
        for actor in self._actors:
            if actor in busy:
                continue
            if (order := self._orders.take(newest)) is None:
                return
            held, age = ([], 0.0) if order.version is None else weights(order.version)
            actor.order = order
            self._asked[actor.handle.work.remote(order, newest, held, age)] = actor

    def collect(self, timeout: float) -> Iterator[tuple[Order, Result]]:
        """Results that have come, waiting up to `timeout` seconds for the first.

        Raises:
            RunFailed: an actor fails again and again.
        """
        self._abandon()
        if not self._asked:
            time.sleep(timeout)
            return
        ready, _ = ray.wait(list(self._asked), timeout=timeout)
        for reference in ready:
            actor = self._asked.pop(reference)
            order, actor.order = actor.order, None
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
        """Ask where it is, which it answers once it is there."""
        actor.node = None
        self._asked[actor.handle.node.remote()] = actor

    def _abandon(self) -> None:
        """End those that have not left in time; their orders then fail, and are given back."""
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
            # Not killed: its last report may still be under way.
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
    """Why a Ray actor has to be started again: its node was taken away (`preempted`), or it just `died`."""
    return "preempted" if death.preempted else "died"
