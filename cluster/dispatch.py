"""Orders to actors and results back, whatever dies in between."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.worker import Order, Result
from cluster.orders import Orders
from cluster.roles import Handle

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""An actor that fails this often in a row will not get further by itself."""


class RunFailed(Exception):
    """The run cannot go on; all that it had is saved."""


class Dispatcher:
    """Keeps every actor busy with orders, and gives an order again if its actor dies over it."""

    def __init__(self, actors: Sequence[Handle], orders: Orders) -> None:
        self._idle = list(actors)
        self._orders = orders
        self._under_way: dict[Any, tuple[Handle, Order]] = {}
        self._failures: dict[Handle, int] = dict.fromkeys(actors, 0)
        self.restarts = Counter[str]()
        """Actors that were started again, by cause."""
        self.errors = 0
        """Orders that failed without the actor's death."""

    def dispatch(self, newest: int | None, weights: Callable[[int], tuple[list[Any], float]]) -> None:
        """Give orders to all idle actors.

        Args:
            newest: the newest version.
            weights: of a version: references to its bytes, and the seconds since it was published.
        """
        while self._idle and (order := self._orders.take(newest)) is not None:
            actor = self._idle.pop(0)
            held, age = ([], 0.0) if order.version is None else weights(order.version)
            self._under_way[actor.work.remote(order, newest, held, age)] = (actor, order)

    def collect(self, timeout: float) -> Iterator[tuple[Order, Result]]:
        """Results that have come, waiting up to `timeout` seconds for the first.

        Raises:
            RunFailed: an actor fails again and again.
        """
        if not self._under_way:
            time.sleep(timeout)
            return
        ready, _ = ray.wait(list(self._under_way), timeout=timeout)
        for reference in ready:
            actor, order = self._under_way.pop(reference)
            try:
                result = ray.get(reference)
            except (RayActorError, RayTaskError) as error:
                self._orders.give_back(order)
                self._failed(actor, error)
            else:
                self._failures[actor] = 0
                if result.worn:
                    log.info("an actor has rendered for long enough, and is replaced by a new process")
                    ray.kill(actor, no_restart=False)
                    self.restarts["worn"] += 1
                yield order, result
            self._idle.append(actor)

    @property
    def versions(self) -> set[int]:
        """Versions that orders under way act with."""
        return {order.version for _, order in self._under_way.values() if order.version is not None}

    def _failed(self, actor: Handle, error: Exception) -> None:
        log.warning("an actor failed: %s", error)
        if isinstance(error, RayActorError):
            self.restarts[cause_of(error)] += 1
        else:
            self.errors += 1
        self._failures[actor] += 1
        if self._failures[actor] >= MAX_FAILURES:
            cause = getattr(error, "cause", None) or error
            raise RunFailed(f"an actor failed {MAX_FAILURES} times in a row: {cause}") from error


def cause_of(death: RayActorError) -> str:
    """Why a Ray actor has to be started again: its node was taken away (`preempted`), or it just `died`."""
    return "preempted" if death.preempted else "died"
