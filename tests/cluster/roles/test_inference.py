"""Inference servers and the actors that ask them, in processes of their own. One server is killed at work."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from longview.actors.worker import Order
from longview.cluster.driver.launch import ray_cluster, start_actor, start_servers
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.inference import server_of
from longview.cluster.roles.ray import ALWAYS_BACK, Handle, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.run.config import RunConfig, read_config, task_of
from longview.cluster.run.services import redis_server
from longview.replay.store import StoreAddress

SETTINGS = [
    "actors={count: 2, simulators: 4}",
    "evaluation.context_lengths=[1, 8]",
    "learner.policy={architecture: mlp, width: 32, depth: 1, token_size: 8, context_length: 8, execute: 4}",
]
ORDERS = [
    Order("rollout", first, count, T_o, version)
    for first, count, T_o, version in ((0, 2, 8, 7), (2, 2, 8, 9), (4, 6, 1, 7), (10, 6, 8, 9))
]

TIMEOUT = 300
"""Longest wait for actors, which import torch on a busy machine, in seconds."""


def test_actors_share_out_the_servers() -> None:
    config = read_config(None, ["actors.count=5", "inference.servers=2"])
    servers = [server_of(f"actor-{index}", config) for index in range(5)]
    assert servers == ["inference-0", "inference-1", "inference-0", "inference-1", "inference-0"]
    assert server_of("actor-0", read_config(None)) is None


def weights_of(config: RunConfig) -> list[bytes]:
    """Make two versions of the policy, which act differently."""
    import torch

    from longview.learner.policy import policy_to_bytes

    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        policy = config.learner.policy.make(task_of(config).spec)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        made.append(policy_to_bytes(policy))
    return made


@pytest.fixture(scope="module")
def hub() -> Iterator[Handle]:
    with ray_cluster(read_config(None), None):
        yield start(MetricsHub, "test", "127.0.0.1", 0, name=HUB, **ALWAYS_BACK)


def has_torch(_: Any) -> bool:
    return "torch" in sys.modules


def test_served_actors_do_what_others_do_without_torch_whatever_dies(hub: Handle, tmp_path: Path) -> None:
    config = read_config(None, [*SETTINGS, "inference.servers=1"])
    seven, nine = (ray.put(weights) for weights in weights_of(config))
    weights = {7: [seven], 9: [nine]}

    def play(actor: Handle, order: Order) -> Any:
        assert order.version is not None
        return actor.work.remote(order, 9, weights[order.version], 0.0, {})

    with redis_server(tmp_path) as url:
        local, served = (StoreAddress(url, name) for name in ("local", "served"))
        stores = [address.connect(config.replay) for address in (local, served)]
        for store in stores:
            store.register(task_of(config).spec)
        alone = start_actor(read_config(None, SETTINGS), local, 0, "actor-0")
        ray.get([play(alone, order) for order in ORDERS], timeout=TIMEOUT)
        (server,) = start_servers(config, cpus=0)
        actors = [start_actor(config, served, 0, f"actor-{index}") for index in range(2)]

        # Two versions at the same time.
        ray.get([play(actors[0], ORDERS[0]), play(actors[1], ORDERS[1])], timeout=TIMEOUT)
        assert ray.get(alone.__ray_call__.remote(has_torch))
        assert not any(ray.get([actor.__ray_call__.remote(has_torch) for actor in actors]))

        # Killed while it decides.
        pid = ray.get(server.__ray_call__.remote(lambda _: os.getpid()))
        under_way = [play(actors[0], ORDERS[2]), play(actors[1], ORDERS[3])]
        assert not ray.wait(under_way, timeout=0.05)[0]
        os.kill(pid, signal.SIGKILL)
        assert [result.steps for result in ray.get(under_way, timeout=TIMEOUT)] == [600, 600]

        episodes = [[store.read(id) for id in sorted(store.ids())] for store in stores]
        assert len(episodes[0]) == 16
        for one, other in zip(*episodes, strict=True):
            assert one.meta == other.meta
            np.testing.assert_allclose(one.arrays["action"], other.arrays["action"], rtol=0, atol=1e-5)
        for store in stores:
            store.close()

    deadline, number, restarts = time.monotonic() + 60, 0, 0.0
    while not restarts:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        answer = ray.get(hub.exchange.remote(number)[0])
        number, counts = answer.number, answer.snapshot
        restarts = counts.by("longview_actor_restarts_total", "role").get("inference", 0.0)
    assert restarts == 1
    assert counts.total("longview_inference_decisions_total") > 0
