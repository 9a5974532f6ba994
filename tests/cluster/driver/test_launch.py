"""The Ray that a run starts for itself."""

import os
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from longview.cluster.driver.launch import ray_cluster
from longview.cluster.run.config import read_config

RAYS_DASHBOARD = Path(__file__).parents[3] / "k8s" / "shared" / "ray.json"
METRICS = "RAY_enable_metrics_collection"


def niceness() -> int:
    return os.nice(0)


def test_its_processes_are_as_important_as_the_driver_and_collect_no_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("RAY_worker_niceness", METRICS):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)
    with ray_cluster(read_config(None), None):
        assert ray.get(ray.remote(niceness).remote()) == niceness()
        assert ray.nodes()[0]["MetricsExportPort"] < 0, "a node serves no metrics of Ray's own"


class Idle:
    """An actor that does nothing."""


@pytest.mark.slow
def test_a_node_serves_what_rays_dashboard_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs and TPUs aside, and what has happened to no node yet. `ray_io_cluster` is a label."""
    monkeypatch.setenv(METRICS, "1")  # as in a cluster that no run has started
    asked = set(re.findall(r"\bray_[a-z_]+", RAYS_DASHBOARD.read_text())) - {"ray_io_cluster"}
    rare = {"ray_memory_manager_worker_eviction_total", "ray_node_manager_unexpected_worker_failure_total"}
    asked = {name for name in asked if not re.search("_(gpu|gpus|gram|tpu)_", name)}
    asked -= rare | {"ray_placement_groups"}
    assert asked > {"ray_actors", "ray_node_cpu_utilization", "ray_object_store_memory"}
    deadline = time.monotonic() + 60
    with ray_cluster(read_config(None), None):
        _ = ray.remote(Idle).remote()
        (node,) = ray.nodes()
        page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        served: set[str] = set()
        while not asked <= served and time.monotonic() < deadline:
            time.sleep(1)
            with urllib.request.urlopen(page) as response:
                served = set(re.findall(r"^(ray_[a-z_]+)", response.read().decode(), re.MULTILINE))
    assert asked <= served, asked - served
