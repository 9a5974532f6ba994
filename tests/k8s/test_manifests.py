"""Tests of every overlay as built: its schemas, its references, and how Ray's autoscaler reads it."""

import gzip
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from k8s.check import entrypoint, problems, run_config
from k8s.generate import DASHBOARDS, DASHBOARDS_LIST, RULES, RULES_OBJECT, dashboards, prometheus_rule
from k8s.pods import Object, pods_of
from longview.cluster.driver.reports import CLOSE_SECONDS, SCRAPE_SECONDS
from longview.cluster.driver.training import STOP_SECONDS
from longview.cluster.run.config import read_config
from longview.cluster.run.copies import END_SECONDS
from tests.k8s.conftest import ROOT, find

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.32"
CONFIG_MAP_BYTES = 1 << 20


@cache
def custom_resources() -> dict[tuple[str, str], Draft202012Validator]:
    """Return validators by apiVersion and kind.

    An unknown field is an error, as on an API server with strict validation.
    """
    validators = {}
    for file in SCHEMAS.glob("*.yaml.gz"):
        definition = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            validators[key] = Draft202012Validator(schema)
    return validators


def strict(schema: Any) -> Any:
    """Convert a structural schema of Kubernetes to a JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(below) for below in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: strict(below) for key, below in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known.setdefault("additionalProperties", False)
    return known


def errors(item: Object) -> list[str]:
    """Return the errors that an object's schema finds in it."""
    validator = custom_resources().get((item["apiVersion"], item["kind"]))
    if validator is not None:
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(item)]
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def test_every_object_fits_its_schema(objects: list[Object]) -> None:
    assert [f"{it['kind']} {it['metadata']['name']}: {error}" for it in objects for error in errors(it)] == []


def test_the_job_that_restores_a_backup_is_in_order(objects: list[Object]) -> None:
    job = yaml.safe_load((ROOT / "k8s" / "restore-redis.yaml").read_text())
    assert errors(job) == []
    # The StatefulSet makes the claim of its first pod.
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-longview-redis-0", "namespace": "longview"},
    }
    assert problems([*objects, claim, job]) == []


def test_the_pod_that_files_are_copied_through_is_in_order(objects: list[Object]) -> None:
    pod = yaml.safe_load((ROOT / "k8s" / "files.yaml").read_text())
    assert errors(pod) == []
    assert problems([*objects, pod]) == []


@pytest.mark.parametrize("overlay", ["local"])
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 3),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        ("RayJob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"), []),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "prot"), "hub"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression"), "up"),
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "readOnlyRoot"), True),
        ("PersistentVolumeClaim", ("spec", "accessModes"), "ReadWriteMany"),
        ("ConfigMap", ("immutable",), "yes"),
    ],
)
def test_schemas_refuse_unknown_fields_and_wrong_types(
    objects: list[Object], kind: str, path: tuple[Any, ...], value: Any
) -> None:
    item = next(it for it in objects if it["kind"] == kind)
    *parents, last = path
    below = item
    for parent in parents:
        below = below[parent]
    below[last] = value
    assert errors(item)


def test_every_reference_has_its_target(objects: list[Object]) -> None:
    assert problems(objects) == []


def test_the_config_is_valid_and_is_launched_as_one_run(objects: list[Object], tmp_path: Path) -> None:
    command = entrypoint(objects)
    assert command[:3] == ["longview", "launch", "/etc/longview/run.yaml"]
    assert "--or-resume" in command
    assert find(objects, "RayJob")["spec"]["backoffLimit"] > 0
    (tmp_path / "run.yaml").write_text(run_config(objects))
    # The file must work on a single machine as well: it names nothing that only the cluster has.
    laptop = read_config(tmp_path / "run.yaml")
    assert laptop.replay.url is None
    assert laptop.monitoring.port == 0


