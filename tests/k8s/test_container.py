"""Tests that run the manifests' own commands as the image would run them.

Users are not root, the root file system is read-only, and the network has nothing else on it. Redis, head,
actors and learner share one machine here.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.check import entrypoint, run_config
from k8s.pods import Object
from tests.k8s.conftest import ROOT, build, find

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
REDIS_PORT = 6390
"""Port of Redis in this test: on one machine Ray's head already takes 6379, Redis' port in its pod."""

# `start NAMESPACE` starts head, actors and learner; `submit ID` submits the run as KubeRay's submitter does.
SCENARIO = """
. "$REPOSITORY/tests/k8s/container.sh"
until_so() {
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.3
    done
    echo "never succeeded: $*"
    exit 1
}
healthy() { until_so python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$1/api/healthz')"; }
start() {
    container 10001 $HEAD RAY_external_storage_namespace=$1 bash -c -- "ulimit -n 65536; $START_HEAD" \
        >"$FOLDER/head-$1" 2>&1 &
    healthy 52365
    container 10001 $WORKER bash -c -- "ulimit -n 65536; $START_ACTORS" >"$FOLDER/actors-$1" 2>&1 &
    healthy 52366
    container 10001 $WORKER bash -c -- "ulimit -n 65536; $START_LEARNERS" >"$FOLDER/learners-$1" 2>&1 &
    healthy 52367
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


def ray_start(group: Any, agent: int, metrics: int) -> str:
    """Return the command that KubeRay makes for a group's nodes.

    These nodes share one machine, so object stores are small, and each agent has its own ports.
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


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """Return the scenario's variables; skip where no container-like namespaces can be made."""
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    if (
        os.geteuid() != 0
        or shutil.which("unshare") is None
        or subprocess.run(namespaces, check=False).returncode
    ):
        pytest.skip("needs root and the right to unshare namespaces")
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
        # Ray must not kill workers when this machine's memory, which is not the containers', runs short.
        "ENVIRONMENT": f"{image_environment()} RAY_memory_monitor_refresh_ms=0",
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
@pytest.mark.timeout(900)
def test_a_run_is_drained_and_tried_again_in_its_container(container: dict[str, str]) -> None:
    folder = Path(container["FOLDER"])
    (folder / "scenario.sh").write_text(SCENARIO)
    done = subprocess.run(
        [*["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash"], folder / "scenario.sh"],
        env=os.environ | container,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
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
