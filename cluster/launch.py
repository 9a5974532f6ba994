"""A run, from top to bottom: services, Ray, roles, wait, stop."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.task import Task, load_task
from cluster import summary
from cluster.config import ConfigError, RunConfig, without_password
from cluster.dispatch import MAX_FAILURES, Dispatcher, RunFailed
from cluster.orders import Orders
from cluster.progress import Progress
from cluster.roles import ALWAYS_BACK, HUB, Handle, LearnerRank, MetricsHub, RolloutActor, start
from cluster.runs import Run
from cluster.services import ServiceError, redis_server
from cluster.view import watching
from cluster.weights import WeightBoard
from monitoring.hub import Snapshot, Totals, encode_report
from replay.episode import episode_id
from replay.errors import StoreError
from replay.store import EpisodeStore

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
REPORT_SECONDS = 1.0
STOP_SECONDS = 20.0


def launch(config: RunConfig, run: Run, address: str | None) -> int:
    """Run, or go on with, what a locked run folder describes; returns the exit code.

    Args:
        config: the run's.
        run: its folder.
        address: an existing Ray cluster; None starts one on this machine.
    """
    logging.basicConfig(
        filename=run.path / "log.txt", format="%(asctime)s %(name)s %(message)s", level="INFO"
    )
    task = load_task(config.task)
    progress = Progress(run, config, config.demonstrations(task.spec), history=run.evaluations())
    status, code = "failed", 1
    try:
        with watching() as show:
            _run(progress, task, address, show)
        status, code = "finished", 0
    except KeyboardInterrupt:
        status, code = "interrupted", 130
    except (RunFailed, StoreError, ServiceError) as error:
        log.error("%s", error)
        print(f"longview: {error}", file=sys.stderr)
    finally:
        progress.enter(status)
        result = summary.summarize(progress, task.spec, status)
        summary.write(run, result, task.spec.chance)
    summary.show(run, result)
    if status != "finished":
        print(f"go on with it by: longview launch --resume {run.name}", file=sys.stderr)
    return code


def _run(progress: Progress, task: Task, address: str | None, show: Callable[[Progress], None]) -> None:
    config, run = progress.config, progress.run
    with ExitStack() as services:
        url = config.replay.url or services.enter_context(redis_server(run.path / "redis"))
        store = EpisodeStore.connect(url, run.name, config.replay)
        services.callback(store.close)
        store.register(task.spec)
        services.enter_context(ray_cluster(config, address, store_is_local=config.replay.url is None))
        roles = services.enter_context(start_roles(config, run, (url, run.name)))
        training = Training(config, run, (url, run.name), roles)
        services.callback(training.stop)
        services.callback(_ignore_interrupts)
        metrics_url = f"http://{config.monitoring.host}:{ray.get(roles.hub.port.remote())}/metrics"
        run.write_state(metrics=metrics_url, store=without_password(url), started=time.time())
        try:
            _supervise(progress, roles, training, store, task, show)
        finally:
            progress.stats = store.stats()


def _ignore_interrupts() -> None:
    """From here on everything is being saved and stopped, within bounds; a second Ctrl-C would only harm."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until what is inside is done, and then be interrupted by them. A Ray
    that was interrupted while it starts would leave processes behind."""
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt


@contextmanager
def ray_cluster(config: RunConfig, address: str | None, *, store_is_local: bool = False) -> Iterator[None]:
    """Be connected to a Ray cluster: the one at that address, or one of our own that ends with us."""
    options: dict[str, Any] = {"namespace": f"longview-{os.getpid()}", "log_to_driver": False}
    if address is None:
        cpus = max(os.cpu_count() or 1, config.actors.count + config.learners)
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        options |= {"object_store_memory": 256 << 20}
    else:
        options |= {"address": address}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _interrupts_wait():
            ray.init(logging_level=logging.ERROR, **options)
        _check_cluster(config, store_is_local)
        yield
    finally:
        ray.shutdown()


def _check_cluster(config: RunConfig, store_is_local: bool) -> None:
    """Refuse what could only hang later."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if store_is_local and len(nodes) > 1:
        raise ConfigError(
            f"this Ray cluster has {len(nodes)} nodes, which cannot reach a store on one of them: "
            "give the address of a Redis that all nodes reach as replay.url"
        )
    cpus, needed = ray.cluster_resources().get("CPU", 0), config.actors.count + config.learners
    if cpus < needed:
        raise ConfigError(
            f"actors.count {config.actors.count} + learners {config.learners} need {needed} CPUs, "
            f"this Ray cluster has {cpus:g}"
        )


