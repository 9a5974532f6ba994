"""The rollout actor as a Ray actor: many simulators, and the policy that acts in them.

The policy is held by this process, or by an inference server; then this process needs no torch.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray

from longview.actors.rollout import Policy
from longview.actors.worker import Order, Result, Worker
from longview.cluster.roles.inference import served, server_of
from longview.cluster.roles.reporting import Heartbeat
from longview.cluster.run.config import RunConfig, task_of
from longview.replay.store import StoreAddress


class RolloutActor:
    """M simulators and the policy that acts in them."""

    def __init__(self, config: RunConfig, name: str, store: StoreAddress | None) -> None:
        """
        Args:
            config: the run's config.
            name: name of this actor; stays the same when it restarts.
            store: store for its episodes; None if it only evaluates, and then it reports nothing.
        """
        self._name, self._server = name, server_of(name, config)
        self._device = "cuda" if config.placement.actor_gpus else "cpu"
        self._session: Policy | None = None
        self._version: int | None = None
        self._newest_used = -1
        self._simulators, self._history = config.actors.simulators, config.evaluation.history
        self._worker = Worker(
            task=task_of(config),
            config=config.actors,
            collect=config.collect,
            run_seed=config.seed,
            name=name,
            store=None if store is None else store.connect(config.replay),
            report=Heartbeat().send if store is not None else lambda _: None,
            history=self._history,
        )

    # Without retries the call would fail at once while the actor restarts.
    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def node(self) -> str:
        """Return the Ray node that the actor is on. Ray answers once it has placed the actor, again after a
        restart."""
        return str(ray.get_runtime_context().get_node_id())

    def rest(self, held: Mapping[str, float]) -> None:
        """Report what the idle actor has waited for.

        Args:
            held: seconds of it by reason, as for `work`.
        """
        self._worker.rest(held)

    def work(
        self, order: Order, newest: int | None, weights: list[Any], age: float, held: Mapping[str, float]
    ) -> Result:
        """Do an order, after loading the weights of its version if the actor does not hold them yet.

        Args:
            order: the order.
            newest: the newest published version.
            weights: a list of one reference to the version's weights; empty where the expert acts alone.
            age: seconds since the version was published.
            held: seconds without an order since the last order or `rest`, by reason: a part of
                `longview_actor_seconds_total`.
        """
        started = time.perf_counter()
        if order.version is not None and order.version != self._version:
            if self._server is None:
                self._load(order.version, ray.get(weights[0]))
            else:
                self._session = served(self._server, self._name, order.version, weights)
                self._version = order.version
            seconds = time.perf_counter() - started
            self._worker.loaded(seconds)
            if order.version > self._newest_used:
                age += seconds
                self._worker.totals.observe("longview_publish_to_use_seconds", age)
                self._newest_used = order.version
        return self._worker.work(order, self._session, newest or 0, held)

    def _load(self, version: int, weights: bytes) -> None:
        # Imported here because an actor that only demonstrates, or asks a server, does not need torch.
        import torch

        from longview.learner.policy import policy_from_bytes
        from longview.learner.session import PolicySession

        torch.set_num_threads(1)
        self._session = PolicySession(
            policy_from_bytes(weights, self._device),
            self._simulators,
            # The history of another episode is the worker's to show.
            history="reversed" if self._history == "reversed" else "own",
        )
        self._version = version
