"""A Ray job that is stopped while its disk is slow: the run saves before Ray kills it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from k8s.pods import Object
from longview.cluster.run.folder import Run
from longview.cluster.run.services import RAY_SOCKET, redis_server, socket_folder
from longview.learner.files import steps
from longview.monitoring.snapshot import read_metrics
from tests.conftest import COMMAND
from tests.k8s.conftest import ROOT, eventually, free_ports

SAVING_SECONDS = 20

SLOW_DISK = f"""
import os, time
slow, fsync = os.environ["SLOW_DISK"], os.fsync
def slowly(handle):
    if os.path.exists(slow) and "checkpoints" in os.readlink(f"/proc/self/fd/{{handle}}"):
        os.unlink(slow)
        time.sleep({SAVING_SECONDS})
    fsync(handle)
os.fsync = slowly
"""
"""A disk that takes long over the first file after `$SLOW_DISK` appeared, in every Python of the cluster."""

STOPPED = """
name: stopped
task: return_point
actors: {count: 1, simulators: 8, demonstrations: 12}
learner:
  steps: 1000000
  batch_size: 16
  publish_every: 1000000
  checkpoint_every: 1000000
  report_every: 5
  validation_episodes: 4
  policy: {widths: [16, 32], token_size: 32}
evaluation: {episodes: 4, context_lengths: [1, 8]}
"""


def heads_environment() -> dict[str, str]:
    """Return the variables of the head's container that concern Ray."""
    documents: list[Object] = list(yaml.safe_load_all((ROOT / "k8s" / "base" / "run.yaml").read_text()))
    head = documents[0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {it["name"]: it["value"] for it in head["env"] if it["name"].startswith("RAY_")}


Command = Callable[..., str]


@pytest.fixture
def ray_job(tmp_path: Path) -> Iterator[Command]:
    """Return a function that runs `ray job` with a cluster that was started as the head's pod starts it."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    environment = (
        os.environ
        | heads_environment()
        | {
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "SLOW_DISK": str(tmp_path / "slow"),
            "LONGVIEW_RUNS": str(tmp_path / "runs"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
        }
    )
    ray = str(Path(sys.executable).with_name("ray"))
    gcs, dashboard, agent, grpc, metrics, client = free_ports(6)
    start = [
        *(
            ray,
            "start",
            "--head",
            "--block",
            f"--port={gcs}",
            "--num-cpus=3",
            f"--dashboard-port={dashboard}",
        ),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"),
        *(f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}"),
        *("--object-store-memory=100000000", f"--temp-dir={socket_folder(RAY_SOCKET)}/ray-{gcs}"),
    ]

    def command(*arguments: str) -> str:
        asked = [ray, "job", arguments[0], "--address", f"http://127.0.0.1:{dashboard}", *arguments[1:]]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    opener = build_opener(ProxyHandler({}))
    with (tmp_path / "ray.log").open("wb") as log:
        head = subprocess.Popen(start, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for address in (f"127.0.0.1:{dashboard}/api/version", f"127.0.0.1:{agent}/api/healthz"):
            eventually(lambda address=address: opener.open(f"http://{address}", timeout=5))
        yield command
    finally:
        head.terminate()
        head.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_that_is_stopped_saves_first(ray_job: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(STOPPED)
    run = Run(tmp_path / "runs" / "stopped")
    with redis_server(tmp_path / "redis") as url:
        (tmp_path / "command.py").write_text(COMMAND)
        launch = [sys.executable, str(tmp_path / "command.py"), "launch", str(tmp_path / "run.yaml")]
        options = ["--or-resume", "--address", "auto", f"replay.url={url}"]
        ray_job("submit", "--no-wait", "--submission-id", "one", "--", *launch, *options)
        eventually(lambda: read_metrics(run.state()["metrics"])["longview_learner_step"][()] > 0)
        assert steps(run.checkpoints) == []

        (tmp_path / "slow").touch()
        began = time.monotonic()
        ray_job("stop", "one")
        assert time.monotonic() - began > SAVING_SECONDS
        assert not (tmp_path / "slow").exists()
        assert "STOPPED" in ray_job("status", "one").upper()
    assert max(steps(run.checkpoints)) > 0
    assert json.loads((run.path / "summary.json").read_text())["status"] == "interrupted"
    assert not run.under_way()