@dataclass
class Roles:
    """The Ray actors of a run."""

    hub: Handle
    board: Handle
    actors: list[Handle]
    learners: list[Handle] = field(default_factory=list)


@contextmanager
def start_roles(config: RunConfig, run: Run, store: tuple[str, str]) -> Iterator[Roles]:
    """All roles of a run; they are gone when the context ends."""
    hub = start(MetricsHub, config.monitoring.host, config.monitoring.port, name=HUB, **ALWAYS_BACK)
    board = start(WeightBoard, run.checkpoints.absolute(), **ALWAYS_BACK)
    roles = Roles(hub, board, start_actors(config, store))
    try:
        yield roles
    finally:
        for role in (*roles.actors, *roles.learners, board, hub):
            ray.kill(role)


def start_actors(config: RunConfig, store: tuple[str, str] | None) -> list[Handle]:
    """The rollout actors."""
    return [
        start(RolloutActor, config, f"actor-{index}", store, num_cpus=1, max_restarts=-1)
        for index in range(config.actors.count)
    ]


class Training:
    """The learner ranks as one; started again from the newest checkpoint if a rank dies."""

    def __init__(self, config: RunConfig, run: Run, store: tuple[str, str], roles: Roles) -> None:
        self._config, self._run, self._store, self._roles = config, run, store, roles
        self._under_way: list[Any] = []
        self._failures: dict[int | None, int] = {}
        self.restarts = 0

    def start(self) -> None:
        """Create the ranks and have them train."""
        world = self._config.learners
        gpus = ray.cluster_resources().get("GPU", 0) >= world
        threads = 1 if gpus else max(1, ((os.cpu_count() or 1) - self._config.actors.count) // world)
        # Two calls at a time: `stop` has to be heard while `train` runs.
        options = {"num_cpus": 1, "num_gpus": int(gpus), "max_concurrency": 2}
        self._roles.learners = [
            start(LearnerRank, rank, world, threads, gpus, **options) for rank in range(world)
        ]
        address = self._roles.learners[0].address.remote()
        self._under_way = [
            rank.train.remote(
                self._config,
                address,
                self._run.checkpoints.absolute(),
                self._store,
                self._roles.board,
            )
            for rank in self._roles.learners
        ]

    def finished(self, newest: int | None) -> int | None:
        """The last version, once all ranks are done; None while they train.

        Args:
            newest: the newest version published, by which getting further is measured.

        Raises:
            RunFailed: training failed by its own doing, or ranks die again and again without progress.
        """
        if not self._under_way:
            return None
        ready, waiting = ray.wait(self._under_way, num_returns=len(self._under_way), timeout=0)
        try:
            ray.get(ready)
        except RayTaskError as error:
            raise RunFailed(f"training failed: {error.cause}") from error
        except RayActorError as error:
            log.warning("a learner rank died, training goes on from the newest checkpoint: %s", error)
            self.restarts += 1
            self._failures[newest] = self._failures.get(newest, 0) + 1
            if self._failures[newest] >= MAX_FAILURES:
                raise RunFailed(
                    f"learner ranks died {MAX_FAILURES} times without progress: {error}"
                ) from error
            for rank in self._roles.learners:
                ray.kill(rank)
            self.start()
            return None
        return None if waiting else ray.get(self._under_way[0])

    def stop(self) -> None:
        """Have every rank save what it has, and wait for that."""
        if self._under_way:
            for rank in self._roles.learners:
                rank.stop.remote()
            ray.wait(self._under_way, num_returns=len(self._under_way), timeout=STOP_SECONDS)


def _supervise(
    progress: Progress,
    roles: Roles,
    training: Training,
    store: EpisodeStore,
    task: Task,
    show: Callable[[Progress], None],
) -> None:
    """Collect, train, evaluate: until the last version has been evaluated."""
    config, purpose = progress.config, "rollout" if task.expert is None else "dagger"
    orders = Orders(config, task.spec, purpose=purpose, collected=_next_index(store, purpose))
    orders.demonstrate(_missing_demonstrations(store, task, progress.wanted))
    dispatcher = Dispatcher(roles.actors, orders)
    weights = HeldWeights(roles.board)
    reporter = _Reporter(roles.hub, store, task)
    last_version: int | None = None
    progress.enter("collect")
    while progress.phase != "evaluate" or not orders.idle:
        dispatcher.dispatch(weights.newest, weights.of)
        for order, result in dispatcher.collect(TICK_SECONDS):
            progress.demonstrations += sum(result.outcomes.values()) if order.purpose == "demo" else 0
            if (evaluation := orders.finish(order, result)) is not None:
                progress.run.add_evaluation(evaluation.to_dict())
                progress.history.append(evaluation.to_dict())

        if progress.phase == "collect" and orders.idle:
            training.start()
            progress.enter("train")
        if progress.phase == "train":
            last_version = training.finished(weights.newest) if last_version is None else last_version
            published = weights.refresh(keep=dispatcher.versions | {key[0] for key in orders.evaluations})
            if last_version is not None and weights.newest == last_version:
                orders.conclude(last_version, progress.evaluated(last_version))
                progress.enter("evaluate")
            elif published is not None and published < config.learner.steps:
                orders.published(published)

        progress.evaluations, progress.version = orders.evaluations, weights.newest
        progress.restarts = {"actor": dispatcher.restarts, "learner": training.restarts}
        progress.update(reporter.report(progress))
        show(progress)


class HeldWeights:
    """References to the weights of the newest version and of those still in use. They are this process's
    own copies, so that a round of evaluation outlives the board."""

    def __init__(self, board: Handle) -> None:
        self._board = board
        self._held: dict[int, Any] = {}
        self.newest: int | None = None

    def refresh(self, keep: set[int]) -> int | None:
        """Take over a newer version if there is one, and let go of all others but `keep`."""
        version = ray.get(self._board.version.remote())
        if version is None or version == self.newest:
            return None
        newest, (reference,) = ray.get(self._board.latest.remote())
        self._held = {version: held for version, held in self._held.items() if version in keep}
        self._held[newest] = ray.put(ray.get(reference))
        self.newest = newest
        return int(newest)

    def of(self, version: int) -> list[Any]:
        """A version's reference, in a list so that Ray passes it on unfetched."""
        return [self._held[version]]


class _Reporter:
    """What the driver itself knows, to the hub; what all know, back."""

    def __init__(self, hub: Handle, store: EpisodeStore, task: Task) -> None:
        self._hub, self._store, self._task = hub, store, task.spec.name
        self._incarnation = time.time_ns()
        self._reported_at = 0.0
        self._snapshot: Snapshot = {}

    def report(self, progress: Progress) -> Snapshot:
        """The hub's snapshot, at most about a second old."""
        if time.monotonic() - self._reported_at < REPORT_SECONDS:
            return self._snapshot
        totals, stats = Totals(), self._store.stats()
        totals.set("longview_store_bytes", stats.total.bytes)
        totals.set("longview_store_episodes", stats.total.episodes)
        for role, count in progress.restarts.items():
            totals.add("longview_actor_restarts_total", count, role=role)
        if progress.version is not None:
            totals.set("longview_policy_version", progress.version)
        for row in progress.newest_round():
            totals.set("longview_evaluation_version", row["version"])
            labels = {"task": self._task, "context_length": row["context_length"]}
            totals.set("longview_evaluation_successes", row["successes"], **labels)
            totals.set("longview_evaluation_episodes", row["episodes"], **labels)
        self._hub.report.remote(encode_report("driver", "driver", self._incarnation, totals))
        self._snapshot = ray.get(self._hub.snapshot.remote())
        self._reported_at = time.monotonic()
        return self._snapshot


def _next_index(store: EpisodeStore, source: str) -> int:
    """Numbering of a source goes on after its last episode; ids sort by index."""
    ids = store.ids(source)
    return int(ids[-1].rpartition(".")[2]) + 1 if ids else 0


def _missing_demonstrations(store: EpisodeStore, task: Task, wanted: int) -> list[int]:
    missing = [index for index in range(wanted) if episode_id("demo", task.spec.name, index) not in store]
    if missing and task.expert is None:
        raise RunFailed(
            f"task {task.spec.name} has no expert to give the {len(missing)} demonstrations that are missing"
        )
    return missing
