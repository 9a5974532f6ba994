"""Orders to Ray actors and results back."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from longview.actors.worker import Order, Result
from longview.cluster.driver import dispatch
from longview.cluster.driver.collection import Hold
from longview.cluster.driver.dispatch import Dispatcher
from longview.cluster.driver.orders import Orders
from longview.cluster.roles.ray import Handle, start


@pytest.fixture(scope="module")
def actors() -> Iterator[list[Handle]]:
    """Three actors for all tests, since Ray takes seconds to start each."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield [start(QuickActor, num_cpus=0) for _ in range(3)]
    ray.shutdown()


class QuickActor:
    """A rollout actor that works for a tenth of a second on every order."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier test had it do."""
        self._done: list[Order] = []
        self._other: list[float] = []
        self._rested = 0.0
        self._idle_since = time.monotonic()

    def node(self) -> str:
        return "here"

    def rest(self, held: Mapping[str, float]) -> None:
        self._rested += held["limited"]

    def work(
        self, order: Order, newest: int | None, weights: list[Any], age: float, held: Mapping[str, float]
    ) -> Result:
        self._other.append(time.monotonic() - self._idle_since - held.get("limited", 0.0) - self._rested)
        self._rested = 0.0
        time.sleep(0.1)
        self._done.append(order)
        self._idle_since = time.monotonic()
        return Result({"success": order.count}, order.count)

    def rested(self) -> float:
        """Return the seconds for which the limiter made the actor wait that were reported since its last
        order."""
        return self._rested

    def done(self) -> list[Order]:
        """Return the orders that are done."""
        return self._done

    def other(self) -> list[float]:
        """Return the seconds before each order for which the limiter was not the reason to wait."""
        return self._other


class LateActor(QuickActor):
    """An actor that does not get to report before a file is there."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file, self._reports = file, 0

    def rest(self, held: Mapping[str, float]) -> None:
        while not self._file.exists():
            time.sleep(0.01)
        self._reports += 1

    def reports(self) -> int:
        return self._reports


class Waiting(Orders):
    """Orders that wait, as many as the limiter allows now."""

    def __init__(self) -> None:
        self.allowed, self.given = 0, 0

    def take(self, newest: int | None, trained: int = 0) -> Order | None:
        if self.given == self.allowed:
            return None
        self.given += 1
        return Order("demo", self.given, 1)

    @property
    def held(self) -> Hold | None:
        return Hold("limited", "the limiter allows no more") if self.given == self.allowed else None


def placed(orders: Orders, actors: list[Handle]) -> Dispatcher:
    """Have actors begin anew, and wait until a dispatcher knows their nodes."""
    ray.get([actor.begin.remote() for actor in actors])
    dispatcher = Dispatcher(orders)
    for index, actor in enumerate(actors):
        dispatcher.add(f"actor-{index}", actor)
    while dispatcher.there < len(actors):
        assert not list(dispatcher.collect(1.0))
    return dispatcher


def dispatched(dispatcher: Dispatcher, actors: list[Handle]) -> list[list[Order]]:
    """Give orders; return each actor's orders so far, once all are done."""
    dispatcher.dispatch(None, 0, lambda _: ([], 0.0))
    done: list[list[Order]] = ray.get([actor.done.remote() for actor in actors])
    return done


def test_all_results_that_have_come_are_taken_in_one_turn(actors: list[Handle]) -> None:
    orders = Waiting()
    dispatcher = placed(orders, actors)
    orders.allowed = 3
    assert [len(done) for done in dispatched(dispatcher, actors)] == [1] * 3
    assert sorted(order.first for order, _ in dispatcher.collect(10.0)) == [1, 2, 3]


def test_the_actor_that_has_waited_longest_for_the_limiter_is_the_next(actors: list[Handle]) -> None:
    orders = Waiting()
    dispatcher = placed(orders, actors)
    for turn in range(1, 7):
        orders.allowed = turn
        done = dispatched(dispatcher, actors)
        assert len(list(dispatcher.collect(10.0))) == 1
    assert [len(orders) for orders in done] == [2, 2, 2]


def test_an_actor_was_held_no_longer_than_it_was_idle(actors: list[Handle]) -> None:
    orders = Waiting()
    actor = actors[0]
    dispatcher = placed(orders, [actor])
    for turn in range(1, 6):
        orders.allowed = turn
        dispatched(dispatcher, [actor])
        assert len(list(dispatcher.collect(10.0))) == 1
        # The limiter holds the actor, and does so no longer in the next turn.
        dispatched(dispatcher, [actor])
    other = ray.get(actor.other.remote())
    assert len(other) == 5
    assert min(other) >= 0


def test_an_idle_actor_reports_while_it_waits(actors: list[Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "REST_SECONDS", 0.0)
    orders = Waiting()
    actor = actors[0]
    dispatcher = placed(orders, [actor])
    rested: list[float] = []
    for _ in range(3):
        dispatched(dispatcher, [actor])
        rested.append(ray.get(actor.rested.remote()))
    assert rested[0] < rested[1] < rested[2]
    orders.allowed = 1
    dispatched(dispatcher, [actor])
    (other,) = ray.get(actor.other.remote())
    assert other >= 0, "no second is reported twice"


def test_an_actor_that_does_not_get_to_report_is_asked_once(
    actors: list[Handle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "REST_SECONDS", 0.0)
    actor = start(LateActor, tmp_path / "go on", num_cpus=0)
    dispatcher = placed(Waiting(), [actor])
    for _ in range(20):
        dispatcher.dispatch(None, 0, lambda _: ([], 0.0))
    (tmp_path / "go on").touch()
    assert ray.get(actor.reports.remote()) == 1
    dispatcher.dispatch(None, 0, lambda _: ([], 0.0))
    assert ray.get(actor.reports.remote()) == 2
    ray.kill(actor)
