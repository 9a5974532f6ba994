"""A run on a Ray cluster that grows and shrinks with its actors: Ray's autoscaler, nodes in this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from longview.cluster.run.config import read_config
from longview.cluster.run.folder import Run
from longview.cluster.run.services import redis_server
from longview.replay.store import EpisodeStore

HEAD = "f" * 51 + "00000"
"""Format that Ray's provider of such nodes wants."""

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Ray's own provider for tests, whose nodes are raylets. It is named, since Ray's wheels lack its type."""

NODES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "actors": {
        "resources": {"CPU": 2, "actor": 2, "object_store_memory": 100_000_000},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
    "learners": {
        "resources": {"CPU": 1, "learner": 1, "object_store_memory": 100_000_000},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 1,
    },
}

CONFIG = """
task: return_point
name: grown
actors: {count: 1, simulators: 8, demonstrations: 26}
learner:
  steps: 100000
  warmup: 5
  batch_size: 16
  publish_every: 50
  checkpoint_every: 50
  report_every: 5
  validation_episodes: 4
  policy: {widths: [16, 32], token_size: 32}
evaluation: {episodes: 8, final_episodes: 16, context_lengths: [1, 8]}
placement: {actor: {actor: 1}, learner: {learner: 1}, learner_gpus: 0, autoscaled: true}
"""


@pytest.fixture
def address(longview: Any, tmp_path: Path) -> str:
    """Address of a head node without room for anything, and with an autoscaler."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("", 0))
            ports.append(free.getsockname()[1])
    ip = ray.util.get_node_ip_address()
    provider: dict[str, Any] = {"type": "external", "module": PROVIDER}
    provider |= {"use_node_id_as_ip": True, "disable_node_updaters": True}
    provider |= {"disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD}
    provider["gcs_address"] = f"{ip}:{ports[0]}"
    config = {
        "cluster_name": "test",
        "max_workers": 3,
        "provider": provider,
        "available_node_types": NODES,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "auth": {},
        "docker": {},
        "file_mounts": {},
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{name}_commands": [] for name in commands} | {"cluster_synced_files": []}
    (tmp_path / "autoscaling.json").write_text(json.dumps(config))
    options = {"autoscaling-config": tmp_path / "autoscaling.json", "node-ip-address": ip, "port": ports[0]}
    options |= {"ray-client-server-port": ports[1], "num-cpus": 0, "include-dashboard": "false"}
    options |= {"object-store-memory": 100_000_000}
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--disable-usage-stats"]
    subprocess.run(
        [*command, *(f"--{key}={value}" for key, value in options.items())],
        env=os.environ | longview.environment | environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return f"{ip}:{ports[0]}"  # the fixture `longview` ends all these processes


@pytest.mark.slow
def test_a_gpu_that_no_node_can_have_is_refused_before_demonstrations(
    longview: Any, address: str, tmp_path: Path
) -> None:
    (longview.folder / "grown.yaml").write_text(CONFIG)
    with redis_server(tmp_path / "redis") as url:
        gpus = ("placement.learner_gpus=1", f"replay.url={url}")
        code, output = longview("launch", "grown.yaml", "--address", address, *gpus)
        assert code == 2, output
        assert "cannot add nodes for 1 CPU, 1 learner, 1 GPU each" in output
        store = EpisodeStore.connect(url, "grown", read_config(None, []).replay)
        assert store.ids() == []
        store.close()
    assert nodes(longview) == 1


@pytest.mark.slow
def test_nodes_come_and_go_with_the_actors(longview: Any, address: str, tmp_path: Path) -> None:
    (longview.folder / "grown.yaml").write_text(CONFIG)
    with redis_server(tmp_path / "redis") as url:
        process = longview.start("launch", "grown.yaml", "--address", address, f"replay.url={url}")
        run = Run(longview.folder / "runs" / "grown")
        longview.wait_for(run.evaluations, 240)
        assert nodes(longview) == 3  # the head, one for the actor, one for the learner

        code, output = longview("scale", "actors=3", "grown", "--timeout", "200")
        assert code == 0, output
        assert "1 of 3 actors are there" in output
        assert "which the autoscaler has been asked for" in output
        assert nodes(longview) == 4
        assert len(longview.processes("ray::RolloutActor")) == 3

        # Asked for more nodes than the cluster may have, the command says so, and the placed actors go on.
        code, output = longview("scale", "actors=6", "grown", "--timeout", "20")
        assert code == 1, output
        assert "4 of 6 actors are there" in output.splitlines()[-1]
        evaluated = len(run.evaluations())
        longview.wait_for(lambda: len(run.evaluations()) > evaluated, 300)

        code, output = longview("scale", "actors=2", "grown", "--timeout", "100")
        assert code == 0, output
        # The actors leave one node, which then goes.
        longview.wait_for(lambda: nodes(longview) == 3, 200)
        code, output = longview("stop", "grown")
        assert code == 0, output
        process.wait(60)
        assert "died" not in (run.path / "log.txt").read_text()

        store = EpisodeStore.connect(url, "grown", read_config(None, []).replay)
        ids = store.ids()
        assert len(store.ids("demo")) == 30
        assert len(ids) == len(set(ids)) == store.stats().total.episodes
        assert sum(store.read(id).length for id in ids) == store.stats().total.steps
        assert all(found.rolled_out == 8 for found in run.evaluations())
        store.close()


def nodes(longview: Any) -> int:
    """Count the Ray nodes that are up, by their raylets."""
    return len(longview.processes("/raylet/raylet "))
