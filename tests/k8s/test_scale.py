"""Tests of `make scale`, with a script in place of kubectl that keeps the cluster's objects as files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from k8s.scale import main, room
from tests.conftest import COMMAND
from tests.k8s.conftest import ROOT, build, find, run_here

KUBECTL = """#!{python}
import json, os, pathlib, subprocess, sys
cluster, arguments = pathlib.Path(os.environ["CLUSTER"]), sys.argv[1:]
match arguments:
    case ["kustomize", folder] if folder.endswith("shared"):
        pass
    case ["kustomize", _]:
        print((cluster / "built").read_text())
    case ["get", "pods", *_]:
        print("pod/head" if (cluster / "head").exists() else "")
    case ["get" | "patch", _, "", *_]:
        sys.exit("error: resource name may not be empty")
    case ["get", kind, name, *_]:
        file = cluster / f"{{kind}}-{{name}}"
        print(file.read_text() if file.exists() else "")
    case ["patch", kind, name, *_, patch]:
        file = cluster / f"{{kind}}-{{name}}"
        tree = json.loads(file.read_text())
        for operation in json.loads(patch):
            *above, last = operation["path"].lstrip("/").split("/")
            item = tree
            for key in above:
                item = item[int(key) if isinstance(item, list) else key]
            if operation["op"] == "test":
                assert item[last] == operation["value"]
            else:
                item[last] = operation["value"]
        file.write_text(json.dumps(tree))
        print(f"{{kind}}/{{name}} patched")
    case ["exec", "--namespace", "longview", "pod/head", "--container", "ray-head", "--", "longview", *rest]:
        sys.exit(subprocess.run([sys.executable, "-c", os.environ["COMMAND"], *rest]).returncode)
    case _:
        sys.exit(64)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Make a cluster in which the run of the overlay `gpu` is under way, with room for 32 actors."""
    (tmp_path / "kubectl").write_text(KUBECTL.format(python=sys.executable))
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "built").write_text(build("gpu"))
    (tmp_path / "head").touch()
    job = find(list(yaml.load_all(build("gpu"), yaml.CSafeLoader)), "RayJob")
    name, spec = job["metadata"]["name"], job["spec"]["rayClusterSpec"]
    put(tmp_path / f"rayjob-{name}", job | {"status": {"rayClusterName": "cluster"}})
    put(tmp_path / "raycluster-cluster", {"metadata": {"name": "cluster", "namespace": "n"}, "spec": spec})
    return tmp_path


def put(file: Path, tree: object) -> None:
    file.write_text(json.dumps(tree))


def environment(cluster: Path) -> dict[str, str]:
    """Return variables with which the command finds this cluster. In its head there is no run under way."""
    path = {"PATH": f"{cluster}:{os.environ['PATH']}", "CLUSTER": str(cluster)}
    return path | {"COMMAND": COMMAND, "LONGVIEW_RUNS": str(cluster / "runs")}


def scale(cluster: Path, actors: str) -> tuple[int, str]:
    """Run the command in a process of its own, since kubectl prints for it: exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "k8s.scale", "gpu", actors],
        cwd=ROOT,
        env=os.environ | environment(cluster),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def autoscaler_reads(cluster: Path) -> int:
    """Return the largest number of actors' nodes, as Ray's autoscaler reads it from the Ray cluster."""
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(
        json.loads((cluster / "raycluster-cluster").read_text())
    )
    largest: int = config["available_node_types"]["actors"]["max_workers"]
    return largest


def test_the_group_gets_room_for_the_actors_and_then_the_run_is_asked(cluster: Path) -> None:
    assert autoscaler_reads(cluster) == 8
    code, said = scale(cluster, "33")
    assert autoscaler_reads(cluster) == 9
    (job,) = cluster.glob("rayjob-*")
    groups = json.loads(job.read_text())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert groups[0]["maxReplicas"] == 9, "a further attempt has the room as well"
    # The command in the head is the real one, and its answer is passed on.
    assert (code, "no run 'gpu'" in said) == (2, True)


@pytest.mark.parametrize(("actors", "nodes"), [(1, None), (32, None), (33, 9), (36, 9), (64, 16)])
def test_a_maximum_is_raised_as_far_as_needed_and_never_lowered(actors: int, nodes: int | None) -> None:
    groups = [
        {"groupName": "learners", "maxReplicas": 1, "resources": {"CPU": "4", "GPU": "1"}},
        {"groupName": "actors", "maxReplicas": 8, "resources": {"CPU": "4", "actor": "4"}},
    ]
    patch = list(room(groups, {"CPU": 1, "actor": 1}, actors, "/spec"))
    assert [(it["path"], it["value"]) for it in patch] == (
        [("/spec/workerGroupSpecs/1/groupName", "actors"), ("/spec/workerGroupSpecs/1/maxReplicas", nodes)]
        if nodes
        else []
    )


def test_without_a_ray_cluster_nothing_is_changed(cluster: Path) -> None:
    (cluster / "raycluster-cluster").unlink()
    assert refusal(cluster).startswith(
        "longview: RayJob longview-gpu has no Ray cluster now: set actors.count"
    )


@pytest.mark.parametrize("status", [{}, {"rayClusterName": "", "jobDeploymentStatus": "Suspended"}])
def test_a_job_that_names_no_ray_cluster_is_not_changed(cluster: Path, status: dict[str, str]) -> None:
    (job,) = cluster.glob("rayjob-*")
    put(job, json.loads(job.read_text()) | {"status": status})
    assert refusal(cluster).startswith(
        "longview: RayJob longview-gpu has no Ray cluster now: set actors.count"
    )


def test_a_cluster_without_an_autoscaler_is_not_changed(cluster: Path) -> None:
    file = cluster / "raycluster-cluster"
    tree = json.loads(file.read_text())
    tree["spec"]["enableInTreeAutoscaling"] = False
    put(file, tree)
    assert "no autoscaler, so it keeps its size" in refusal(cluster)


def test_a_cluster_without_a_head_is_not_changed(cluster: Path) -> None:
    (cluster / "head").unlink()
    assert "Ray cluster cluster has no head now" in refusal(cluster)


def refusal(cluster: Path) -> str:
    """Ask for more actors than there is room for; return why that is refused. Nothing may have changed."""
    before = {file.name: file.read_text() for file in cluster.glob("ray*-*")}
    code, said = run_here(main, "gpu", "64", environment=environment(cluster))
    assert code == 2
    assert {file.name: file.read_text() for file in cluster.glob("ray*-*")} == before
    return said


def test_a_number_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("gpu", "many")
    assert capsys.readouterr().err.startswith("longview: ACTORS: expected actors=N")
