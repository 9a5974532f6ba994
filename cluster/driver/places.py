"""Asks a Ray cluster for the places of the learner ranks, before demonstrations are collected for them."""

import logging
import time
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.exceptions import RayTaskError

from longview.cluster.roles.learner import torch_here
from longview.cluster.run.config import ConfigError, RunConfig
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


def _autoscaling() -> AutoscalingState:
    """Return what the cluster's autoscaler last reported; empty if it has none. Ray's own status leaves out
    which requests no node can ever meet."""
    reply = GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status()
    return GetClusterStatusReply.FromString(reply).autoscaling_state
