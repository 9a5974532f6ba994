"""The Ray that a run starts for itself."""

import os

import ray

from longview.cluster.driver.launch import ray_cluster
from longview.cluster.run.config import read_config


def niceness() -> int:
    return os.nice(0)


def test_its_processes_are_as_important_as_the_driver() -> None:
    with ray_cluster(read_config(None), None):
        assert ray.get(ray.remote(niceness).remote()) == niceness()
