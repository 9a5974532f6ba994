"""The Ray actors: thin shells around what the other folders do."""

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import ray

from actors.worker import Order, Result, Worker
from cluster.config import RunConfig, task_of
from monitoring.hub import Hub, Snapshot, Totals, encode_report
from replay.store import EpisodeStore

Handle = Any
"""A handle on a Ray actor; Ray does not type them."""

POSITIONS = 64
"""Future positions that are told apart in metrics."""

HUB = "hub"
"""Name under which every other role finds the metrics hub. Not by handle: an actor whose constructor was
given one cannot be restarted once that handle is gone."""


def start(role: type, *arguments: Any, **options: Any) -> Handle:
    """Start a role as a Ray actor.

    Args:
        role: its class.
        arguments: of its constructor, which runs again when the actor is restarted.
        options: Ray's.
    """
    return ray.remote(**options)(role).remote(*arguments)


ALWAYS_BACK = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
"""Options of roles that hold no work of their own: any call to them may be repeated."""


class MetricsHub:
    """Merges totals and serves /metrics."""

    def __init__(self, host: str, port: int) -> None:
        self._hub = Hub()
        self._port = self._hub.serve(port, host)

    def port(self) -> int:
        """The port that is served."""
        return self._port

    def report(self, message: bytes) -> None:
        """Take in a role's totals."""
        self._hub.report(message)

    def snapshot(self) -> Snapshot:
        """Everything merged."""
        return self._hub.snapshot()


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
        self._simulators = config.actors.simulators
        self._worker = Worker(
            task=task_of(config),
            config=config.actors,
            run_seed=config.seed,
            name=name,
            execute=config.learner.policy.execute,
            store=None if store is None else EpisodeStore.connect(*store, config.replay),
            report=_report if store is not None else lambda _: None,
        )

    def work(self, order: Order, newest: int | None, weights: list[Any]) -> Result:
        """Do an order; pulls its weights only if it does not hold them already.

        Args:
            order: what to do.
            newest: the newest published version.
            weights: a reference to the weights of the order's version; empty where the expert acts alone.
        """
        if order.version is not None and order.version != self._version:
            self._load(order.version, ray.get(weights[0]))
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
        spec = task_of(config).spec
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
                    config.learner.mix,
                    count,
                    before,
                    after,
                    np.random.default_rng((config.seed, self._rank, step)),
                ),
                statistics=lambda: measure(map(episodes.read, seen), spec),
                validation=[e for e in map(episodes.read, validated) if e.outcome != "invalid"],
                publish=board.publish.remote,
                report=reporter.report,
                should_stop=self._stop.is_set,
                checkpoints=checkpoints,
                rank=self._rank,
                world=self._world,
                device=self._device,
            )
        finally:
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
        self._totals.set("longview_learner_step", resumed_at)
        self._send()

    def report(self, progress: Any) -> None:
        totals = self._totals
        totals.add("longview_samples_trained_total", max(0, progress.samples - self._samples))
        self._samples = progress.samples
        totals.add("longview_learner_data_wait_seconds_total", progress.data_wait_s)
        totals.set("longview_learner_step", progress.step)
        totals.set("longview_out_of_range_ratio", progress.out_of_range)
        for length, loss in progress.loss_by_context.items():
            totals.set("longview_loss", loss, context_length=length)
        for position, loss in by_position(progress.loss_by_position).items():
            totals.set("longview_loss_by_position", loss, position=position)
        for length, loss in progress.validation_loss_by_context.items():
            totals.set("longview_validation_loss", loss, context_length=length)
        for length, error in progress.action_error_by_context.items():
            totals.set("longview_action_error_ratio", error, context_length=length)
        totals.add("longview_validation_seconds_total", progress.validation_s)
        self._send()

    def _send(self) -> None:
        _report(encode_report("learner", self._name, self._incarnation, self._totals))


def _report(message: bytes) -> None:
    ray.get_actor(HUB).report.remote(message)
