"""The Ray actors: thin shells around what the other folders do."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import ray

from actors.worker import Order, Result, Worker
from cluster.config import RunConfig, task_of
from cluster.reports import Heartbeat, restarted, send
from monitoring.hub import Hub, Reporters, Snapshot, Totals, encode_report
from replay.episode import Episode
from replay.errors import CodecError, UnknownEpisode
from replay.limiter import Limiter
from replay.store import EpisodeStore

log = logging.getLogger(__name__)

Handle = Any
"""A handle on a Ray actor; Ray does not type them."""

POSITIONS = 64
"""Future positions that are told apart in metrics."""


def start(role: type, *arguments: Any, **options: Any) -> Handle:
    """Start a role as a Ray actor.

    Args:
        role: its class.
        arguments: of its constructor, which runs again when the actor is restarted.
        options: Ray's.
    """
    return ray.remote(**options)(role).remote(*arguments)


ALWAYS_BACK = {
    "num_cpus": 0,
    "resources": {"node:__internal_head__": 0.001},
    "max_restarts": -1,
    "max_task_retries": -1,
}
"""Options of roles that hold no work of their own: any call to them may be repeated. They stay on Ray's head
node, which has an address that lasts and does not leave when the cluster shrinks."""


class MetricsHub:
    """Merges totals and serves /metrics."""

    def __init__(self, run: str, host: str, port: int) -> None:
        self._hub = Hub(run)
        self._host, self._port = host, port
        self._url = ""
        if (message := restarted("hub")) is not None:
            self._hub.report(message)

    def report(self, message: bytes) -> None:
        """Take in a role's totals."""
        self._hub.report(message)

    def exchange(self, kept: Reporters) -> tuple[str, Snapshot, Reporters]:
        """Serve what the driver keeps.

        Returns:
            The URL of /metrics, everything merged, and what the driver shall keep next.
        """
        following = self._hub.exchange(kept)
        if not self._url:
            # Not before there is something to serve: to Prometheus, a hub that was restarted was away.
            port = self._hub.serve(self._port, self._host)
            anywhere = self._host in ("0.0.0.0", "::")
            self._url = f"http://{ray.util.get_node_ip_address() if anywhere else self._host}:{port}/metrics"
        return self._url, self._hub.snapshot(), following


class RolloutActor:
    """M simulators and the policy that acts in them."""

    def __init__(self, config: RunConfig, name: str, store: tuple[str, str] | None) -> None:
        """
        Args:
            config: the run's.
            name: this actor's, the same after a restart.
            store: URL and namespace; None where nothing is collected, and nothing reported.
        """
        self._session: Any = None
        self._version: int | None = None
        self._newest_used = -1
        self._simulators = config.actors.simulators
        self._worker = Worker(
            task=task_of(config),
            config=config.actors,
            run_seed=config.seed,
            name=name,
            execute=config.learner.policy.execute,
            store=None if store is None else EpisodeStore.connect(*store, config.replay),
            report=Heartbeat().send if store is not None else lambda _: None,
        )

    # Else the call would fail, and at once, while the actor is coming back.
    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def node(self) -> str:
        """The Ray node that it is on; answered once the actor is there, for the first time or again."""
        return str(ray.get_runtime_context().get_node_id())

    def work(self, order: Order, newest: int | None, weights: list[Any], age: float) -> Result:
        """Do an order; pulls its weights only if it does not hold them already.

        Args:
            order: what to do.
            newest: the newest published version.
            weights: a reference to the weights of the order's version; empty where the expert acts alone.
            age: how many seconds ago they were published.
        """
        started = time.perf_counter()
        if order.version is not None and order.version != self._version:
            self._load(order.version, ray.get(weights[0]))
            if order.version > self._newest_used:
                age += time.perf_counter() - started
                self._worker.totals.observe("longview_publish_to_use_seconds", age)
                self._newest_used = order.version
        return self._worker.work(order, self._session, newest or 0)

    def _load(self, version: int, weights: bytes) -> None:
        # Here: an actor that only demonstrates never needs torch.
        import torch

        from learner.policy import policy_from_bytes
        from learner.session import PolicySession

        torch.set_num_threads(1)
        policy = policy_from_bytes(weights)
        self._session = PolicySession(policy, self._simulators)
        self._worker.execute = policy.horizon.execute
        self._version = version


