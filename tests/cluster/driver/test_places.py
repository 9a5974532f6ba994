"""Places of learner ranks on a Ray cluster in this machine, whose GPUs exist only in name."""

import json
from collections.abc import Iterator

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util import placement_group, remove_placement_group

from longview.cluster.driver.launch import start_servers
from longview.cluster.driver.places import LearnerPlaces, ServerPlaces
from longview.cluster.run.config import ConfigError, read_config
from longview.cluster.run.ending import RunFailed
from tests.cluster.nodes import LEAN_HEAD
from tests.conftest import Longview

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use a GPU here")

CANNOT = r"has a GPU for a learner rank, but its PyTorch .* (is a build for CPUs only|finds no GPU)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with room for two learner ranks, each with a GPU."""
    head = {"num_cpus": 2, "num_gpus": 2, "resources": {"learner": 2}, **LEAN_HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, namespace="places", log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@without_gpu
@pytest.mark.parametrize("asked", ["placement.learner_gpus=1", "learners=2"])
def test_a_pytorch_that_cannot_use_its_gpu_is_refused(cluster: Cluster, asked: str) -> None:
    """`learners=2` asks for no GPUs, and is given them because they are enough."""
    places = LearnerPlaces(read_config(None, [asked, "placement.learner.learner=1"]), alone=False)
    with pytest.raises(ConfigError, match=f"{CANNOT}.*placement.learner_gpus=0"):
        places.wait()


def test_ranks_without_gpus_are_not_asked_about(cluster: Cluster) -> None:
    config = read_config(None, ["placement.learner_gpus=0"])
    places = LearnerPlaces(config, alone=False)
    assert not places._answers
    places.wait()
    places.check()


def test_a_busy_gpu_is_waited_for_while_demonstrations_are_collected(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = placement_group([{"GPU": 2}])
    assert others.wait(60)
    monkeypatch.setattr("longview.cluster.driver.places.ANSWER_SECONDS", 0.1)
    places = LearnerPlaces(read_config(None, ["placement.learner_gpus=1"]), alone=False)
    places.wait()
    places.check()
    places.withdraw()
    remove_placement_group(others)


def watched(gpus: int) -> ServerPlaces:
    """Start an inference server on that many GPUs, and watch over it."""
    settings = ["inference.servers=1", f"placement.inference_gpus={gpus}"]
    return ServerPlaces(start_servers(read_config(None, settings), cpus=0, reports=False))


@without_gpu
def test_a_server_whose_pytorch_cannot_use_its_gpu_ends_the_run(cluster: Cluster) -> None:
    places = watched(gpus=1)
    ray.wait(places._answers)
    with pytest.raises(
        RunFailed, match=r"(?s)an inference server cannot start.*set placement.inference_gpus=0"
    ):
        places.check()


def test_a_server_without_a_place_is_missed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = watched(gpus=3)  # no node has so many
    places.check()
    assert not caplog.text
    monkeypatch.setattr("longview.cluster.driver.places.WARN_SECONDS", 0.0)
    places.check()
    assert "1 of 1 inference servers have no place" in caplog.text
    monkeypatch.setattr("longview.cluster.driver.places.LATE_SECONDS", 0.0)
    with pytest.raises(RunFailed, match="1 of 1 inference servers have no place"):
        places.check()


@without_gpu
def test_a_run_is_refused_before_it_collects_demonstrations(cluster: Cluster, longview: Longview) -> None:
    (longview.folder / "run.yaml").write_text("{task: return_point, name: refused, actors: {count: 1}}")
    code, output = longview("launch", "run.yaml", "--address", cluster.address)
    assert code == 2, output
    assert "longview: node " in output
    assert "placement.learner_gpus=0" in output
    summary = json.loads((longview.folder / "runs" / "refused" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["episodes"] == []
