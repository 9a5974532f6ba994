"""Checks of a set of Kubernetes objects that go beyond their schemas.

Every name that one object uses for another must exist. The run must fit the cluster that it asks for, and
have work for all its actors. Pods must be restricted.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

from k8s.pods import Object, Pod, bytes_of, pods_of, selected, walk
from longview.cluster.run.config import ConfigError, RunConfig, read_config, task_of

SECRET_KEYS = {"password", "ray-password"}
"""Keys of the secret that the user creates for a run before deploying it: docs/kubernetes.md says how."""

RUN_LABEL = "app.kubernetes.io/instance"
"""Label of everything that belongs to a run; its value is the run's name."""

CLUSTER_WIDE = ("Namespace", "PriorityClass")
"""Kinds whose objects are in no namespace."""

KUBERAYS = ("app.kubernetes.io/name", "app.kubernetes.io/created-by")
"""Labels that KubeRay gives to Ray's pods, and selects them by in its Services."""

STAYS = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt")
"""Annotations of pods that no autoscaler of nodes may move."""

CONFIG = "/etc/longview/run.yaml"
"""Path of the run's config file in the head's container."""


def problems(objects: list[Object]) -> list[str]:
    """Return one sentence for each problem of these objects; an empty list if all is well."""
    pods = list(pods_of(objects))
    found = [*_names(objects), *_carries_its_name(objects)]
    for pod in pods:
        found += [
            f"{pod.name}: {it}" for it in (*_references(pod, objects), *_restrictions(pod), *_disk(pod))
        ]
    for item in objects:
        where = f"{item['kind']} {item['metadata']['name']}"
        check = _BY_KIND.get(item["kind"])
        found += [f"{where}: {it}" for it in (check(item, pods, objects) if check else ())]
    return found


def job_of(objects: Iterable[Object]) -> Object:
    """Return the RayJob of the run."""
    return next(it for it in objects if it["kind"] == "RayJob")


def run_name(objects: Iterable[Object]) -> str:
    """Return the name of the run, which all its objects end in."""
    return str(job_of(objects)["metadata"]["name"]).removeprefix("longview-")


def secret_of(objects: Iterable[Object]) -> str:
    """Return the name of the run's secret, whose keys are `SECRET_KEYS`."""
    return f"longview-redis-{run_name(objects)}"


def config_map_of(objects: Iterable[Object]) -> str:
    """Return the name of the ConfigMap that holds the run's config file."""
    return f"longview-run-{run_name(objects)}"


def run_config(objects: list[Object]) -> str:
    """Return the text of the config file that the run is launched with.

    Raises:
        StopIteration: the ConfigMap does not exist.
        KeyError: the ConfigMap has no `run.yaml`.
    """
    name = config_map_of(objects)
    return str(next(it for it in objects if _is(it, "ConfigMap", name))["data"]["run.yaml"])


def entrypoint(objects: Iterable[Object]) -> list[str]:
    """Return the command that launches the run, split into words."""
    return str(job_of(objects)["spec"]["entrypoint"]).split()


def _is(item: Object, kind: str, name: str) -> bool:
    return (item["kind"], item["metadata"]["name"]) == (kind, name)


def _find(objects: Iterable[Object], kind: str, name: str) -> Object | None:
    return next((it for it in objects if _is(it, kind, name)), None)


