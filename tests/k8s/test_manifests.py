"""Tests of every overlay as built: its schemas, its references, and how Ray's autoscaler reads it."""

import gzip
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from k8s.check import RUN_LABEL, entrypoint, problems, run_config, run_name
from k8s.generate import (
    DASHBOARDS,
    DASHBOARDS_LIST,
    RAYS_DASHBOARD,
    RULES,
    RULES_OBJECT,
    dashboards,
    prometheus_rule,
    rays_dashboard,
)
from k8s.pods import Object, Pod, pods_of, selected, walk
from longview.cluster.driver.reports import CLOSE_SECONDS, CLOSE_TURNS, SCRAPE_SECONDS
from longview.cluster.driver.training import STOP_SECONDS
from longview.cluster.run.config import read_config
from longview.cluster.run.copies import END_SECONDS
from longview.monitoring import mirrors
from tests.k8s.conftest import ROOT, build, find, kustomized

GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
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


def of_run(file: str, run: str) -> Any:
    """Return the object of a file that is applied by itself, with the run's name put in."""
    return yaml.safe_load((ROOT / "k8s" / file).read_text().replace("RUN", run))


def test_the_job_that_restores_a_backup_is_in_order(objects: list[Object], overlay: str) -> None:
    job = of_run("restore-redis.yaml", overlay)
    assert errors(job) == []
    # The StatefulSet makes the claim of its first pod.
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"data-longview-redis-{overlay}-0", "namespace": "longview"},
    }
    assert problems([*objects, claim, job]) == []


