"""A run from top to bottom: start services, Ray and roles, supervise them, stop."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray

from longview.actors.task import Task, columns_of
from longview.cluster.driver.collection import Collection
from longview.cluster.driver.conduct import conduct, ignore_interrupts
from longview.cluster.driver.dispatch import MAX_FAILURES, Dispatcher
from longview.cluster.driver.orders import Orders
from longview.cluster.driver.places import LearnerPlaces, ServerPlaces
from longview.cluster.driver.reports import DriverReporter, reporting
from longview.cluster.driver.scaling import Scaling
from longview.cluster.driver.training import Training
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.inference import CONCURRENT, InferenceServer, server_names
from longview.cluster.roles.rank import share_out
from longview.cluster.roles.ray import ALWAYS_BACK, Handle, object_store_bytes, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import ConfigError, PlacementConfig, RunConfig, task_of, without_password
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import Run, store_of
from longview.cluster.run.preflight import refuse_unplaced
from longview.cluster.run.progress import RunProgress
from longview.cluster.run.services import RAY_SOCKET, prometheus_server, socket_folder
from longview.cluster.views.episodes import show_newest
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.intake import bring_in
from longview.replay.episode import TaskSpec, episode_id, episode_index
from longview.replay.errors import StoreError
from longview.replay.stats import Count
from longview.replay.store import EpisodeStore, StoreAddress

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
"""Longest wait for results in one turn of the driver."""


def launch(config: RunConfig, run: Run, address: str | None) -> int:
    """Start or resume a run.

    Args:
        config: the run's config.
        run: the run's folder, locked.
        address: an existing Ray cluster; None starts one on this machine.

    Returns:
        The exit code: 0 finished, 1 failed, 130 interrupted.
    """
    if address is None and config.placement != PlacementConfig():
        print(
            "longview: placement is for an existing Ray cluster: ignored without --address", file=sys.stderr
        )
        config = replace(config, placement=PlacementConfig())
    task = task_of(config)
    progress = RunProgress(run, config, task.spec, history=run.evaluations())
    return conduct(progress, "launch", lambda show: _run(progress, task, address, show))


def _run(progress: RunProgress, task: Task, address: str | None, show: Callable[[RunProgress], None]) -> None:
    config, run = progress.config, progress.run
    with ExitStack() as services:
        store_address = services.enter_context(store_of(run, config.replay))
        store = store_address.connect(config.replay)
        services.enter_context(ending(store.close))
        store.claim(run.origin.owner)
        store.register(task.spec)
        if any(run.checkpoints.glob("step-*")) and not len(store):
            print("longview: the store has lost this run's episodes: it collects anew", file=sys.stderr)
        progress.prometheus = services.enter_context(prometheus_server(run.path / "prometheus"))
        if config.demonstrations is not None:
            _import_demonstrations(Path(config.demonstrations), progress, store, task, show)
        elif task.expert is None:
            progress.demonstrations = _imported(store, task)
        services.enter_context(ray_cluster(config, address, store_is_local=config.replay.url is None))
        places = LearnerPlaces(config, alone=address is None)
        places.wait()
        training = Training(config, run.checkpoints.absolute(), store_address)
        if address is None:  # on a cluster others may use the place until there is something to train on
            training.prepare()  # before the other roles, since it takes longest to start
        roles = start_roles(config, run, alone=address is None)
        reporter = services.enter_context(reporting(roles.hub, store, progress))
        services.enter_context(ending(training.stop))
        services.callback(ignore_interrupts)
        run.write_state(store=without_password(store_address.url), prometheus=progress.prometheus)
        try:
            scaling = partial(_scaling, config, run, store_address, alone=address is None)
            _supervise(progress, roles, reporter, scaling, places, training, store, task, show)
            show_newest(config, store_address, run.path / "episodes.png")
        finally:
            with suppress(StoreError):  # the error that ended the run matters more
                progress.stats = store.stats()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the context ends. Ray leaves processes behind when it is interrupted
    while it starts."""
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
    """Connect to a Ray cluster for as long as the context lasts.

    Args:
        config: the run's config.
        address: an existing cluster; None starts one on this machine that ends with the context.
        store_is_local: only this machine reaches the store.

    Raises:
        ConfigError: the cluster has no room for the run, or has nodes that cannot reach the store.
    """
    options: dict[str, Any] = {"namespace": f"longview-{os.getpid()}", "log_to_driver": False}
    if address is None:
        cpus = max(os.cpu_count() or 1, config.learners)
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        options |= {"object_store_memory": object_store_bytes()}
        # Ray would start its processes at niceness 15, at which a run starves beside any other work.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Nobody reads Ray's own metrics here, and they grow a driver of a thousand actors by 24 MiB an hour.
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        if "RAY_TMPDIR" not in os.environ:
            options |= {"_temp_dir": f"{socket_folder(RAY_SOCKET)}/ray"}
    else:
        options |= {"address": address}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with _interrupts_wait():
            ray.init(logging_level=logging.ERROR, **options)
        if address is not None:
            _check_cluster(config, store_is_local)
        yield
    finally:
        ray.shutdown()


