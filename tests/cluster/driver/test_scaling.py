"""Changes of the number of actors on several Ray nodes in this machine. No episode is lost or doubled."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from longview.actors.worker import Order, Result
from longview.cluster.driver import dispatch
from longview.cluster.driver.collection import Collection
from longview.cluster.driver.dispatch import Dispatcher
from longview.cluster.driver.orders import Orders
from longview.cluster.driver.scaling import REQUEST, Scaling, ask, parse, scaled_settings, still_scaled
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.ray import ALWAYS_BACK, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import ConfigError, RunConfig, read_config, task_of
from longview.cluster.run.folder import Run, RunError, create_run
from longview.cluster.run.preflight import refuse_unplaced
from longview.cluster.run.services import redis_server
from longview.replay.store import StoreAddress
from tests.cluster.nodes import LEAN_HEAD

CONFIG = [
    "actors.count=1",
    "actors.simulators=2",
    "learner.policy={widths: [16], token_size: 16}",
    "evaluation={final_episodes: 8, context_lengths: [1, 8]}",
    "replay.chunk_steps=4",
    "name=scaled",
]
VERSION = 7
QUICK_DEATHS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 5,
}
"""Settings with which Ray notices the death of a node within a second instead of twenty."""


class Slow(RolloutActor):
    """An actor whose orders take a while, so that a test meets it at work."""

    def __init__(self, seconds: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        for env in self._worker.envs:
            env.step = partial(slowly, env.step, seconds)  # type: ignore[method-assign]


def slowly(step: Callable[[Any], Any], seconds: float, action: Any) -> Any:
    time.sleep(seconds)
    return step(action)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "_system_config": QUICK_DEATHS, **LEAN_HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, namespace="scaling", log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def weights() -> bytes:
    from longview.learner.policy import policy_to_bytes

    config = read_config(None, CONFIG)
    return policy_to_bytes(config.learner.policy.make(task_of(config).spec))


class Driver:
    """The part of a run's driver that handles actors, turn by turn."""

    def __init__(self, folder: Path, url: str, weights: bytes, seconds: float) -> None:
        self.config = config = read_config(None, CONFIG)
        self.run = create_run(config, folder / "runs")
        address = StoreAddress(url, "scaled")
        self.store = address.connect(config.replay)
        self.store.register(task_of(config).spec)
        self.orders = Orders(config, task_of(config).spec, Collection(config, task_of(config).spec))
        self.dispatcher = Dispatcher(self.orders)
        self.hub = start(MetricsHub, "scaled", "127.0.0.1", 0, name=HUB, **ALWAYS_BACK)
        self.scaling = Scaling(
            self.run,
            config,
            self.dispatcher,
            start=lambda name: start(Slow, seconds, config, name, address, num_cpus=1, max_restarts=-1),
            refuse=lambda wanted: refuse_unplaced(wanted, [node["Resources"] for node in ray.nodes()]),
            cpus=None,
        )
        self.results: list[tuple[Order, Result]] = []
        self._weights = ray.put(weights)

    def turn(self) -> None:
        self.scaling.adjust()
        self.dispatcher.dispatch(VERSION, 0, lambda _: ([self._weights], 0.0))
        for order, result in self.dispatcher.collect(0.05):
            self.orders.finish(order, result)
            self.results.append((order, result))

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def busy(self) -> bool:
        """Whether all actors are placed and in the middle of an order."""
        actors = self.dispatcher._actors
        return self.dispatcher.there == self.scaling.target and all(actor.order for actor in actors)

    def scale(self, actors: int) -> None:
        """Request a number of actors, which the next turn accepts."""
        request = {"actors": actors, "id": time.time_ns()}
        (self.run.path / REQUEST).write_text(json.dumps(request))

    def end(self) -> None:
        """Let all actors go."""
        self.dispatcher.let_go(self.dispatcher.staying)
        ray.kill(self.hub)

    def assert_all_is_there_once(self, demonstrations: int) -> None:
        ids = self.store.ids("demo")
        assert len(ids) == demonstrations == len(set(ids))
        assert sum(self.store.read(id).length for id in ids) == self.store.stats().total.steps
        assert all(found.rolled_out == found.wanted for found in self.orders.evaluations.values())


