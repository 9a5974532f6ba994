"""Pods that a set of Kubernetes objects creates."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object, as parsed from YAML."""

UNITS = {"": 1, "m": 1e-3, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
POD_INDEX = "apps.kubernetes.io/pod-index"


@dataclass(frozen=True)
class Pod:
    """One kind of pod that an object creates, in one or more replicas."""

    name: str
    labels: Mapping[str, str]
    spec: Object
    replicas: int = 1
    claims: tuple[str, ...] = ()
    """Names of the volume claims that each replica gets for itself."""
    group: Object | None = None
    """Ray's worker group that the pod belongs to, if any."""

    @property
    def containers(self) -> list[Object]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    def ports(self) -> Iterator[Object]:
        for container in self.containers:
            yield from container.get("ports", [])

    def port(self, port: int | str) -> bool:
        """Tell whether a container of the pod has this port, given by number or name."""
        return any(port in (it["containerPort"], it.get("name")) for it in self.ports())

    def mount(self, path: str) -> Object | None:
        """Return the volume that a path lies on; None if no volume is mounted above it."""
        mounts = [it for container in self.containers for it in container.get("volumeMounts", [])]
        above = [it for it in mounts if PurePosixPath(path).is_relative_to(it["mountPath"])]
        if not above:
            return None
        name = max(above, key=lambda it: len(it["mountPath"]))["name"]
        return next((it for it in self.spec.get("volumes", []) if it["name"] == name), {"name": name})


def pods_of(objects: Iterable[Object]) -> Iterator[Pod]:
    """Return every kind of pod that the objects create."""
    for item in objects:
        name, spec = item["metadata"]["name"], item.get("spec", {})
        if item["kind"] == "StatefulSet":
            claims = tuple(it["metadata"]["name"] for it in spec.get("volumeClaimTemplates", []))
            yield _pod(name, spec["template"], replicas=spec["replicas"], claims=claims)
        elif item["kind"] == "Pod":
            yield _pod(name, item)
        elif item["kind"] == "Job":
            yield _pod(name, spec["template"])
        elif item["kind"] == "CronJob":
            yield _pod(name, spec["jobTemplate"]["spec"]["template"])
        elif item["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            yield _pod(f"{name} submitter", spec["submitterPodTemplate"])
            yield _pod(f"{name} head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield _pod(f"{name} {group['groupName']}", group["template"], group=group)


def bytes_of(quantity: str) -> float:
    """Convert a Kubernetes quantity to a number: 500m is 0.5, 2Gi is 2147483648.

    Raises:
        ValueError: the text is no quantity, or its unit is one that these manifests do not use.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(quantity))
    if match is None or match[2] not in UNITS:
        raise ValueError(f"expected a number with a unit of {', '.join(UNITS)}, not {quantity!r}")
    return float(match[1]) * UNITS[match[2]]


def selected(selector: Object, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods that a label selector, or a service's plain labels, selects."""
    return [pod for pod in pods if _selects(selector, pod)]


def _selects(selector: Object, pod: Pod) -> bool:
    if not selector.keys() & {"matchLabels", "matchExpressions"} and selector:
        selector = {"matchLabels": selector}
    labels = {POD_INDEX: [str(index) for index in range(pod.replicas)]}
    labels |= {key: [value] for key, value in pod.labels.items()}
    wanted = [(key, [value]) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(it["key"], it["values"]) for it in selector.get("matchExpressions", [])]
    return all(set(labels.get(key, ())) & set(values) for key, values in wanted)


def walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a tree of dicts and lists, with the value below it."""
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield key, below
            yield from walk(below)
    elif isinstance(tree, list):
        for below in tree:
            yield from walk(below)


def _pod(name: str, template: Object, **more: Any) -> Pod:
    return Pod(name, template["metadata"]["labels"], template["spec"], **more)