def _names(objects: list[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        key = (item["kind"], item["metadata"]["name"])
        if key in seen:
            yield f"{' '.join(key)}: this name is used twice"
        seen.add(key)
        if item["kind"] == "Secret":
            yield f"Secret {key[1]}: secrets must not be part of the manifests; refer to them by name"
        elif item["kind"] not in CLUSTER_WIDE and item["metadata"].get("namespace") != "longview":
            yield f"{' '.join(key)}: is not in the namespace longview"


def _carries_its_name(objects: list[Object]) -> Iterator[str]:
    """Check that names and labels agree on the run's name, so that several runs can share a namespace."""
    run = run_name(objects)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", run):
        yield f"nameSuffix -{run}: a run's name has at most 32 small letters, digits and hyphens here"
    for item in objects:
        name, label = item["metadata"]["name"], item["metadata"].get("labels", {}).get(RUN_LABEL)
        if label is not None and (label != run or not name.endswith(f"-{run}")):
            yield f"{item['kind']} {name}: is labelled as one of run {label}, but nameSuffix is -{run}"
    for pod in pods_of(objects):
        if pod.labels.get(RUN_LABEL) != run:
            yield f"{pod.name}: has no label {RUN_LABEL}: {run}"


def _references(pod: Pod, objects: list[Object]) -> Iterator[str]:
    yield from _secrets(pod.spec, objects)
    for key, reference in walk(pod.spec):
        if key == "configMapKeyRef":
            held = _find(objects, "ConfigMap", reference["name"])
            if held is None or reference["key"] not in held["data"]:
                yield f"no ConfigMap {reference['name']} has a key {reference['key']}"
    priority = pod.spec.get("priorityClassName")
    if priority and _find(objects, "PriorityClass", priority) is None:
        yield f"PriorityClass {priority} does not exist"
    volumes = {it["name"]: it for it in pod.spec.get("volumes", [])}
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and _find(objects, "PersistentVolumeClaim", claim) is None:
            yield f"PersistentVolumeClaim {claim} does not exist"
        config = volume.get("configMap", {}).get("name")
        if config and _find(objects, "ConfigMap", config) is None:
            yield f"ConfigMap {config} does not exist"
    for container in pod.containers:
        yield from _container(container, pod, objects)
    if unmounted := volumes.keys() - {it["name"] for c in pod.containers for it in c.get("volumeMounts", [])}:
        yield f"no container mounts the volume {', '.join(sorted(unmounted))}"


def _container(container: Object, pod: Pod, objects: list[Object]) -> Iterator[str]:
    volumes = {it["name"] for it in pod.spec.get("volumes", [])} | set(pod.claims)
    mounts = container.get("volumeMounts", [])
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"{container['name']} mounts {mount['name']}, but the pod has no such volume"
    if len({it["mountPath"] for it in mounts}) < len(mounts):
        yield f"{container['name']} mounts two volumes at one path"
    names = {it.get("name") for it in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in names:
            yield f"{probe} of {container['name']} asks port {port}, but the container has no such port"
    for word in container.get("command", []):
        if word.startswith("/etc/"):
            yield from _file(pod, word, objects)


def _secrets(tree: Any, objects: list[Object]) -> Iterator[str]:
    for reference in (below for key, below in walk(tree) if key == "secretKeyRef"):
        known = SECRET_KEYS if reference["name"] == secret_of(objects) else ()
        if reference["key"] not in known:
            yield f"no Secret {reference['name']} has a key {reference['key']}"


def _file(pod: Pod, path: str, objects: list[Object]) -> Iterator[str]:
    """Check that a ConfigMap mounted in the pod holds the file at `path`."""
    volume = pod.mount(path) or {}
    config = _find(objects, "ConfigMap", volume.get("configMap", {}).get("name", ""))
    if config is None or PurePosixPath(path).name not in config["data"]:
        yield f"no mounted ConfigMap holds {path}"


def _restrictions(pod: Pod) -> Iterator[str]:
    """Check a pod against the `restricted` pod security standard, and against a few rules beyond it."""
    security = pod.spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "must set runAsNonRoot and a runAsUser other than root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile must be RuntimeDefault"
    needs_api = pod.name.endswith(" head")  # the autoscaler in it asks Kubernetes for pods
    if pod.spec.get("automountServiceAccountToken") is not False and not needs_api:
        yield "must not be given a service account's token"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key):
            yield f"must not have {key}"
    for container in pod.containers:
        name = container["name"]
        yield from (f"{name}: {it}" for it in _container_restrictions(container.get("securityContext", {})))
        resources = container.get("resources", {})
        for kind, key in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
            if key not in resources.get(kind, {}):
                yield f"{name}: has no {kind} of {key}"
        if not re.search(r".:[^:/]*\d+\.\d+\.\d+[^:/]*$|.@sha256:[0-9a-f]{64}$", container["image"]):
            yield f"{name}: image {container['image']} is not pinned to a version or a digest"
    for volume in pod.spec.get("volumes", []):
        if not volume.keys() & {"emptyDir", "configMap", "persistentVolumeClaim"}:
            yield f"volume {volume['name']} must be an emptyDir, a configMap or a persistentVolumeClaim"


def _disk(pod: Pod) -> Iterator[str]:
    """Check that a pod reserves what it takes of its node's disk, and cannot fill it."""
    volumes = [it for it in pod.spec.get("volumes", []) if "emptyDir" in it]
    volumes = [it for it in volumes if "medium" not in it["emptyDir"]]
    for volume in volumes:
        if "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} could fill the node's disk: give it a sizeLimit"
    if volumes and "ephemeral-storage" not in pod.spec["containers"][0]["resources"]["requests"]:
        yield "must request ephemeral-storage, since it has an emptyDir on the node's disk"


def _container_restrictions(security: Object) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation") is not False:
        yield "must not escalate privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "must have a read-only root file system"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "must drop all capabilities"


def _service(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    chosen = selected(item["spec"]["selector"], pods)
    if not chosen:
        yield "selects no pod"
    for port in item["spec"]["ports"]:
        yield from (
            f"{pod.name} has no port {target}"
            for pod in chosen
            if not pod.port(target := port.get("targetPort", port["port"]))
        )


def _stateful_set(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    spec = item["spec"]
    service = _find(objects, "Service", spec["serviceName"])
    if service is None or service["spec"].get("clusterIP") != "None":
        yield f"headless Service {spec['serviceName']} does not exist"
    labels = spec["template"]["metadata"]["labels"]
    if not spec["selector"]["matchLabels"].items() <= labels.items():
        yield "does not select its own pods"


def _budget(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    if not selected(item["spec"]["selector"], pods):
        yield "selects no pod"


def _policy(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    spec = item["spec"]
    chosen = selected(spec["podSelector"], pods)
    if not chosen:
        yield "selects no pod"
    for direction, side in (("ingress", "from"), ("egress", "to")):
        rules = spec.get(direction, [])
        if rules and direction.capitalize() not in spec["policyTypes"]:
            yield f"has {direction} rules, but its policyTypes do not list {direction.capitalize()}"
        for rule in rules:
            peers = [
                selected(it["podSelector"], pods)
                for it in rule.get(side, [])
                if "podSelector" in it and "namespaceSelector" not in it
            ]
            if not all(peers):
                yield f"a rule of {direction} selects no pod"
            receivers = chosen if direction == "ingress" else [pod for peer in peers for pod in peer]
            for port in rule.get("ports", []):
                if receivers and not any(pod.port(port["port"]) for pod in receivers):
                    yield f"allows {direction} to port {port['port']}, but none of its pods has that port"


def _pod_monitor(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    chosen = selected(item["spec"]["selector"], pods)
    if not chosen:
        yield "selects no pod"
    allowed = {
        port["port"]
        for policy in objects
        if _is(policy, "NetworkPolicy", f"metrics-{run_name(objects)}")
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }
    for pod in chosen:
        for name in (it["port"] for it in item["spec"]["podMetricsEndpoints"]):
            numbers = {it["containerPort"] for it in pod.ports() if it.get("name") == name}
            if not numbers:
                yield f"{pod.name} has no port {name}"
            elif not numbers <= allowed:
                yield f"the NetworkPolicy metrics keeps Prometheus from port {name} of {pod.name}"


def _ray_job(item: Object, pods: list[Pod], objects: list[Object]) -> Iterator[str]:
    spec = item["spec"]
    command = entrypoint([item])
    by_name = {pod.name.removeprefix(f"{item['metadata']['name']} "): pod for pod in pods}
    head = by_name["head"]
    settings = dict(word.split("=", 1) for word in command if "=" in word)
    yield from _secrets(spec["rayClusterSpec"].get("gcsFaultToleranceOptions", {}), objects)
    yield from _node_pods(spec["rayClusterSpec"])
    for address in (
        settings["replay.url"],
        spec["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisAddress"],
    ):
        host, port = re.sub(r"^.*[/@]", "", address).split(":")
        service = _find(objects, "Service", host)
        if service is None or int(port) not in [it["port"] for it in service["spec"]["ports"]]:
            yield f"{address}: no Service {host} has a port {port}"
    hub = int(settings["monitoring.port"])
    if hub not in [it["containerPort"] for it in head.ports() if it.get("name") == "hub"]:
        yield f"monitoring.port is {hub}, but the head has no port named `hub` with that number"
    if CONFIG in command:
        yield from _file(head, CONFIG, objects)
    yield from _runs(head, by_name.get("learners"))
    yield from _room(yaml.safe_load(run_config(objects)), pods)
    yield from _config(objects)


def _node_pods(cluster: Object) -> Iterator[str]:
    """Check the labels and annotations of Ray's pods."""
    parts = {"head": cluster["headGroupSpec"]} | {it["groupName"]: it for it in cluster["workerGroupSpecs"]}
    for name, part in parts.items():
        metadata = part["template"]["metadata"]
        for label in sorted(metadata["labels"].keys() & set(KUBERAYS)):
            yield f"{name}: KubeRay selects pods by the label {label}: leave it to KubeRay"
        missing = sorted(set(STAYS) - metadata.get("annotations", {}).keys())
        if missing and name in ("head", "learners"):
            yield f"{name}: without the annotation {' and '.join(missing)} its node may be taken away"


def _runs(head: Pod, learner: Pod | None) -> Iterator[str]:
    """Check that head and learners mount one lasting volume at the path of the runs' folder."""
    environment = {it["name"]: it.get("value") for it in head.containers[0]["env"]}
    path = str(environment.get("LONGVIEW_RUNS"))
    claims = [((pod and pod.mount(path)) or {}).get("persistentVolumeClaim") for pod in (head, learner)]
    if claims[0] is None or claims[0] != claims[1]:
        yield f"LONGVIEW_RUNS {path} must be on one claim that head and learners mount at the same path"


def _room(config: Object, pods: list[Pod]) -> Iterator[str]:
    """Check that the worker groups and Redis can grow as large as the run's config asks."""
    groups = [pod for pod in pods if pod.group is not None]
    placement, servers = config["placement"], config.get("inference", {}).get("servers", 0)
    actor = need_of_actor(config)
    learner = {"CPU": 1, **placement["learner"]} | _gpus(placement["learner_gpus"])
    server = {"CPU": 1} | _gpus(placement.get("inference_gpus", 0))
    roles = {
        "actors.count": (config["actors"]["count"], actor),
        "learners": (config["learners"], learner),
        "inference.servers": (servers, server),
    }
    for key, (wanted, asked) in roles.items():
        room = sum(fits(pod.group, asked) * pod.group["maxReplicas"] for pod in groups if pod.group)
        if room < wanted:
            needs = ", ".join(f"{amount} {name}" for name, amount in asked.items())
            yield (
                f"{key} is {wanted}, but the worker groups have room for {room} with {needs} each: lower "
                f"{key}, or raise a group's maxReplicas"
            )
    needed = sum(wanted * asked.get("GPU", 0) for wanted, asked in roles.values())
    offered = sum(
        int(pod.group["resources"].get("GPU", 0)) * pod.group["maxReplicas"] for pod in groups if pod.group
    )
    if offered < needed:
        yield (
            f"learners {config['learners']} + inference.servers {servers} need {needed:g} GPUs, but the "
            f"worker groups have {offered:g}: lower them, or raise a group's maxReplicas"
        )
    for pod in groups:
        assert pod.group is not None
        limits, resources = pod.containers[0]["resources"]["limits"], pod.group["resources"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        if int(resources.get("GPU", 0)) != gpus:
            yield (
                f"group {pod.group['groupName']} tells Ray that it has {resources.get('GPU', 0)} GPUs, "
                f"but its container has {gpus}"
            )
        if int(resources["CPU"]) > bytes_of(limits["cpu"]):
            yield (
                f"group {pod.group['groupName']} tells Ray that it has {resources['CPU']} CPUs, "
                f"but its container's limit is {limits['cpu']}"
            )
        if gpus and fits(pod.group, actor):
            yield f"actors could occupy the GPU nodes of group {pod.group['groupName']}"
    budget = config["replay"]["byte_budget"]
    redis = next(pod for pod in pods if pod.claims)
    memory = bytes_of(redis.containers[0]["resources"]["limits"]["memory"])
    if memory < 2 * budget:
        yield f"Redis has {memory / (1 << 30):g} GiB, but needs twice replay.byte_budget ({budget} bytes)"


def _config(objects: list[Object]) -> Iterator[str]:
    """Check that `longview launch` takes the run's config, and that the run has work for all its actors."""
    settings = [word for word in entrypoint(objects) if "=" in word]
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(run_config(objects))
        file.flush()
        try:
            config = read_config(Path(file.name), settings)
        except ConfigError as error:
            yield f"run.yaml: {error}"
            return
    cluster = job_of(objects)["spec"]["rayClusterSpec"]
    if config.placement.autoscaled != cluster["enableInTreeAutoscaling"]:
        yield (
            f"run.yaml has placement.autoscaled: {str(config.placement.autoscaled).lower()}, but the "
            f"RayJob's enableInTreeAutoscaling is {str(cluster['enableInTreeAutoscaling']).lower()}"
        )
    if not cluster["enableInTreeAutoscaling"]:
        yield from (
            f"group {group['groupName']}: without Ray's autoscaler, replicas and minReplicas must be its "
            f"maxReplicas {group['maxReplicas']}"
            for group in cluster["workerGroupSpecs"]
            if not group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        )
    if config.name != run_name(objects):
        yield (
            f"run.yaml has name: {config.name}, but the overlay's kustomization.yaml has nameSuffix: "
            f"-{run_name(objects)}; a further attempt finds the run by its name"
        )
    yield from _work(config)


def _work(config: RunConfig) -> Iterator[str]:
    """Check that all actors can work at a time during training. An evaluation is cut into orders of one
    episode or more, each for one actor. All others collect, and never fewer than `collect.share`: between two
    versions each of them must be allowed an order, of as many episodes as it has simulators."""
    collect, actors, spec = config.collect, config.actors, task_of(config).spec
    episodes, lengths = config.evaluation.episodes, len(config.context_lengths(spec))
    work = episodes * lengths
    if collect.source is not None:
        every = config.learner.publish_every
        collecting = max(math.ceil(collect.share * actors.count), actors.count - work)
        needed = collecting * actors.simulators * spec.max_steps / every
        if collect.steps_per_training_step < needed:
            yield (
                f"actors.count is {actors.count}, of which {collecting} collect: with {actors.simulators} "
                f"simulators each and episodes of up to {spec.max_steps} steps, an order for each of them "
                f"every {every} training steps (learner.publish_every) needs collect.steps_per_training_step "
                f"{needed:g}, not {collect.steps_per_training_step:g}; raise it, or lower actors.count"
            )
        return
    if work < actors.count:
        yield (
            f"actors.count is {config.actors.count}, but only {work} actors can work at a time during "
            f"training: with collect.kind {config.collect.kind} they only evaluate, {episodes} episodes at "
            f"each of {lengths} context lengths; lower actors.count, raise evaluation.episodes, or have the "
            "actors collect (collect.kind takeover)"
        )


def _gpus(gpus: float) -> dict[str, float]:
    return {"GPU": gpus} if gpus else {}


def need_of_actor(config: Object) -> dict[str, float]:
    """Return what an actor takes from Ray, by name of the resource, as a run's config says."""
    return {"CPU": 1, **config["placement"]["actor"]}


def fits(group: Object, asked: Mapping[str, float]) -> int:
    """Return how many actors or learners fit on one node of a worker group."""
    return int(min(float(group["resources"].get(name, 0)) // amount for name, amount in asked.items()))


_BY_KIND = {
    "Service": _service,
    "StatefulSet": _stateful_set,
    "PodDisruptionBudget": _budget,
    "NetworkPolicy": _policy,
    "PodMonitor": _pod_monitor,
    "RayJob": _ray_job,
}
