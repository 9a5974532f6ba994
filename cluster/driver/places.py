"""Looks whether learner ranks and inference servers have places on a Ray cluster.

Learner ranks are asked about before demonstrations are collected for them.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.exceptions import RayActorError, RayTaskError

from longview.cluster.driver.training import LATE_SECONDS
from longview.cluster.roles.learner import torch_here
from longview.cluster.roles.ray import Handle
from longview.cluster.run.config import ConfigError, RunConfig
from longview.cluster.run.ending import RunFailed
from longview.cluster.run.preflight import (
    gpus_of_rank,
    refuse_torch,
    refuse_unaddable,
    resources_of_rank,
    room_for,
)

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""Longest wait for an answer before demonstrations are collected. Ray's autoscaler looks every few seconds,
and torch is imported in up to half a minute from a slow disk."""
WARN_SECONDS = 60.0
"""Time without an inference server after which the log says so, and between two looks after all are there."""
LOOK_SECONDS = 0.5
"""Time between two looks for an answer."""


class LearnerPlaces:
    """Questions to a Ray cluster, one for each learner rank: tasks with a rank's resources, which answer with
    the PyTorch of their node. A run is not asked about if its ranks need no GPU and no new node."""

    def __init__(self, config: RunConfig, *, alone: bool) -> None:
        """
        Args:
            config: the run's.
            alone: whether the run has started Ray itself, on this machine.
        """
        self._config, self._alone = config, alone
        self._gpus = gpus_of_rank(config, ray.cluster_resources().get("GPU", 0))
        self._asked = resources_of_rank(config, self._gpus)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._needs_nodes = config.placement.autoscaled and not room_for(self._asked, nodes)
        options = {"num_cpus": 1, "num_gpus": self._gpus, "resources": config.placement.learner}
        asking = ray.remote(**options)(torch_here)
        asks = self._gpus > 0 or self._needs_nodes
        self._answers: list[Any] = [asking.remote() for _ in range(config.learners)] if asks else []

    def wait(self) -> None:
        """Wait until all places have answered, nodes for them are on their way, or `ANSWER_SECONDS` are over.

        Raises:
            ConfigError: no node can hold a rank, and none can be added; or its PyTorch cannot use its GPU.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._answers and time.monotonic() < deadline:
            self.check()
            if self._needs_nodes:
                state = _autoscaling()
                given_up = [request.resources_bundle for request in state.infeasible_resource_requests]
                refuse_unaddable(self._config, self._asked, given_up)
                if state.pending_instance_requests or state.pending_instances:
                    break
            time.sleep(LOOK_SECONDS)
        if not self._gpus:
            self.withdraw()
        if self._answers:
            log.info("no learner rank has a place yet: the run collects demonstrations meanwhile")

    def check(self) -> None:
        """Look at the answers that have come.

        Raises:
            ConfigError: the PyTorch of a place cannot use its GPU, or is not installed.
        """
        if not self._answers:
            return
        come, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        for answer in come:
            try:
                found = ray.get(answer)
            except RayTaskError as error:
                raise ConfigError(f"no learner rank can run on this Ray cluster: {error.cause}") from error
            if self._gpus:
                refuse_torch(found, alone=self._alone)

    def withdraw(self) -> None:
        """Take back the questions without an answer, so that they hold no place when training starts."""
        for answer in self._answers:
            ray.cancel(answer)
        self._answers = []


class ServerPlaces:
    """Watch over the inference servers: actors whose server has no place wait for it without a word."""

    def __init__(self, servers: Sequence[Handle]) -> None:
        """
        Args:
            servers: the servers, which may still be starting.
        """
        self._servers = servers
        self._ask()

    def _ask(self) -> None:
        self._since, self._warned = time.monotonic(), False
        self._answers = [server.__ray_ready__.remote() for server in self._servers]

    def check(self) -> None:
        """Look which servers are there. Once all are, they are asked again now and then.

        Raises:
            RunFailed: a server cannot start, or has no place for `LATE_SECONDS`.
        """
        late = time.monotonic() - self._since
        if self._answers:
            come, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
            try:
                ray.get(come)
            except (RayActorError, RayTaskError) as error:
                raise RunFailed(f"an inference server cannot start: {error}") from error
        elif self._servers and late > WARN_SECONDS:
            self._ask()
        missing = f"{len(self._answers)} of {len(self._servers)} inference servers have no place after"
        if self._answers and late > LATE_SECONDS:
            raise RunFailed(
                f"{missing} {late:.0f} s: `ray status` says what the cluster has and what it lacks"
            )
        if self._answers and late > WARN_SECONDS and not self._warned:
            self._warned = True
            log.warning("%s %.0f s: `ray status` says what the cluster has and what it lacks", missing, late)


def _autoscaling() -> AutoscalingState:
    """Return what the cluster's autoscaler last reported; empty if it has none. Ray's own status leaves out
    which requests no node can ever meet."""
    reply = GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status()
    return GetClusterStatusReply.FromString(reply).autoscaling_state
