"""The inference role as a Ray actor: one server decides for many rollout actors."""

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from longview.actors.served import ServedPolicy
from longview.cluster.roles.reporting import send
from longview.cluster.run.config import RunConfig
from longview.learner.config import Horizon
from longview.monitoring.hub import Totals, encode_report

REPORT_SECONDS = 1.0
"""Time between two reports."""
CONCURRENT = 256
"""Requests that a server gathers at a time; further ones wait outside. Each takes a thread."""


def server_names(config: RunConfig) -> list[str]:
    """Return the names of a run's inference servers."""
    return [f"inference-{index}" for index in range(config.inference.servers)]


def server_of(actor: str, config: RunConfig) -> str | None:
    """Return the name of the server that decides for an actor; None if actors decide themselves.

    Args:
        actor: name of the actor, which ends in its number.
        config: the run's config.
    """
    names = server_names(config)
    return names[int(actor.rpartition("-")[2]) % len(names)] if names else None


class InferenceServer:
    """A policy that decides for its share of the rollout actors."""

    def __init__(self, config: RunConfig, name: str, reports: bool) -> None:
        """
        Args:
            config: the run's config.
            name: name of this server; stays the same when it restarts.
            reports: whether there is a hub to report to.
        """
        self._totals, self._counting = Totals(), threading.Lock()
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._totals.add("longview_actor_restarts_total", int(restarted), role="inference", cause="died")
        # Imported here because the driver, which imports this module, does not need torch.
        import torch

        from longview.learner.inference import PolicyServer

        torch.set_num_threads(1)
        self._device = "cuda" if config.placement.inference_gpus else "cpu"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                f"placement.inference_gpus is {config.placement.inference_gpus:g}, but PyTorch "
                f"{torch.__version__} of node {socket.gethostname()} can use no GPU: install one for CUDA, "
                "or set placement.inference_gpus=0"
            )
        share = math.ceil(config.actors.count / config.inference.servers)
        self._server = PolicyServer(
            slots=share * config.actors.simulators,
            max_batch=config.inference.max_batch,
            wait_seconds=config.inference.wait_ms / 1000,
            count=self._count,
        )
        if reports:
            threading.Thread(target=self._report, args=[name], name="reports", daemon=True).start()

    def load(self, version: int, weights: Sequence[Any]) -> Horizon:
        """Load a version, unless it is loaded already, and return its horizon.

        Args:
            version: version of the policy.
            weights: a list of one reference to the version's weights.
        """
        from longview.learner.policy import policy_from_bytes

        return self._server.load(version, lambda: policy_from_bytes(ray.get(weights[0]), self._device))

    def act(self, request: Mapping[str, Any]) -> NDArray[np.float32] | None:
        """Decide for simulators, together with other requests.

        Args:
            request: the fields of a `Request`, in one argument: Ray serialises each for itself.
        """
        from longview.learner.inference import Request

        return self._server.ask(Request(**request)).result()

    def _count(self, simulators: int, waits: Sequence[float]) -> None:
        with self._counting:
            self._totals.add("longview_inference_decisions_total", simulators)
            self._totals.observe("longview_inference_batch_size", simulators)
            for seconds in waits:
                self._totals.observe("longview_inference_wait_seconds", seconds)

    def _report(self, name: str) -> None:
        incarnation = time.time_ns()
        while True:
            with self._counting:
                report = encode_report("inference", name, incarnation, self._totals)
            send(report)
            time.sleep(REPORT_SECONDS)


def served(server: str, client: str, version: int, weights: Sequence[Any]) -> ServedPolicy:
    """Make the policy of an actor that does not hold it, and wait until the server has loaded it.

    Ray starts a server that has died again, and repeats the request that the actor waits for. The new server
    knows neither the version nor a history, and gets both again.

    Args:
        server: name of the server.
        client: name of the actor.
        version: version of the policy.
        weights: a list of one reference to the version's weights.
    """
    handle = ray.get_actor(server)

    def ask(**request: Any) -> Callable[[], NDArray[np.float32] | None]:
        asked = handle.act.remote({"client": client, "version": version, **request})

        def wait() -> NDArray[np.float32] | None:
            actions: NDArray[np.float32] | None = ray.get(asked)
            if actions is None:
                ray.get(handle.load.remote(version, weights))
            return actions

        return wait

    horizon: Horizon = ray.get(handle.load.remote(version, weights))
    return ServedPolicy(horizon.execute, horizon.max_delay, ask)
