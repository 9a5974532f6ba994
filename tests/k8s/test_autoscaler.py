"""Ray's autoscaler with a run of the overlay `local`: pods come and leave as the run needs them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._raylet import GcsClient
from ray.core.generated.common_pb2 import NodeDeathInfo
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from k8s.check import need_of_actor, run_config
from k8s.pods import Object
from k8s.scale import room
from longview.cluster.run.folder import Run
from longview.cluster.run.services import RAY_SOCKET, redis_server, socket_folder
from longview.monitoring.snapshot import read_metrics
from tests.k8s.conftest import build, eventually, find, skip_without_namespaces
from tests.k8s.kuberay import POD, Kuberay, kuberay

RUN = """
name: scaled
task: return_point
actors: {count: 2, simulators: 8, demonstrations: 12}
learner:
  steps: 1000000
  batch_size: 16
  publish_every: 100
  checkpoint_every: 1000000
  report_every: 5
  validation_episodes: 4
  policy: {widths: [16, 32], token_size: 32}
evaluation: {episodes: 4, context_lengths: [1, 8]}
"""
IDLE_SECONDS = 15


@pytest.fixture
def objects() -> list[Object]:
    """Return the objects of the overlay `local`, with room for 2 actors, and pods that soon count as idle."""
    skip_without_namespaces(POD)
    made: list[Object] = list(yaml.load_all(build("local"), yaml.CSafeLoader))
    actors, learners = find(made, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    actors["maxReplicas"] = 1
    actors["idleTimeoutSeconds"] = learners["idleTimeoutSeconds"] = IDLE_SECONDS
    return made


@pytest.fixture
def cluster(objects: list[Object], tmp_path: Path) -> Iterator[Kuberay]:
    """Start the overlay's Ray cluster, with its head alone."""
    (tmp_path / "pods").mkdir()
    spec = find(objects, "RayJob")["spec"]["rayClusterSpec"]
    with (
        tempfile.TemporaryDirectory(
            dir=socket_folder(RAY_SOCKET + len("/r12345678/10")), prefix="r"
        ) as temporary,
        kuberay(spec, tmp_path / "pods", Path(temporary), LONGVIEW_RUNS=str(tmp_path / "runs")) as started,
    ):
        yield started


def node(cluster: Kuberay, pod: str) -> GcsNodeInfo:
    """Return what Ray's head knows of a pod's node."""
    nodes = GcsClient(cluster.address).get_all_node_info(timeout=30).values()
    (found,) = (it for it in nodes if it.instance_id == pod)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pods_follow_the_run(cluster: Kuberay, objects: list[Object], tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(run_config(objects))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(RUN), "placement": config["placement"]}))
    run = Run(tmp_path / "runs" / "scaled")
    with redis_server(tmp_path / "redis") as url:
        assert cluster.workers("actors") == cluster.workers("learners") == []
        launch = ["longview", "launch", str(file), "--address", cluster.address, f"replay.url={url}"]
        launched = cluster.head.start(*launch, log=tmp_path / "launch.log")
        eventually(lambda: read_metrics(run.state()["metrics"])["longview_learner_step"][()] > 0)
        (first,), (learner,) = cluster.workers("actors"), cluster.workers("learners")

        # `make scale` makes room in the Ray cluster before it asks the run.
        cluster.patch(
            list(room(cluster.cluster["spec"]["workerGroupSpecs"], need_of_actor(config), 3, "/spec"))
        )
        cluster.head.run("longview", "scale", "actors=3", str(run.path))
        _, second = cluster.workers("actors")
        assert cluster.group("actors")["maxReplicas"] == 2

        cluster.head.run("longview", "scale", "actors=1", str(run.path))
        (stays,) = eventually(lambda: len(pods := cluster.workers("actors")) == 1 and pods)
        (left,) = {first, second} - {stays}
        assert stays not in cluster.deletions
        gone = node(cluster, left)
        assert gone.death_info.reason == NodeDeathInfo.Reason.AUTOSCALER_DRAIN_IDLE
        assert gone.end_time_ms / 1000 < cluster.deletions[left]
        assert cluster.workers("learners") == [learner]
        assert launched.poll() is None
        assert run.state()["actors"]["there"] == 1

        cluster.head.run("longview", "stop", str(run.path))
        assert launched.wait(120) == 130, (tmp_path / "launch.log").read_text()
    eventually(lambda: [pod.name for pod in cluster.pods] == [cluster.head.name])
    assert cluster.deletions.keys() >= {first, second, learner}