@pytest.fixture
def drive(tmp_path: Path, cluster: Cluster, weights: bytes) -> Iterator[Callable[[float], Driver]]:
    """Make drivers whose actors' steps take the given seconds longer."""
    drivers = []
    with redis_server(tmp_path / "redis") as url:

        def make(seconds: float) -> Driver:
            drivers.append(Driver(tmp_path, url, weights, seconds))
            return drivers[-1]

        yield make
        for driver in drivers:
            driver.store.close()
            driver.run.unlock()


class Asking(threading.Thread):
    """`longview scale` in the background."""

    def __init__(self, run: Run, actors: int, timeout: float = 60, *, wait: bool = True) -> None:
        super().__init__(daemon=True)
        self.said: list[str] = []
        self.error: Exception | None = None
        self._ask = partial(ask, run, actors, timeout, self.said.append, wait=wait)
        self.start()

    def run(self) -> None:
        try:
            self._ask()
        except (ConfigError, RunError, TimeoutError) as error:
            self.error = error

    def done(self) -> bool:
        return not self.is_alive()


def test_actors_come_and_go_in_the_middle_of_their_orders(drive: Callable[[float], Driver]) -> None:
    driver = drive(0.003)
    driver.orders.demonstrate(range(24))
    driver.until(lambda: driver.results)
    up = Asking(driver.run, 3)
    driver.until(up.done)
    assert up.error is None
    assert up.said[0].startswith("1 of 3 actors are there, the others start or wait for room in the cluster")
    assert up.said[-1] == "scaled has 3 actors"
    assert driver.dispatcher.names == {"actor-0", "actor-1", "actor-2"}

    more = Asking(driver.run, 5)
    driver.until(more.done)
    assert "need 6 CPUs, this Ray cluster has 4" in str(more.error)
    assert driver.scaling.target == 3

    driver.until(lambda: driver.orders.idle)
    driver.orders.conclude(VERSION)
    driver.until(driver.busy)
    ((fuller, there),) = Counter(actor.node for actor in driver.dispatcher._actors).most_common(1)
    assert there == 2
    driver.scale(1)
    driver.scaling.adjust()
    assert driver.dispatcher.leaving == 2
    assert all(actor.order for actor in driver.dispatcher._actors)
    driver.until(lambda: not driver.dispatcher.leaving)
    # The other node is empty now, so the cluster could remove it.
    assert [actor.node for actor in driver.dispatcher._actors] == [fuller]

    quick = Asking(driver.run, 2, wait=False)
    driver.until(quick.done)
    assert quick.said == ["scaled now wants 2 actors"]
    assert driver.scaling.target == 2
    driver.until(lambda: driver.orders.idle)
    # No actor was interrupted: every order was given once, and its actor reported its result.
    assert driver.dispatcher.restarts.total() == driver.dispatcher.errors == 0
    done = Counter(order.purpose for order, _ in driver.results for _ in range(order.count))
    assert done == {"demo": 24, "evaluation": 16}
    driver.assert_all_is_there_once(24)
    answer, _ = driver.hub.exchange.remote(0, {})
    counted = ray.get(answer).snapshot["longview_episodes_total"]
    by_purpose: Counter[str] = Counter()
    for (_, source, _), count in counted.items():
        by_purpose[source] += int(count)
    assert by_purpose == done
    driver.end()