def test_the_pod_that_files_are_copied_through_is_in_order(objects: list[Object], overlay: str) -> None:
    pod = of_run("files.yaml", overlay)
    assert errors(pod) == []
    assert problems([*objects, pod]) == []


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Object], list[Object]]:
    """The objects of two runs, the second made of a copy of the first one's overlay as the guide says."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "k8s", root / "k8s")
    (commands,) = re.findall(r"```sh\n(cd k8s/overlays\n.*?)```", GUIDE, re.DOTALL)
    subprocess.run(["sh", "-ec", commands], cwd=root, check=True)
    one, two = (
        list(yaml.load_all(kustomized(root / "k8s" / "overlays" / name), yaml.CSafeLoader))
        for name in ("gpu", "again")
    )
    return one, two


def test_a_second_run_is_in_order(two_runs: tuple[list[Object], list[Object]]) -> None:
    shared = list(yaml.load_all(kustomized(ROOT / "k8s" / "shared"), yaml.CSafeLoader))
    for run in two_runs:
        assert problems([*shared, *run]) == []
    assert [run_name(run) for run in two_runs] == ["gpu", "again"]


def test_two_runs_share_no_object(two_runs: tuple[list[Object], list[Object]]) -> None:
    one, two = ({(it["kind"], it["metadata"]["name"]) for it in run} for run in two_runs)
    assert one
    assert one & two == set()
    claims = [{claim for pod in pods_of(run) for claim in claims_of(pod)} for run in two_runs]
    assert claims[0]
    assert claims[0] & claims[1] == set()
    secrets = [{it["name"] for key, it in walk(run) if key == "secretKeyRef"} for run in two_runs]
    assert secrets == [{"longview-redis-gpu"}, {"longview-redis-again"}]


def claims_of(pod: Pod) -> Iterator[str]:
    """Yield the names of the volume claims that a pod mounts."""
    yield from (f"{claim}-{pod.name}-{index}" for claim in pod.claims for index in range(pod.replicas))
    for volume in pod.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]


def test_no_selector_of_a_run_chooses_a_pod_of_another(two_runs: tuple[list[Object], list[Object]]) -> None:
    for mine, others in (two_runs, two_runs[::-1]):
        pods = list(pods_of(mine))
        chosen = 0
        for item in mine:
            for key, selector in walk(item):
                if key in ("selector", "podSelector", "labelSelector"):
                    chosen += len(selected(selector, pods))
                    assert selected(selector, pods_of(others)) == [], f"{item['kind']} {selector}"
        assert chosen > 20


def with_option(folder: Path, overlay: str, option: str | None = None, **texts: str) -> list[Object]:
    """Build a copy of an overlay, changed as the guide says; with what all runs share.

    Args:
        folder: an empty folder.
        overlay: name of the overlay.
        option: name of a folder in options/.
        texts: what is added to files of the overlay, by their names without `.yaml`.
    """
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    for name, text in texts.items():
        with (folder / "k8s" / "overlays" / overlay / f"{name}.yaml").open("a") as file:
            file.write(text)
    if option is not None:
        (said,) = re.findall(r"^components:\n  - \.\./\.\./options/.*\n", GUIDE, re.MULTILINE)
        with (folder / "k8s" / "overlays" / overlay / "kustomization.yaml").open("a") as file:
            file.write(said.replace("spot", option))
    built = (kustomized(ROOT / "k8s" / "shared"), kustomized(folder / "k8s" / "overlays" / overlay))
    return [it for text in built for it in yaml.load_all(text, yaml.CSafeLoader)]


def block(first: str) -> str:
    """Return the block of YAML of the guide that begins so."""
    (found,) = (it for it in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if it.startswith(first))
    return str(found)


OPTIONS = sorted(folder.name for folder in (ROOT / "k8s" / "options").iterdir())


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "kueue"])
def test_an_option_is_in_order(tmp_path: Path, option: str) -> None:
    objects = with_option(tmp_path, "gpu", option)
    assert problems(objects) == []
    # No schema of Cilium's is at hand.
    assert [errors(it) for it in objects if it["kind"] != "CiliumNetworkPolicy" and errors(it)] == []
    assert f"| `{option}` |" in GUIDE


def test_cilium_lets_the_autoscaler_of_this_run_reach_the_api_server(tmp_path: Path) -> None:
    policy = find(with_option(tmp_path, "gpu", "cilium"), "CiliumNetworkPolicy", "api-server-gpu")
    chosen = policy["spec"]["endpointSelector"]["matchLabels"]
    assert chosen == {"app.kubernetes.io/component": "head", RUN_LABEL: "gpu"}
    assert policy["spec"]["egress"] == [{"toEntities": ["kube-apiserver"]}]


def egress(policy: Object) -> list[tuple[set[str], set[int]]]:
    """Return what a policy lets its pods reach: addresses and TCP ports of each rule."""
    assert policy["spec"]["policyTypes"] == ["Egress"]
    rules = policy["spec"]["egress"]
    assert {port["protocol"] for rule in rules for port in rule["ports"]} == {"TCP"}
    return [
        ({to["ipBlock"]["cidr"] for to in rule["to"]}, {port["port"] for port in rule["ports"]})
        for rule in rules
    ]


def test_only_the_head_reaches_the_api_server_wherever_it_answers(objects: list[Object]) -> None:
    policy = find(objects, "NetworkPolicy", f"api-server-{run_name(objects)}")
    (head,) = selected(policy["spec"]["podSelector"], pods_of(objects))
    assert head.name.endswith(" head")
    assert egress(policy) == [({"0.0.0.0/0", "::/0"}, {443, 6443, 8443, 16443})]
    assert "port 443, 6443, 8443 (minikube) or 16443 (microk8s)" in GUIDE


def test_only_the_head_reaches_an_object_store_and_its_credentials(tmp_path: Path) -> None:
    objects = with_option(tmp_path, "gpu", "object-store")
    policy = find(objects, "NetworkPolicy", "object-store-gpu")
    (head,) = selected(policy["spec"]["podSelector"], pods_of(objects))
    assert head.name.endswith(" head")
    metadata = {"169.254.169.254/32", "169.254.169.252/32", "169.254.170.23/32"}
    assert egress(policy) == [({"0.0.0.0/0", "::/0"}, {9000}), (metadata, {80, 988})]


def test_only_actors_go_to_spot_nodes(tmp_path: Path) -> None:
    pods = list(pods_of(with_option(tmp_path, "gpu", "spot")))
    affinities = {pod.name: pod.spec["affinity"] for pod in pods if "affinity" in pod.spec}
    assert set(affinities) == {"longview-gpu actors"}
    # GKE and AKS taint their spot nodes; EKS and Karpenter do so only if they are told to.
    (actors,) = (pod for pod in pods if pod.name == "longview-gpu actors")
    tolerated = {(it["key"], it["operator"], it["effect"]) for it in actors.spec["tolerations"]}
    assert tolerated == {
        ("cloud.google.com/gke-spot", "Exists", "NoSchedule"),
        ("kubernetes.azure.com/scalesetpriority", "Exists", "NoSchedule"),
    }


def test_every_pod_of_the_image_signs_on_to_a_private_registry(tmp_path: Path) -> None:
    pods = list(pods_of(with_option(tmp_path, "gpu", "private-registry")))
    ours = {pod.name for pod in pods if any(it["image"].startswith("longview:") for it in pod.containers)}
    signed = {pod.name for pod in pods if pod.spec.get("imagePullSecrets") == [{"name": "longview-registry"}]}
    assert len(ours) == 4
    assert signed == ours


def test_a_run_in_kueues_queue_has_its_full_size(tmp_path: Path) -> None:
    sizes = block("- {op: replace, path: /spec/rayClusterSpec/workerGroupSpecs/0/minReplicas")
    objects = with_option(tmp_path, "gpu", "kueue", groups=sizes)
    config = find(objects, "ConfigMap", "longview-run-gpu")["data"]
    config["run.yaml"] = config["run.yaml"].replace("autoscaled: true", "autoscaled: false")
    assert problems(objects) == []
    job = find(objects, "RayJob")
    assert errors(job) == []
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "longview"


def test_a_pod_can_hold_several_learners(tmp_path: Path) -> None:
    larger = block("- {op: replace, path: /spec/rayClusterSpec/workerGroupSpecs/1/maxReplicas")
    objects = with_option(tmp_path, "production", groups=larger)
    assert errors(find(objects, "RayJob")) == []
    config = find(objects, "ConfigMap", "longview-run-production")["data"]
    for learners, fine in (("4", True), ("8", False)):
        config["run.yaml"] = re.sub(
            r"^learners: .*$", f"learners: {learners}", config["run.yaml"], flags=re.MULTILINE
        )
        assert (problems(objects) == []) == fine, learners


def test_the_head_gets_the_credentials_of_an_object_store(tmp_path: Path) -> None:
    credentials = block("- op: add\n  path: /spec/rayClusterSpec/headGroupSpec")
    objects = with_option(tmp_path, "gpu", groups=credentials)
    assert problems(objects) == []
    assert errors(find(objects, "RayJob")) == []
    given = {pod.name: it["envFrom"] for pod in pods_of(objects) for it in pod.containers if "envFrom" in it}
    assert given == {"longview-gpu head": [{"secretRef": {"name": "longview-copies-gpu"}}]}
    assert "kubectl create secret generic longview-copies-gpu --namespace longview" in GUIDE


def test_the_image_has_what_copies_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "copies" in re.findall(r"\w+", extras["all"][0]), "the Dockerfile installs what `all` names"
    pins = (ROOT / "constraints.txt").read_text()
    for requirement in extras["copies"]:
        assert re.search(rf"^{re.split('[<>=]', requirement)[0]}==", pins, re.MULTILINE), requirement


def test_the_guide_names_the_driver_that_cuda_needs() -> None:
    pins = (ROOT / "k8s" / "constraints-cuda.txt").read_text()
    (major,) = set(re.findall(r"^(?:cuda-toolkit|nvidia-cuda-runtime)==(\d+)\.", pins, re.MULTILINE))
    assert major == "13", "another CUDA needs another driver: NVIDIA's release notes say which"
    assert "NVIDIA's driver 580 or newer: PyTorch in the image is built for CUDA 13." in GUIDE


def test_no_two_names_of_runs_give_an_object_the_same_name(objects: list[Object], overlay: str) -> None:
    """One name that begins like another could meet it, as `a` and `b-a` would meet in `x-b-a`."""
    names = [
        (it["kind"], it["metadata"]["name"].removesuffix(overlay))
        for it in objects
        if it["metadata"].get("labels", {}).get(RUN_LABEL) == overlay
    ]
    clashes = [
        (one, two) for one, two in permutations(names, 2) if one[0] == two[0] and one[1].startswith(two[1])
    ]
    assert clashes == []


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


def test_only_learners_tolerate_gpu_nodes(objects: list[Object], overlay: str) -> None:
    tolerant = {
        pod.name
        for pod in pods_of(objects)
        if any(it["key"] == "nvidia.com/gpu" for it in pod.spec.get("tolerations", []))
    }
    assert tolerant <= {f"longview-{overlay} learners"}


def test_a_head_on_a_dead_node_is_given_up_soon(objects: list[Object]) -> None:
    (head,) = (pod for pod in pods_of(objects) if pod.name.endswith(" head"))
    given_up = {it["key"]: it["tolerationSeconds"] for it in head.spec["tolerations"]}
    assert given_up == {f"node.kubernetes.io/{state}": 30 for state in ("not-ready", "unreachable")}


def test_redis_and_the_head_come_before_actors_and_learners(objects: list[Object]) -> None:
    first = {pod.name.split()[-1] for pod in pods_of(objects) if "priorityClassName" in pod.spec}
    assert first == {"head", f"longview-redis-{run_name(objects)}"}
    assert find(objects, "PriorityClass", "longview-services")["value"] > 0, (
        "all others have none, which is 0"
    )


def test_the_operators_are_installed_as_the_manifests_need_them(objects: list[Object]) -> None:
    said = dict(re.findall(r"--set(?:-string)? '?([\w.\[\]]+)=([^' \n]+)", GUIDE))
    assert said["env[0].name"] == "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "read by KubeRay's operator"
    assert said["env[0].value"] == "1800", "the guide says: half an hour"
    # Helm would make a number of the value, which the API server refuses in an environment.
    assert "--set-string 'env[0].value=" in GUIDE
    assert GUIDE.count("RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS") >= 2
    assert set(re.findall(r"RAYJOB_\w+", RUNBOOK)) == {"RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"}
    release = said["metrics.serviceMonitor.additionalLabels.release"]
    assert f"helm install {release} prometheus-community/kube-prometheus-stack" in GUIDE
    watched = [it for it in objects if it["kind"] in ("PodMonitor", "PrometheusRule")]
    assert {it["metadata"]["labels"]["release"] for it in watched} == {release}
    # Grafana looks for dashboards in all namespaces, and finds those of this one.
    assert said["grafana.sidecar.dashboards.searchNamespace"] == "ALL"


def test_the_guides_storage_class_is_the_one_that_production_takes() -> None:
    made = yaml.safe_load(block("apiVersion: storage.k8s.io/v1"))
    assert errors(made) == []
    claims = [it for it in yaml.safe_load_all(build("production")) if it["kind"] == "PersistentVolumeClaim"]
    assert made["metadata"]["name"] in {it["spec"].get("storageClassName") for it in claims}


def test_the_guides_receiver_gets_every_alert(objects: list[Object]) -> None:
    config = yaml.safe_load(block("alertmanager:"))["alertmanager"]["config"]
    (route,) = config["route"]["routes"]
    assert {config["route"]["receiver"], route["receiver"]} == {it["name"] for it in config["receivers"]}
    (pattern,) = re.findall(r'^alertname =~ "(.+)"$', route["matchers"][0])
    groups = find(objects, "PrometheusRule")["spec"]["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert alerts
    assert [name for name in alerts if not re.fullmatch(pattern, name)] == []


def test_a_run_can_copy_its_results_elsewhere(tmp_path: Path) -> None:
    assert problems(with_option(tmp_path, "gpu", run=block("copy_to:"))) == []


def test_every_block_of_yaml_of_the_guide_is_used_by_a_test() -> None:
    assert len(re.findall(r"```yaml\n", GUIDE)) == 7, "test the new block as well"


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
    ends = {pod.name.split()[-1]: pod for pod in pods_of(objects)}
    environment = {it["name"]: it.get("value") for it in ends["head"].containers[0]["env"]}
    job = int(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    reports = CLOSE_TURNS * CLOSE_SECONDS + 1.25 * SCRAPE_SECONDS
    driver = STOP_SECONDS + reports + mirrors.CLOSE_SECONDS + END_SECONDS
    assert driver + 20 <= job < stop, "the driver ends first, then the job, and the drain sees both"
    assert stop <= learner, "a learner's pod lasts as long as its driver"
    for name in ("head", "learners"):
        assert max(stop, learner) + rays_stop < ends[name].spec["terminationGracePeriodSeconds"]


def test_no_command_of_the_guide_runs_ahead_of_the_last() -> None:
    chained = 0
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith((" ", "#"))]
        for line, following in pairwise(lines):
            if re.search(r'"suspend":true| scale statefulset | delete (rayjob|statefulset) ', line):
                chained += 1
                assert re.search(r"^kubectl .*\b(wait|rollout status) ", following), f"{line}\n{following}"
    assert chained >= 5


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of Ray's generator
def test_what_is_generated_is_current() -> None:
    assert RULES_OBJECT.read_text() == prometheus_rule(), "run `make generated`"
    assert DASHBOARDS_LIST.read_text() == dashboards(), "run `make generated`"
    assert RAYS_DASHBOARD.read_text() == rays_dashboard(), "run `make generated`"


def test_a_run_can_be_chosen_on_rays_dashboard(objects: list[Object]) -> None:
    tree = json.loads(RAYS_DASHBOARD.read_text())
    asked = next(it for it in tree["templating"]["list"] if it["name"] == "Cluster")["query"]["query"]
    assert asked.endswith(", ray_io_cluster)")
    given = {"sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"], "targetLabel": "ray_io_cluster"}
    monitors = [it for it in objects if it["kind"] == "PodMonitor" and "redis" not in it["metadata"]["name"]]
    ports = [port for monitor in monitors for port in monitor["spec"]["podMetricsEndpoints"]]
    rays = [port for port in ports if port["port"] != "hub"]
    assert len(rays) == 4
    assert all(given in port["relabelings"] for port in rays)


def test_every_rule_and_dashboard_is_deployed(objects: list[Object]) -> None:
    assert find(objects, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    files = {file.name: file.read_text() for file in (*DASHBOARDS.glob("*.json"), RAYS_DASHBOARD)}
    found = [it["data"] for it in objects if it["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert all(len(data) == 1 for data in found)
    assert {name: text for data in found for name, text in data.items()} == files
    assert all(len(text) < CONFIG_MAP_BYTES for text in files.values())