def cluster_nodes(configs: Sequence[RunConfig], address: str) -> list[dict[str, float]]:
    """List the resources of each node of an existing Ray cluster that is to take runs.

    Args:
        configs: configs of the runs, which share a store.
        address: the cluster.

    Raises:
        ConfigError: the cluster has no room for one of the runs, or has nodes that cannot reach the store.
    """
    with ray_cluster(configs[0], address, store_is_local=configs[0].replay.url is None):
        nodes = _nodes()
        for config in configs:
            refuse_unplaced(config, nodes)
        return nodes


def _check_cluster(config: RunConfig, store_is_local: bool) -> None:
    """Refuse a cluster on which the run would wait for ever."""
    nodes = _nodes()
    if store_is_local and len(nodes) > 1:
        raise ConfigError(
            f"this Ray cluster has {len(nodes)} nodes, which cannot reach a store on one of them: "
            "give the address of a Redis that all nodes reach as replay.url"
        )
    refuse_unplaced(config, nodes)


def _nodes() -> list[dict[str, float]]:
    """List the resources of each node of the Ray cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass
class Roles:
    """The Ray actors that a run begins with."""

    hub: Handle
    """The metrics hub."""
    board: Handle
    """The weight board."""
    servers: list[Handle]
    """The inference servers."""


def start_roles(config: RunConfig, run: Run, *, alone: bool) -> Roles:
    """Start the roles that a run begins with. They end with the driver's connection to Ray.

    Args:
        config: the run's config.
        run: the run's folder.
        alone: whether the run has started Ray itself, on this machine.
    """
    monitoring = config.monitoring
    hub = start(MetricsHub, run.name, monitoring.host, monitoring.port, name=HUB, **ALWAYS_BACK)
    board = start(WeightBoard, run.checkpoints.absolute(), **ALWAYS_BACK)
    return Roles(hub, board, start_servers(config, cpus=0 if alone else 1))


def start_servers(config: RunConfig, cpus: int, *, reports: bool = True) -> list[Handle]:
    """Start the inference servers of a run, under names by which the actors find them.

    Args:
        config: the run's config.
        cpus: CPUs that each takes from Ray.
        reports: whether there is a hub to report to.
    """
    options = {"num_cpus": cpus, "num_gpus": config.placement.inference_gpus, "max_concurrency": CONCURRENT}
    # Any call may be repeated: a request that a server has answered already does not fit its history. But a
    # request that kills every server that gets it fails at last, and with it the actor's order.
    options |= {"max_restarts": -1, "max_task_retries": MAX_FAILURES}
    return [
        start(InferenceServer, config, name, reports, name=name, **options) for name in server_names(config)
    ]


def start_actor(
    config: RunConfig, store: StoreAddress | None, cpus: int, name: str, role: type = RolloutActor
) -> Handle:
    """Start a rollout actor.

    Args:
        config: the run's config.
        store: the store for its episodes; None if it only evaluates.
        cpus: CPUs that it takes from Ray.
        name: name of the actor.
        role: the actor's class.
    """
    placement = config.placement
    options = {"num_cpus": cpus, "num_gpus": placement.actor_gpus, "resources": placement.actor}
    return start(role, config, name, store, max_restarts=-1, **options)


def _scaling(
    config: RunConfig, run: Run, store: StoreAddress, dispatcher: Dispatcher, *, alone: bool
) -> Scaling:
    """Make the scaling of a run's actors. A run alone on a machine may have any number, which take no CPUs
    from Ray; on a cluster there must be room for them."""
    return Scaling(
        run,
        config,
        dispatcher,
        start=partial(start_actor, config, store, 0 if alone else 1),
        refuse=lambda wanted: None if alone else refuse_unplaced(wanted, _nodes()),
        cpus=os.cpu_count() if alone else None,
    )


def _supervise(
    progress: RunProgress,
    roles: Roles,
    reporter: DriverReporter,
    scaling_of: Callable[[Dispatcher], Scaling],
    places: LearnerPlaces,
    training: Training,
    store: EpisodeStore,
    task: Task,
    show: Callable[[RunProgress], None],
) -> None:
    """Collect, train and evaluate, until the last version has been evaluated."""
    config = progress.config
    collection = collection_of(config, task.spec, store, progress.run.expert_steps())
    orders = Orders(config, task.spec, collection)
    if config.demonstrations is None and task.expert is not None:
        missing = _missing_demonstrations(store, task, progress.wanted)
        orders.demonstrate(missing)
        progress.demonstrations = progress.wanted - len(missing)
    dispatcher = Dispatcher(orders)
    scaling = scaling_of(dispatcher)
    weights, servers = HeldWeights(roles.board), ServerPlaces(roles.servers)
    last_version: int | None = None
    progress.enter("collect")
    while progress.phase != "evaluate" or not orders.idle:
        scaling.adjust()
        orders.actors = scaling.target
        trained = int(progress.metrics.total("longview_learner_step"))
        dispatcher.dispatch(weights.newest, trained, weights.of)
        for order, result in dispatcher.collect(TICK_SECONDS):
            reporter.arrived(order, result, weights.newest)
            progress.demonstrations += order.count if order.purpose == "demo" else 0
            if (evaluation := orders.finish(order, result)) is not None:
                progress.run.add_evaluation(evaluation)
                progress.history.append(evaluation)
        if collection.expert_steps > progress.expert_steps:
            progress.expert_steps = collection.expert_steps
            progress.run.write_expert_steps(progress.expert_steps)

        places.check()
        servers.check()
        if progress.phase == "collect" and orders.idle:
            places.withdraw()
            demonstrations = share_out(store, task.spec, config.learner.validation_episodes)
            training.start(demonstrations, roles.board)
            progress.enter("train")
        if progress.phase == "train":
            last_version = training.finished(weights.newest) if last_version is None else last_version
            published = weights.refresh(keep=dispatcher.versions | {key[0] for key in orders.evaluations})
            if last_version is not None and weights.newest == last_version:
                training.kill()  # the last evaluation needs no learner: its GPUs are free for others
                orders.conclude(last_version, progress.evaluated(last_version))
                progress.enter("evaluate")
            # An earlier version is for those who collect, and of too little training to evaluate.
            elif published is not None and config.learner.publish_every <= published < config.learner.steps:
                orders.published(published)

        progress.evaluations, progress.version = orders.evaluations, weights.newest
        progress.actors = scaling.target
        progress.restarts = {"actor": dispatcher.restarts, "learner": training.restarts}
        progress.errors = dispatcher.errors
        progress.update(reporter.report())
        show(progress)


def collection_of(
    config: RunConfig, spec: TaskSpec, store: EpisodeStore, expert_steps: int | None = None
) -> Collection:
    """Make the collection of a run, which goes on after the episodes of earlier launches.

    Args:
        config: the run's config.
        spec: spec of the run's task.
        store: the run's store.
        expert_steps: steps that the expert has made in earlier launches, in finished orders; None if
            nothing says it, as in a run that an older Longview began. Its steps in the committed episodes
            count in any case.
    """
    source, selection = config.collect.source, config.learner.selection(spec.name)
    if source is None:
        return Collection(config, spec)
    found = [count for (name, _), count in store.stats().committed.items() if name == source]
    before = sum(found, Count())
    committed = before.steps if config.collect.kind == "labels" else before.learnable

    @cache  # asked for each order, by when all demonstrations are stored
    def typical() -> float:
        stored = store.stats().stored
        shown = [stored[source] for source in ("demo", "import") if source in stored]
        return sum(count.steps for count in shown) / max(1, sum(count.episodes for count in shown))

    return Collection(
        config,
        spec,
        first=_next_index(store, source),
        before=before,
        expert_steps=max(expert_steps or 0, committed),
        sizes=lambda: store.sizes(selection),
        typical=typical,
    )


def _next_index(store: EpisodeStore, source: str) -> int:
    """Find the index of a source's next episode: one after the largest that an id ends in. Ids do not sort by
    index where the source was renamed: `dagger.lift.000000007` is a correction of Longview 0.1."""
    return max((episode_index(id) + 1 for id in store.ids(source)), default=0)


def _import_demonstrations(
    path: Path, progress: RunProgress, store: EpisodeStore, task: Task, show: Callable[[RunProgress], None]
) -> None:
    """Import the demonstrations that the store does not hold yet. A resumed run therefore adds none."""
    progress.enter("collect")
    source = open_source(path, task.spec.name, task.spec, columns_of(task))
    for _ in bring_in(source, source.indices[: progress.wanted], store):
        progress.demonstrations += 1
        show(progress)


def _imported(store: EpisodeStore, task: Task) -> int:
    """Return the number of imported episodes, which a task without an expert is learnt from.

    Raises:
        StoreError: the store holds none.
    """
    if not (count := sum(1 for _ in store.records(source="import", task=task.spec.name))):
        raise StoreError(
            f"task {task.spec.name} has no expert, and the store no imported episodes of it: import some by "
            "`longview store import`, or give demonstrations=PATH"
        )
    return count


def _missing_demonstrations(store: EpisodeStore, task: Task, wanted: int) -> list[int]:
    """Find the indices of demonstrations that the store does not hold."""
    ids = {episode_id("demo", task.spec.name, index): index for index in range(wanted)}
    return [ids[id] for id in store.missing(list(ids))]