def test_who_does_not_finish_in_time_is_ended_and_another_gets_the_order(
    drive: Callable[[float], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LEAVING_SECONDS", 0.2)
    driver = drive(0.008)
    driver.scale(2)
    driver.orders.demonstrate(range(8))
    driver.until(driver.busy)
    driver.scale(1)
    driver.until(lambda: driver.dispatcher.leaving)
    driver.until(lambda: not driver.dispatcher.leaving)
    assert len(driver.store.ids("demo")) < 8
    driver.until(lambda: driver.orders.idle)
    driver.end()
    # The order may have been cut in two when it was given again.
    done = [range(order.first, order.first + order.count) for order, _ in driver.results]
    assert sorted(index for indices in done for index in indices) == list(range(8))
    driver.assert_all_is_there_once(8)


def test_a_node_that_goes_takes_nothing_along(drive: Callable[[float], Driver], cluster: Cluster) -> None:
    driver = drive(0.004)
    driver.scale(3)
    for demonstrations, graceful in ((28, True), (56, False)):
        driver.orders.demonstrate(range(demonstrations - 28, demonstrations))
        driver.until(driver.busy)
        ((id, there),) = Counter(actor.node for actor in driver.dispatcher._actors).most_common(1)
        assert there == 2
        (node,) = (node for node in cluster.worker_nodes if node.node_id == id)
        restarts = driver.dispatcher.restarts.total()
        cluster.remove_node(node, allow_graceful=graceful)
        driver.until(lambda restarts=restarts: driver.dispatcher.restarts.total() >= restarts + 2)
        # One actor has room on the other node. The second waits, and holds up nothing.
        driver.until(lambda: driver.orders.idle and driver.dispatcher.there == 2)
        assert driver.dispatcher.staying == 3
        driver.assert_all_is_there_once(demonstrations)

        cluster.add_node(num_cpus=2)
        driver.until(lambda: driver.dispatcher.there == 3)
    driver.end()


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    for text in ("actors=0", "actors=-1", "actors=2.5", "actors=", "actors", "learners=2", "actors=1e3"):
        with pytest.raises(ConfigError, match=f"expected actors=N.*{text}"):
            parse(text)
    assert parse("actors=12") == 12
    run = create_run(read_config(None, CONFIG), tmp_path)
    never = Asking(run, 3, timeout=0.3)
    never.join()
    assert isinstance(never.error, TimeoutError)
    assert "not done within 0.3 s: the run has not accepted it yet" in str(never.error)
    assert not (run.path / REQUEST).exists()
    run.unlock()
    with pytest.raises(RunError, match=r"scaled is not under way.*--resume scaled actors.count=3"):
        ask(run, 3, 1, print, wait=True)


def test_a_request_that_is_none_is_ignored(tmp_path: Path) -> None:
    config = read_config(None, CONFIG)
    run = create_run(config, tmp_path)
    orders = Orders(config, task_of(config).spec, Collection(config, task_of(config).spec))
    scaling = Scaling(run, config, Dispatcher(orders), Nobody, lambda _: None, cpus=2)
    for text in ("", "[]", "{", '{"actors": 3}', '{"actors": "3", "id": 1}', '{"actors": 0, "id": 1}'):
        (run.path / REQUEST).write_text(text)
        scaling.adjust()
        assert scaling.target == 1
        assert not (run.path / REQUEST).exists()
    assert run.state()["actors"]["request"] is None
    run.unlock()


class Nobody:
    """An actor that never starts."""

    def __init__(self, name: str) -> None:
        self.node = self

    def remote(self) -> object:
        return object()


def test_a_run_that_goes_on_keeps_its_actors(tmp_path: Path) -> None:
    """It does unless its config has another number than before."""

    def configured(actors: int) -> RunConfig:
        return read_config(None, [*CONFIG, f"actors.count={actors}"])

    def launched(actors: int) -> Scaling:
        config = configured(actors)
        orders = Orders(config, task_of(config).spec, Collection(config, task_of(config).spec))
        return Scaling(run, config, Dispatcher(orders), Nobody, lambda _: None, cpus=None)

    def scaled(scaling: Scaling, actors: int) -> None:
        (run.path / REQUEST).write_text(json.dumps({"actors": actors, "id": 1}))
        scaling.adjust()

    run = create_run(configured(4), tmp_path)
    assert scaled_settings(run) == []
    assert still_scaled(run, configured(4)).actors.count == 4
    scaled(launched(4), 6)
    assert scaled_settings(run) == ["actors.count=6"]
    assert still_scaled(run, configured(4)).actors.count == 6
    # It is launched with 6 and scaled once more; the config still says 4.
    scaled(launched(6), 9)
    assert still_scaled(run, configured(4)).actors.count == 9
    # Now the config says 5, which is newer, and holds the next time too.
    assert still_scaled(run, configured(5)).actors.count == 5
    launched(5)
    assert scaled_settings(run) == []
    assert still_scaled(run, configured(4)).actors.count == 4
    run.unlock()
