"""Tests that run the manifests' own commands as containers run them.

Users are not root, the root file system is read-only, and the network has nothing else on it. Redis, head,
actors and learner share one machine here. Longview runs from this machine's files, and from its image.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.check import entrypoint, run_config
from k8s.pods import Object
from tests.k8s.conftest import ROOT, build, find, skip_without_namespaces
from tests.k8s.image import build_image, mounted, skip_without_programs
from tests.k8s.kuberay import ray_start

SMALL = {
    "name": "small",
    "task": "return_point",
    "actors": {"count": 2, "simulators": 8, "demonstrations": 26},
    "collect": {"kind": "takeover"},
    "learner": {
        "steps": 1000,
        "warmup": 5,
        "batch_size": 16,
        "publish_every": 100,
        "checkpoint_every": 20,
        "report_every": 5,
        "validation_episodes": 4,
        "policy": {"widths": [16, 32], "token_size": 32},
    },
    "evaluation": {"episodes": 4, "final_episodes": 8, "context_lengths": [1, 8]},
}
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
"""Starts a command with a network, mounts and processes of its own, which end with it."""
REDIS_PORT = 6390
"""Port of Redis in this test: on one machine Ray's head already takes 6379, Redis' port in its pod."""

# `start NAMESPACE` starts head, actors and learner; `submit ID` submits the run as KubeRay's submitter does.
SCENARIO = """
. "$REPOSITORY/tests/k8s/container.sh"
until_so() {
    for _ in $(seq 2000); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.3
    done
    echo "never succeeded: $*"
    exit 1
}
healthy() { python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$1/api/healthz')"; }
begin() {  # PORT LOG COMMAND [ARGUMENT ...]: start a node, again if Ray gives up, as on a busy machine
    port=$1 log=$2
    shift 2
    while true; do
        "$@" >"$log" 2>&1 &
        node=$!
        while kill -0 "$node" 2>/dev/null; do
            if healthy "$port" 2>/dev/null; then return; fi
            sleep 0.3
        done
    done
}
start() {
    begin 52365 "$FOLDER/head-$1" \\
        container 10001 $HEAD RAY_external_storage_namespace=$1 bash -c -- "ulimit -n 65536; $START_HEAD"
    begin 52366 "$FOLDER/actors-$1" container 10001 $WORKER bash -c -- "ulimit -n 65536; $START_ACTORS"
    begin 52367 "$FOLDER/learners-$1" container 10001 $WORKER bash -c -- "ulimit -n 65536; $START_LEARNERS"
}
submit() {
    at="--address http://127.0.0.1:8265"
    container 10001 $WORKER bash -ce -- "ray job submit $at --no-wait --submission-id $1 -- $ENTRYPOINT;
        ray job logs $at --follow $1" >"$FOLDER/submitter-$1" 2>&1 &
}
run=$FOLDER/volumes/var/lib/longview/runs/small
container 999 $REDIS >"$FOLDER/redis.log" 2>&1 &

start one
submit first
until_so bash -c "ls $run/checkpoints/step-*/state.json"
python3 -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9600/metrics').read().decode())" \
    >"$FOLDER/metrics"
if container 10001 RAY_AUTH_MODE=disabled ray job list --address http://127.0.0.1:8265; then
    echo "anyone may talk to Ray"
    exit 1
fi
container 10001 $HEAD longview-drain head >"$FOLDER/drain" 2>&1
cp "$run/summary.json" "$FOLDER/interrupted.json"
ls "$run/checkpoints" >"$FOLDER/checkpoints"

start two
submit second
until_so grep -q '"status": "finished"' "$run/summary.json"
status() { container 10001 $WORKER ray job status --address http://127.0.0.1:8265 second; }
succeeded() { status 2>&1 | grep -q "succeeded"; }
until_so succeeded
"""


def image_environment() -> str:
    """Return the Dockerfile's ENV without PATH: the packages lie elsewhere on this machine."""
    text = (ROOT / "k8s" / "Dockerfile").read_text().replace("\\\n", " ")
    words = shlex.split(re.findall(r"^ENV (.*)$", text, re.MULTILINE)[-1])
    return " ".join(word for word in words if not word.startswith("PATH="))


def environment(container: Any, secrets: dict[str, str]) -> str:
    """Return the variables that a container's `env` sets, as NAME=VALUE words."""
    return " ".join(
        f"{it['name']}={it['value'] if 'value' in it else secrets[it['valueFrom']['secretKeyRef']['key']]}"
        for it in container["env"]
        if "secretKeyRef" in it.get("valueFrom", {}) or "value" in it
    )


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Build Longview's image, and return its root file system."""
    skip_without_programs()
    build_image()
    with mounted() as root:
        yield root


@pytest.fixture(params=["machine", "image"])
def root(request: pytest.FixtureRequest) -> str:
    """Return the root file system of Longview's image; empty for this machine's files in its place."""
    skip_without_namespaces(UNSHARE)
    return str(request.getfixturevalue("image")) if request.param == "image" else ""


@pytest.fixture
def container(root: str, tmp_path: Path) -> dict[str, str]:
    """Return the scenario's variables."""
    objects: list[Object] = list(yaml.load_all(build("local"), yaml.CSafeLoader))
    cluster = find(objects, "RayJob")["spec"]["rayClusterSpec"]
    placement = yaml.safe_load(run_config(objects))["placement"]
    (tmp_path / "longview").mkdir()
    (tmp_path / "longview" / "run.yaml").write_text(yaml.safe_dump({**SMALL, "placement": placement}))
    (tmp_path / "redis").mkdir()
    for name, text in find(objects, "ConfigMap", "longview-redis-local")["data"].items():
        (tmp_path / "redis" / name).write_text(text)
    secrets = {"password": "store-secret", "ray-password": "ray-secret"}
    head = cluster["headGroupSpec"]
    actors, learners = cluster["workerGroupSpecs"]
    redis = find(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    # KubeRay adds these variables for token authentication and for fault tolerance.
    token = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef"
    redis_address = cluster["gcsFaultToleranceOptions"]["redisAddress"].replace("6379", str(REDIS_PORT))
    return {
        "FOLDER": str(tmp_path),
        "REPOSITORY": str(ROOT),
        "PYTHON": sys.base_prefix,
        "PACKAGES": str(Path(sys.prefix).resolve()),
        "IMAGE": root,
        # Ray must not kill workers when this machine's memory, which is not the containers', runs short.
        "ENVIRONMENT": f"{image_environment()} RAY_memory_monitor_refresh_ms=0 RAY_worker_niceness=0",
        "REDIS": f"HOSTNAME=longview-redis-local-0 RUN=small MEMORY=1073741824 {environment(redis, secrets)} "
        f"{' '.join(redis['command'])} /etc/redis/redis.conf /run/redis /data --port {REDIS_PORT}",
        "WORKER": f"{token} {environment(actors['template']['spec']['containers'][0], secrets)}",
        "HEAD": f"{token} {environment(head['template']['spec']['containers'][0], secrets)} "
        f"RAY_ADDRESS=127.0.0.1:6379 RAY_REDIS_ADDRESS={redis_address} "
        f"REDIS_USERNAME={cluster['gcsFaultToleranceOptions']['redisUsername']['value']} "
        f"REDIS_PASSWORD={secrets['ray-password']}",
        "START_HEAD": ray_start(head, 52365, 8080).replace(
            "--block", "--head --block --redis-username=$REDIS_USERNAME --redis-password=$REDIS_PASSWORD"
        ),
        "START_ACTORS": ray_start(actors, 52366, 8081) + " --address=127.0.0.1:6379",
        "START_LEARNERS": ray_start(learners, 52367, 8082) + " --address=127.0.0.1:6379",
        "ENTRYPOINT": " ".join(entrypoint(objects)).replace("6379", str(REDIS_PORT)),
    }


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_is_drained_and_tried_again_in_its_container(container: dict[str, str]) -> None:
    folder = Path(container["FOLDER"])
    (folder / "scenario.sh").write_text(SCENARIO)
    done = subprocess.run(
        [*UNSHARE, "bash", folder / "scenario.sh"],
        env=os.environ | container,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    assert "small has stopped" in (folder / "drain").read_text()
    assert json.loads((folder / "interrupted.json").read_text())["status"] == "interrupted"
    stopped_at = max(int(name.removeprefix("step-")) for name in (folder / "checkpoints").read_text().split())
    assert 0 < stopped_at < SMALL["learner"]["steps"]  # type: ignore[index]
    assert 'run="small"' in (folder / "metrics").read_text()

    summary = json.loads((folder / "volumes/var/lib/longview/runs/small/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["policy_version"] == SMALL["learner"]["steps"]  # type: ignore[index]
    # The second attempt resumed the run: it collected no demonstrations again and kept the trained weights.
    assert summary["phases"].get("collect", 0) < summary["phases"]["train"]
    log = (folder / "volumes/var/lib/longview/runs/small/log.txt").read_text()
    said = "".join(file.read_text() for file in folder.glob("submitter-*")) + log + done.stdout
    assert "store-secret" not in said
    assert "ray-secret" not in said
