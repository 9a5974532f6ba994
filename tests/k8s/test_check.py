"""Tests that the check of the manifests finds every kind of breach and names it."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from k8s.check import RUN_LABEL, problems
from k8s.pods import Object, bytes_of
from tests.k8s.conftest import build, find


def redis(objects: list[Object]) -> Any:
    return find(objects, "StatefulSet")["spec"]["template"]["spec"]


def head(objects: list[Object]) -> Any:
    return cluster(objects)["headGroupSpec"]["template"]["spec"]


def cluster(objects: list[Object]) -> Any:
    return find(objects, "RayJob")["spec"]["rayClusterSpec"]


def group(objects: list[Object], index: int) -> Any:
    return cluster(objects)["workerGroupSpecs"][index]


def run(objects: list[Object], **settings: Any) -> None:
    data = find(objects, "ConfigMap", "longview-run-gpu")["data"]
    data["run.yaml"] = yaml.safe_dump(yaml.safe_load(data["run.yaml"]) | settings)


def drop(objects: list[Object], kind: str, name: str) -> None:
    objects.remove(find(objects, kind, name))


def launch(objects: list[Object], old: str, new: str) -> None:
    spec = find(objects, "RayJob")["spec"]
    assert old in spec["entrypoint"]
    spec["entrypoint"] = spec["entrypoint"].replace(old, new)


BREACHES: dict[str, tuple[Callable[[list[Object]], Any], str]] = {
    "a secret's key": (
        lambda it: head(it)["containers"][0]["env"][1]["valueFrom"]["secretKeyRef"].update(key="pasword"),
        "no Secret longview-redis-gpu has a key pasword",
    ),
    "a secret of Ray's": (
        lambda it: cluster(it)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"][
            "secretKeyRef"
        ].update(name="redis"),
        "no Secret redis",
    ),
    "a secret in the manifests": (
        lambda it: it.append(
            {"kind": "Secret", "metadata": {"name": "longview-redis", "namespace": "longview"}}
        ),
        "secrets must not be part of the manifests",
    ),
    "a ConfigMap": (
        lambda it: drop(it, "ConfigMap", "longview-redis-gpu"),
        "ConfigMap longview-redis-gpu does not exist",
    ),
    "a file": (
        lambda it: find(it, "ConfigMap", "longview-redis-gpu")["data"].pop("start-redis.sh"),
        "no mounted ConfigMap holds /etc/redis/start-redis.sh",
    ),
    "the run's config": (
        lambda it: head(it)["containers"][0]["volumeMounts"][2].update(mountPath="/etc/lonview"),
        "no mounted ConfigMap holds /etc/longview/run.yaml",
    ),
    "a priority": (
        lambda it: drop(it, "PriorityClass", "longview-services"),
        "PriorityClass longview-services does not exist",
    ),
    "a claim": (
        lambda it: drop(it, "PersistentVolumeClaim", "longview-runs-gpu"),
        "PersistentVolumeClaim longview-runs-gpu does not exist",
    ),
    "a volume": (lambda it: redis(it)["volumes"].pop(0), "mounts run, but the pod has no such volume"),
    "a volume too many": (
        lambda it: redis(it)["volumes"].append({"name": "more", "emptyDir": {}}),
        "no container mounts the volume more",
    ),
    "one path twice": (
        lambda it: redis(it)["containers"][0]["volumeMounts"][0].update(mountPath="/run/redis"),
        "two volumes at one path",
    ),
    "a probe's port": (
        lambda it: head(it)["containers"][0]["livenessProbe"]["httpGet"].update(port="health"),
        "livenessProbe of ray-head asks port health",
    ),
    "a service's selector": (
        lambda it: find(it, "Service", "longview-redis-gpu")["spec"]["selector"].update(tier="store"),
        "Service longview-redis-gpu: selects no pod",
    ),
    "a service's port": (
        lambda it: find(it, "Service", "longview-redis-gpu")["spec"]["ports"][0].update(targetPort="reds"),
        "longview-redis-gpu has no port reds",
    ),
    "the headless service": (
        lambda it: find(it, "Service", "longview-replicas-gpu")["spec"].pop("clusterIP"),
        "headless Service longview-replicas-gpu does not exist",
    ),
    "the set's own pods": (
        lambda it: find(it, "StatefulSet")["spec"]["selector"]["matchLabels"].update(tier="store"),
        "does not select its own pods",
    ),
    "a budget": (
        lambda it: find(it, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(tier="store"),
        "PodDisruptionBudget longview-redis-gpu: selects no pod",
    ),
    "a policy's pods": (
        lambda it: find(it, "NetworkPolicy", "redis-gpu")["spec"]["podSelector"]["matchLabels"].update(
            tier="store"
        ),
        "NetworkPolicy redis-gpu: selects no pod",
    ),
    "a policy's peers": (
        lambda it: find(it, "NetworkPolicy", "redis-gpu")["spec"]["egress"][0]["to"][0]["podSelector"].update(
            matchLabels={"tier": "store"}
        ),
        "a rule of egress selects no pod",
    ),
    "a policy's port": (
        lambda it: find(it, "NetworkPolicy", "redis-gpu")["spec"]["ingress"][0]["ports"][0].update(port=6380),
        "allows ingress to port 6380, but none of its pods has that port",
    ),
    "a policy's types": (
        lambda it: find(it, "NetworkPolicy", "redis-gpu")["spec"].update(policyTypes=["Ingress"]),
        "has egress rules, but its policyTypes do not list Egress",
    ),
    "a scraped port": (
        lambda it: find(it, "PodMonitor", "longview-head-gpu")["spec"]["podMetricsEndpoints"][0].update(
            port="hup"
        ),
        "longview-gpu head has no port hup",
    ),
    "a scraped port that is kept closed": (
        lambda it: find(it, "NetworkPolicy", "metrics-gpu")["spec"]["ingress"][0]["ports"].pop(1),
        "keeps Prometheus from port hub",
    ),
    "the hub's port": (
        lambda it: launch(it, "monitoring.port=9600", "monitoring.port=9601"),
        "monitoring.port is 9601, but the head has no port named `hub` with that number",
    ),
    "the store's host": (
        lambda it: launch(it, "longview@longview-redis-gpu:", "longview@redis:"),
        "no Service redis has a port 6379",
    ),
    "the runs' volume": (
        lambda it: group(it, 1)["template"]["spec"]["containers"][0]["volumeMounts"][1].update(
            mountPath="/runs"
        ),
        "one claim that head and learners mount at the same path",
    ),
    "a namespace": (
        lambda it: find(it, "StatefulSet")["metadata"].pop("namespace"),
        "is not in the namespace longview",
    ),
    "a name twice": (
        lambda it: it.append(find(it, "StatefulSet")),
        "StatefulSet longview-redis-gpu: this name is used twice",
    ),
    "another name in the config": (
        lambda it: run(it, name="second"),
        "run.yaml has name: second, but the overlay's kustomization.yaml has nameSuffix: -gpu",
    ),
    "another run's label": (
        lambda it: find(it, "StatefulSet")["metadata"]["labels"].update({RUN_LABEL: "second"}),
        "StatefulSet longview-redis-gpu: is labelled as one of run second, but nameSuffix is -gpu",
    ),
    "a pod without the run's label": (
        lambda it: group(it, 0)["template"]["metadata"]["labels"].pop(RUN_LABEL),
        "longview-gpu actors: has no label app.kubernetes.io/instance: gpu",
    ),
    "more actors than CPUs": (
        lambda it: run(it, actors={"count": 33}),
        "actors.count is 33, but the worker groups have room for 32 with 1 CPU, 1 actor each",
    ),
    "more actors than evaluation can use": (
        lambda it: run(it, collect={"kind": "off"}, evaluation={"episodes": 2}),
        "actors.count is 16, but only 12 actors can work at a time during training: "
        "with collect.kind off they only evaluate, 2 episodes at each of 6 context lengths",
    ),
    "more actors than may collect": (
        lambda it: run(it, collect={"kind": "takeover", "share": 0.75, "steps_per_training_step": 4}),
        "an order for each of them every 1000 training steps (learner.publish_every) needs "
        "collect.steps_per_training_step",
    ),
    "a share that lets fewer collect than have nothing to evaluate": (
        lambda it: run(
            it,
            collect={"kind": "takeover", "share": 0.5, "steps_per_training_step": 9.6},
            evaluation={"episodes": 0},
        ),
        "actors.count is 16, of which 16 collect",
    ),
    "actors without work beside persons": (
        lambda it: run(it, collect={"kind": "human"}, evaluation={"episodes": 0}),
        "only 0 actors can work at a time during training: with collect.kind human they only evaluate",
    ),
    "a config that is refused": (
        lambda it: run(it, collect={"kind": "take-over"}),
        "run.yaml: collect.kind",
    ),
    "more learners than GPUs": (
        lambda it: run(it, learners=2),
        "learners is 2, but the worker groups have room for 1 with 1 CPU, 1 learner, 0.5 GPU each",
    ),
    "more learners and servers than GPUs": (
        lambda it: run(it, inference={"servers": 2}),
        "learners 1 + inference.servers 2 need 1.5 GPUs, but the worker groups have 1",
    ),
    "more GPUs than any group has": (
        lambda it: run(it, placement={"actor": {"actor": 1}, "learner": {"learner": 1}, "learner_gpus": 2}),
        "room for 0 with 1 CPU, 1 learner, 2 GPU each",
    ),
    "actors on GPU nodes": (
        lambda it: group(it, 1)["resources"].update(actor="4"),
        "actors could occupy the GPU nodes",
    ),
    "GPUs that the container does not have": (
        lambda it: group(it, 0)["resources"].update(GPU="1"),
        "tells Ray that it has 1 GPUs, but its container has 0",
    ),
    "CPUs that the container does not have": (
        lambda it: group(it, 0)["resources"].update(CPU="9"),
        "tells Ray that it has 9 CPUs, but its container's limit is 4",
    ),
    "a store larger than Redis": (
        lambda it: run(it, replay={"byte_budget": 8 << 30}),
        "Redis has 12 GiB, but needs twice",
    ),
    "a label of KubeRay's": (
        lambda it: group(it, 0)["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "actor"}),
        "actors: KubeRay selects pods by the label app.kubernetes.io/name",
    ),
    "a node that may be taken away": (
        lambda it: group(it, 1)["template"]["metadata"]["annotations"].pop("karpenter.sh/do-not-disrupt"),
        "learners: without the annotation karpenter.sh/do-not-disrupt its node may be taken away",
    ),
    "a volume without a limit": (
        lambda it: head(it)["volumes"][0]["emptyDir"].clear(),
        "volume tmp could fill the node's disk",
    ),
    "a node's disk": (
        lambda it: group(it, 0)["template"]["spec"]["containers"][0]["resources"]["requests"].pop(
            "ephemeral-storage"
        ),
        "longview-gpu actors: must request ephemeral-storage",
    ),
    "an autoscaler that is off": (
        lambda it: cluster(it).update(enableInTreeAutoscaling=False),
        "placement.autoscaled: true, but the RayJob's enableInTreeAutoscaling is false",
    ),
    "a group that nobody fills": (
        lambda it: cluster(it).update(enableInTreeAutoscaling=False),
        "group actors: without Ray's autoscaler, replicas and minReplicas must be its maxReplicas 8",
    ),
    "root": (lambda it: redis(it)["securityContext"].update(runAsUser=0), "other than root"),
    "seccomp": (lambda it: redis(it)["securityContext"].pop("seccompProfile"), "RuntimeDefault"),
    "privileges": (
        lambda it: redis(it)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        "must not escalate privileges",
    ),
    "a root file system": (
        lambda it: redis(it)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        "read-only root",
    ),
    "capabilities": (
        lambda it: redis(it)["containers"][0]["securityContext"].update(capabilities={"add": ["SYS_PTRACE"]}),
        "must drop all capabilities",
    ),
    "a token": (lambda it: redis(it).pop("automountServiceAccountToken"), "service account's token"),
    "the host's network": (lambda it: redis(it).update(hostNetwork=True), "must not have hostNetwork"),
    "the host's files": (
        lambda it: (
            redis(it)["volumes"][0].update(hostPath={"path": "/"}) or redis(it)["volumes"][0].pop("emptyDir")
        ),
        "must be an emptyDir, a configMap or a persistentVolumeClaim",
    ),
    "a limit": (
        lambda it: redis(it)["containers"][0]["resources"].update(limits={"memory": "12Gi"}, requests={}),
        "has no requests of cpu",
    ),
    "an image's version": (
        lambda it: redis(it)["containers"][0].update(image="redis:latest"),
        "redis:latest is not pinned",
    ),
    "an image without a tag": (
        lambda it: redis(it)["containers"][0].update(image="redis"),
        "image redis is not pinned",
    ),
}


@pytest.mark.parametrize("what", BREACHES)
def test_a_breach_is_found_and_named(what: str) -> None:
    change, message = BREACHES[what]
    objects = list(yaml.load_all(build("gpu"), yaml.CSafeLoader))
    change(objects)
    assert message in "\n".join(problems(objects))


@pytest.mark.parametrize(
    ("image", "fine"),
    [
        ("registry.example:5000/redis:7.2.11-bookworm", True),
        (f"registry.example:5000/redis@sha256:{'0a' * 32}", True),
        (f"redis:latest@sha256:{'0a' * 32}", True),
        ("registry.example:5000/redis", False),
        ("redis@sha256:0a", False),
    ],
)
def test_an_image_is_pinned_by_version_or_digest(image: str, fine: bool) -> None:
    objects = list(yaml.load_all(build("gpu"), yaml.CSafeLoader))
    redis(objects)["containers"][0].update(image=image)
    assert (problems(objects) == []) == fine


@pytest.mark.parametrize("name", ["my_run", "Run", "run-", "x" * 33])
def test_a_name_that_kubernetes_does_not_take_is_refused(name: str) -> None:
    text = build("gpu").replace("-gpu\n", f"-{name}\n").replace(": gpu\n", f": {name}\n")
    assert "a run's name has at most 32 small letters, digits and hyphens" in "\n".join(
        problems(list(yaml.load_all(text, yaml.CSafeLoader)))
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"collect": {"kind": "off"}, "evaluation": {"episodes": 3}},
        {"collect": {"kind": "human"}, "evaluation": {"episodes": 16, "context_lengths": [48]}},
        *(
            {"collect": {"kind": kind, "steps_per_training_step": 19.2}, "evaluation": {"episodes": 0}}
            for kind in ("rollout", "takeover", "labels")
        ),
    ],
    ids=str,
)
def test_a_run_with_work_for_all_actors_is_in_order(settings: dict[str, Any]) -> None:
    objects = list(yaml.load_all(build("gpu"), yaml.CSafeLoader))
    run(objects, **settings)
    assert problems(objects) == []


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("500m", 0.5), ("2", 2), ("3Gi", 3 << 30), ("1.5Gi", 1.5 * (1 << 30)), ("9Mi", 9 << 20)],
)
def test_quantities_become_numbers(quantity: str, number: float) -> None:
    assert bytes_of(quantity) == number


@pytest.mark.parametrize("quantity", ["", "Gi", "2GB", "-1"])
def test_text_that_is_no_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="expected a number with a unit"):
        bytes_of(quantity)