def test_ray_reads_the_groups_as_intended(objects: list[Object], overlay: str) -> None:
    spec = find(objects, "RayJob")["spec"]["rayClusterSpec"]
    named = {"metadata": {"name": "longview", "namespace": "longview"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(named)
    head, actors, learners = (
        config["available_node_types"][name] for name in ("headgroup", "actors", "learners")
    )
    assert head["resources"]["CPU"] == 0
    assert actors["resources"]["actor"] == actors["resources"]["CPU"] > 0
    assert "actor" not in learners["resources"]
    assert learners["resources"]["learner"] == 1
    assert learners["resources"].get("GPU", 0) == (0 if overlay == "local" else 1)
    assert actors["max_workers"] > 0
    assert (actors["idle_timeout_s"], learners["idle_timeout_s"]) == (120, 600)
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}


def test_only_learners_tolerate_gpu_nodes(objects: list[Object]) -> None:
    tolerant = {
        pod.name
        for pod in pods_of(objects)
        if any(it["key"] == "nvidia.com/gpu" for it in pod.spec.get("tolerations", []))
    }
    assert tolerant <= {"longview learners"}


def test_a_head_on_a_dead_node_is_given_up_soon(objects: list[Object]) -> None:
    (head,) = (pod for pod in pods_of(objects) if pod.name == "longview head")
    given_up = {it["key"]: it["tolerationSeconds"] for it in head.spec["tolerations"]}
    assert given_up == {f"node.kubernetes.io/{state}": 30 for state in ("not-ready", "unreachable")}


def test_redis_is_the_last_pod_to_be_ended(objects: list[Object], overlay: str) -> None:
    (redis,) = (pod for pod in pods_of(objects) if pod.claims)
    guaranteed = all(it["resources"]["requests"] == it["resources"]["limits"] for it in redis.containers)
    assert guaranteed == (overlay != "local"), "a laptop has no CPUs to set aside"
    assert redis.spec["priorityClassName"] == "longview-services"


def test_every_end_leaves_the_time_to_save(objects: list[Object]) -> None:
    drain = (ROOT / "k8s" / "drain.sh").read_text()
    (stop,) = map(int, re.findall(r"longview stop .* --timeout (\d+)", drain))
    (learner,) = map(int, re.findall(r"seconds\" -lt (\d+)", drain))
    (rays_stop,) = map(int, re.findall(r"ray stop --grace-period (\d+)", drain))
    ends = {pod.name: pod for pod in pods_of(objects)}
    environment = {it["name"]: it.get("value") for it in ends["longview head"].containers[0]["env"]}
    job = int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    driver = STOP_SECONDS + CLOSE_SECONDS + 1.25 * SCRAPE_SECONDS + END_SECONDS
    assert driver + 20 <= job < stop, "the driver ends first, then the job, and the drain sees both"
    assert stop <= learner, "a learner's pod lasts as long as its driver"
    for name in ("longview head", "longview learners"):
        assert max(stop, learner) + rays_stop < ends[name].spec["terminationGracePeriodSeconds"]


def test_no_command_of_the_guide_runs_ahead_of_the_last() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    chained = 0
    for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith((" ", "#"))]
        for line, following in pairwise(lines):
            if re.search(r'"suspend":true| scale statefulset | delete (rayjob|statefulset) ', line):
                chained += 1
                assert re.search(r"^kubectl .*\b(wait|rollout status) ", following), f"{line}\n{following}"
    assert chained >= 5


def test_what_is_generated_is_current() -> None:
    assert RULES_OBJECT.read_text() == prometheus_rule(), "run `make generated`"
    assert DASHBOARDS_LIST.read_text() == dashboards(), "run `make generated`"


def test_every_rule_and_dashboard_is_deployed(objects: list[Object]) -> None:
    assert find(objects, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    files = {file.name: file.read_text() for file in DASHBOARDS.glob("*.json")}
    found = [it["data"] for it in objects if it["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert all(len(data) == 1 for data in found)
    assert {name: text for data in found for name, text in data.items()} == files
    assert all(len(text) < CONFIG_MAP_BYTES for text in files.values())