class LearnerRank:
    """One of G learner ranks; `stop` answers while `train` runs."""

    def __init__(self, rank: int, world: int, threads: int, use_gpu: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self._rank, self._world = rank, world
        self._device = "cuda" if use_gpu else "cpu"
        self._stop = threading.Event()

    def address(self) -> str:
        """Where the ranks meet, if this is rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def train(
        self,
        config: RunConfig,
        address: str,
        checkpoints: Path,
        store: tuple[str, str],
        board: Handle,
    ) -> int:
        """Train from the newest checkpoint on, until the last step or until stopped.

        Args:
            config: the run's.
            address: rank 0's.
            checkpoints: their folder, which every rank 0 to come must reach.
            store: URL and namespace.
            board: takes the weights.

        Returns:
            The last published version.
        """
        from torch import distributed

        from learner import ranks
        from learner.checkpoint import steps
        from learner.normalize import measure
        from learner.train import train

        episodes = EpisodeStore.connect(*store, config.replay)
        episodes.limiter = limiter = limiter_of(config, self._stop.is_set)
        spec = task_of(config).spec
        selection = config.learner.selection(spec.name)
        reporter = _LearnerReporter(f"rank-{self._rank}", config, max(steps(checkpoints), default=0))
        unseen = held_out(episodes, config.learner.validation_episodes)
        episodes.hold_out(unseen)
        seen = [id for source in ("demo", "import") for id in episodes.ids(source) if id not in unseen]
        validated = unseen if self._rank == 0 else []
        if self._world > 1:
            ranks.join(address, self._rank, self._world, self._device)
        try:
            train(
                config.learner,
                spec,
                seed=config.seed,
                draw=lambda step, before, after, count: episodes.sample(
                    selection,
                    count,
                    before,
                    after,
                    np.random.default_rng((config.seed, self._rank, step)),
                ),
                statistics=lambda: measure(whole(episodes, seen, spec.name), spec),
                validation=[e for e in whole(episodes, validated, spec.name) if e.outcome != "invalid"],
                publish=board.publish.remote,
                report=lambda progress: reporter.report(progress, limiter.waited_seconds),
                should_stop=self._stop.is_set,
                checkpoints=checkpoints,
                rank=self._rank,
                world=self._world,
                device=self._device,
            )
        finally:
            # Training that failed may have left a draw that waits.
            limiter.cancelled = lambda: True
            episodes.close()
            if self._world > 1:
                distributed.destroy_process_group()
        return max(steps(checkpoints), default=0)

    def stop(self) -> None:
        """Have `train` save and return."""
        self._stop.set()


def held_out(store: EpisodeStore, count: int) -> list[str]:
    """Ids of the episodes to validate on: the last `count` demonstrations, as an expert has given so many
    more, and the last imported ones, unless that were half of them."""
    if not count:
        return []
    imported = store.ids("import")
    return store.ids("demo")[-count:] + (imported[-count:] if len(imported) > 2 * count else [])


def whole(store: EpisodeStore, ids: Iterable[str], task: str) -> Iterator[Episode]:
    """Those of these episodes that are there, undamaged, and of this task."""
    for id in ids:
        try:
            episode = store.read(id)
        except (UnknownEpisode, CodecError) as error:
            log.warning("episode %s is left out: %s", id, error)
            continue
        if episode.meta.task == task:
            yield episode


def limiter_of(config: RunConfig, cancelled: Callable[[], bool]) -> Limiter:
    """When a learner rank may draw; what all of them may draw is theirs in equal parts."""
    together, ranks = config.replay.samples_per_insert, config.learners
    return Limiter(
        samples_per_insert=None if together is None else together / ranks,
        minimum_steps=config.replay.minimum_steps,
        timeout_seconds=config.replay.limiter_seconds,
        cancelled=cancelled,
    )


def by_position(loss: Mapping[int, float]) -> dict[str, float]:
    """Losses by steps from now on as a metric's series, of which there are few: those of past steps are
    averaged, and so are those from `POSITIONS - 1` steps on."""
    series: dict[str, list[float]] = {}
    for offset, value in loss.items():
        series.setdefault("past" if offset < 0 else str(min(offset, POSITIONS - 1)), []).append(value)
    return {position: fmean(values) for position, values in series.items()}


class _LearnerReporter:
    """Turns the learner's progress into running totals."""

    def __init__(self, name: str, config: RunConfig, resumed_at: int) -> None:
        self._name = name
        self._incarnation = time.time_ns()
        self._totals = Totals()
        self._samples = resumed_at * config.learner.batch_size * config.learners
        self._step = resumed_at
        self._limited_s = 0.0
        self._totals.set("longview_learner_step", resumed_at)
        self._send()

    def report(self, progress: Any, limited_s: float) -> None:
        """
        Args:
            progress: since the last report.
            limited_s: time that this rank's draws have waited for the limiter in all.
        """
        totals = self._totals
        totals.add("longview_store_limiter_wait_seconds_total", limited_s - self._limited_s)
        self._limited_s = limited_s
        totals.add("longview_samples_trained_total", max(0, progress.samples - self._samples))
        self._samples = progress.samples
        totals.add("longview_learner_data_wait_seconds_total", progress.data_wait_s)
        totals.observe("longview_learner_step_seconds", progress.step_s, progress.step - self._step)
        self._step = progress.step
        totals.set("longview_learner_step", progress.step)
        totals.set("longview_gpu_memory_bytes", progress.gpu_memory)
        totals.set("longview_out_of_range_ratio", progress.out_of_range)
        for length, loss in progress.loss_by_context.items():
            totals.set("longview_loss", loss, context_length=length)
        for length, norm in progress.gradient_norm_by_context.items():
            totals.set("longview_gradient_norm", norm, context_length=length)
        for position, loss in by_position(progress.loss_by_position).items():
            totals.set("longview_loss_by_position", loss, position=position)
        for length, loss in progress.validation_loss_by_context.items():
            totals.set("longview_validation_loss", loss, context_length=length)
        for length, error in progress.action_error_by_context.items():
            totals.set("longview_action_error_ratio", error, context_length=length)
        totals.add("longview_validation_seconds_total", progress.validation_s)
        self._send()

    def _send(self) -> None:
        send(encode_report("learner", self._name, self._incarnation, self._totals))
