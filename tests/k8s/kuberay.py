"""KubeRay in miniature: an API server with one Ray cluster, and an operator that keeps its pods.

The API server answers what Ray's autoscaler asks. A pod is a process namespace of this machine in which Ray
is started by the command that KubeRay makes; before it ends, the manifest's preStop hook runs in it. All pods
share the machine's network, files and memory, so object stores are small and ports are free ones.
"""

import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from k8s.pods import Object
from tests.k8s.conftest import ROOT, eventually, free_ports

NAMESPACE, NAME = "longview", "test"
POD = ("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Starts a command in a process namespace, which ends with it, or with the thread that has started it."""
LOOK_SECONDS = 0.5
"""Time between two looks of the operator at its pods."""


def ray_start(group: Object, agent: int, metrics: int) -> str:
    """Return the command that KubeRay makes for a group's nodes.

    Args:
        group: the group's spec.
        agent: port of the node's dashboard agent.
        metrics: port of the node's metrics.
    """
    params = dict(group["rayStartParams"])
    resources = dict(group.get("resources", {}))
    if resources:
        params["num-cpus"] = resources.pop("CPU")
        params["resources"] = shlex.quote(json.dumps({name: float(it) for name, it in resources.items()}))
    options = " ".join(f"--{name}={value}" for name, value in params.items())
    return (
        f"ray start --block {options} --dashboard-agent-listen-port={agent} --metrics-export-port={metrics} "
        "--object-store-memory=100000000"
    )


def patched(tree: Object, operations: list[Object]) -> Object:
    """Return a tree after the operations `test` and `replace` of a JSON patch, as an API server applies them.

    Raises:
        KeyError, IndexError: the tree has no such place.
        ValueError: the place does not hold what `test` wants, or the operation is another one.
    """
    tree = deepcopy(tree)
    for operation in operations:
        *path, last = operation["path"].removeprefix("/").split("/")
        place: Any = tree
        for step in path:
            place = place[int(step) if isinstance(place, list) else step]
        found = place[last]
        match operation["op"]:
            case "test" if found == operation["value"]:
                pass
            case "replace":
                place[last] = operation["value"]
            case _:
                raise ValueError(f"{operation} where there is {found!r}")
    return tree


class Pod:
    """A pod and the processes in it."""

    def __init__(
        self, name: str, group: str, spec: Object, command: str, variables: dict[str, str], log: Path
    ) -> None:
        """
        Args:
            name: the pod's name, by which the autoscaler knows the Ray node.
            group: name of the pod's group; `headgroup` for the head.
            spec: the pod's spec in the manifest.
            command: shell command of the pod's only container.
            variables: variables besides those of the spec, or instead of them.
            log: file for what the pod prints.
        """
        self.name, self.group, self._log = name, group, log
        self._container, self._grace = spec["containers"][0], spec["terminationGracePeriodSeconds"]
        manifest = {it["name"]: it["value"] for it in self._container["env"] if "value" in it}
        node = {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group}
        self._variables = os.environ | manifest | node | variables
        self._commands: list[subprocess.Popen[bytes]] = []
        self.leaving = False
        """Whether the pod's end has begun."""
        start = [*POD, "bash", "-c", f"ulimit -n 65536; {command}"]
        with log.open("wb") as out:
            self._process = subprocess.Popen(start, env=self._variables, stdout=out, stderr=out)
        eventually(self._init, 10.0)

    @property
    def runs(self) -> bool:
        """Whether the container runs."""
        return self._process.poll() is None

    def has_started(self) -> bool:
        """Wait until Ray has started, or has given that up."""
        eventually(lambda: not self.runs or "Ray runtime started" in self._log.read_text())
        return self.runs

    def _init(self) -> int | None:
        """Return this machine's number of the pod's first process; None if the pod has none."""
        if not self.runs:
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def object(self) -> Object:
        """Return the pod as the API server shows it, as far as the autoscaler reads it."""
        kind = "head" if self.group == "headgroup" else "worker"
        metadata: Object = {
            "name": self.name,
            "resourceVersion": "1",
            "labels": {"ray.io/cluster": NAME, "ray.io/node-type": kind, "ray.io/group": self.group},
        }
        if self.leaving:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        state = {"running": {}} if self.runs else {"terminated": {}}
        status = {"containerStatuses": [{"name": self._container["name"], "state": state}]}
        return {"metadata": metadata, "spec": {"containers": [self._container]}, "status": status}

    def start(self, *command: str, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command in the pod, as `kubectl exec` does."""
        enter = ["nsenter", f"--target={self._init()}", "--pid", "--mount", *command]
        with log.open("ab") as out:
            self._commands.append(
                subprocess.Popen(enter, env=self._variables | variables, stdout=out, stderr=out)
            )
        return self._commands[-1]

    def run(self, *command: str) -> None:
        """Run a command in the pod.

        Raises:
            AssertionError: it fails.
        """
        log = self._log.with_suffix(".exec")
        assert self.start(*command, log=log).wait(600) == 0, log.read_text()

    def end(self) -> None:
        """End the pod as Kubernetes does: preStop hook, SIGTERM, and SIGKILL after the grace period."""
        deadline = time.monotonic() + self._grace
        with suppress(subprocess.TimeoutExpired):
            if self.runs:
                hook = self._container["lifecycle"]["preStop"]["exec"]["command"]
                self.start(*hook, log=self._log).wait(self._grace)
            if init := self._init():
                os.kill(init, signal.SIGTERM)
            self._process.wait(deadline - time.monotonic())
        self.kill()

    def kill(self) -> None:
        """End all processes of the pod at once."""
        self._process.kill()
        for process in (self._process, *self._commands):
            process.wait()


class Kuberay:
    """A Ray cluster, its pods, and the API server that shows them."""

    def __init__(self, spec: Object, folder: Path, temporary: Path, **variables: str) -> None:
        """
        Args:
            spec: the Ray cluster's spec, from a RayJob.
            folder: an empty folder.
            temporary: folder for Ray's sockets, whose names must be short.
            variables: variables of all pods.
        """
        spec = deepcopy(spec)
        for group in spec["workerGroupSpecs"]:
            group["scaleStrategy"] = {}  # KubeRay's own serialiser writes this
        self.cluster: Object = {"metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": spec}
        self.pods: list[Pod] = []
        self.deletions: dict[str, float] = {}
        """For each pod that the autoscaler has given back, when; in seconds since 1970."""
        self._folder, self._temporary, self._started = folder, temporary, 0
        (folder / "bin").mkdir()
        (folder / "bin" / "longview-drain").symlink_to(ROOT / "k8s" / "drain.sh")
        self._lock = threading.Lock()
        port, dashboard, client = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        """Address of Ray's head."""
        self._variables = variables | {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            # Ray must not kill workers when memory of this machine, which is not the pods' alone, runs short.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
        }
        ports = f"--port={port} --dashboard-port={dashboard} --ray-client-server-port={client}"
        options = f"--head --no-monitor --include-dashboard=false {ports}"
        while True:  # on a busy machine a node takes longer to start than Ray waits for it
            self.head = self._start("headgroup", spec["headGroupSpec"], options)
            if self.head.has_started():
                break
            self.pods.remove(self.head)

    def group(self, name: str) -> Object:
        """Return the spec of a worker group."""
        (found,) = (it for it in self.cluster["spec"]["workerGroupSpecs"] if it["groupName"] == name)
        return found

    def workers(self, group: str) -> list[str]:
        """Return the names of a group's pods, those that are leaving included."""
        return [pod.name for pod in list(self.pods) if pod.group == group]

    def patch(self, operations: list[Object]) -> Object:
        """Change the Ray cluster by a JSON patch, and return it."""
        with self._lock:
            self.cluster = patched(self.cluster, operations)
            for group in self.cluster["spec"]["workerGroupSpecs"]:
                for name in group["scaleStrategy"].get("workersToDelete", ()):
                    self.deletions.setdefault(name, time.time())
        return self.cluster

    def listed(self) -> Object:
        """Return the pods as the API server lists them."""
        return {"metadata": {"resourceVersion": "1"}, "items": [pod.object() for pod in list(self.pods)]}

    def reconcile(self) -> None:
        """Delete pods that have failed or are given back, and start those that are missing."""
        with self._lock:
            for group in self.cluster["spec"]["workerGroupSpecs"]:
                pods = [pod for pod in self.pods if pod.group == group["groupName"]]
                if failed := [pod for pod in pods if not pod.runs and not pod.leaving]:
                    self._delete(failed)
                    continue
                given_back = group["scaleStrategy"].get("workersToDelete", ())
                self._delete([pod for pod in pods if pod.name in given_back and not pod.leaving])
                wanted = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
                there = [pod for pod in pods if pod.name not in given_back]
                for _ in range(wanted - len(there)):
                    self._start(group["groupName"], group, f"--address={self.address}")

    def kill(self) -> None:
        """End all processes of all pods at once."""
        for pod in list(self.pods):
            pod.kill()

    def _start(self, name: str, group: Object, options: str) -> Pod:
        pod, self._started = f"{NAME}-{name}-{self._started}", self._started + 1
        agent, grpc, metrics = free_ports(3)
        ports = f"--dashboard-agent-grpc-port={grpc} --min-worker-port=0 --max-worker-port=0"
        place = f"--node-ip-address=127.0.0.1 --temp-dir={self._temporary / str(self._started)}"
        command = f"{ray_start(group, agent, metrics)} {ports} {place} {options}"
        log = self._folder / f"{pod}.log"
        self.pods.append(Pod(pod, name, group["template"]["spec"], command, self._variables, log))
        return self.pods[-1]

    def _delete(self, pods: list[Pod]) -> None:
        def end(pod: Pod) -> None:
            pod.end()
            with self._lock:
                self.pods.remove(pod)

        for pod in pods:
            pod.leaving = True
            threading.Thread(target=end, args=(pod,)).start()


class Api(BaseHTTPRequestHandler):
    """Answers the requests that Ray's autoscaler makes to the API server."""

    def __init__(self, kuberay: Kuberay, *arguments: Any) -> None:
        self._kuberay = kuberay
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Show the Ray cluster, the head's pod, or all pods."""
        kuberay = self._kuberay
        self._answer(
            {
                f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}": lambda: kuberay.cluster,
                f"/api/v1/namespaces/{NAMESPACE}/pods/{kuberay.head.name}": kuberay.head.object,
                f"/api/v1/namespaces/{NAMESPACE}/pods": kuberay.listed,
            }[urlsplit(self.path).path]()
        )

    def do_PATCH(self) -> None:
        """Change the Ray cluster."""
        operations = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self._kuberay.patch(operations))

    def _answer(self, tree: Object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(tree).encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def kuberay(spec: Object, folder: Path, temporary: Path, **variables: str) -> Iterator[Kuberay]:
    """Start a Ray cluster with Ray's autoscaler; at the end all its processes are killed.

    Args:
        spec: the Ray cluster's spec, from a RayJob.
        folder: an empty folder.
        temporary: folder for Ray's sockets, whose names must be short.
        variables: variables of all pods.
    """
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    # One certificate serves both sides, instead of a service account's token.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)

    with ExitStack() as ends:
        cluster = Kuberay(spec, folder, temporary, **variables)
        ends.callback(cluster.kill)
        server = ends.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(Api, cluster)))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        ended = threading.Event()

        def operate() -> None:
            while not ended.wait(LOOK_SECONDS):
                cluster.reconcile()

        for work, end in ((server.serve_forever, server.shutdown), (operate, ended.set)):
            thread = threading.Thread(target=work)
            thread.start()
            ends.callback(thread.join)
            ends.callback(end)
        cluster.head.start(
            *("ray", "kuberay-autoscaler", "--cluster-name", NAME, "--cluster-namespace", NAMESPACE),
            *("--gcs-address", cluster.address),
            log=folder / "autoscaler.log",
            KUBERNETES_SERVICE_HOST="127.0.0.1",
            KUBERNETES_SERVICE_PORT_HTTPS=str(server.server_port),
            RAY_KUBERAY_CA_CERT_PATH=str(certificate),
            RAY_KUBERAY_CLIENT_CERT_PATH=str(certificate),
            RAY_KUBERAY_CLIENT_KEY_PATH=str(key),
            RAY_HEAD_POD_NAME=cluster.head.name,
            AUTOSCALER_METRIC_PORT=str(free_ports(1)[0]),
            NO_PROXY="127.0.0.1",
        )
        yield cluster
