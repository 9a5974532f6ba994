"""A user's own `learner/config.py` never stands in for Longview's, in the driver or in a Ray worker."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "name=shadow",
    *("actors.count=1", "actors.simulators=2", "actors.demonstrations=3"),
    *("learner.steps=4", "learner.batch_size=8", "learner.warmup=1", "learner.validation_episodes=0"),
    *("learner.publish_every=4", "learner.checkpoint_every=4", "learner.policy.widths=[16,32]"),
    *("evaluation.episodes=0", "evaluation.final_episodes=2", "evaluation.context_lengths=[1]"),
)
WORKER = """
import ray
from longview.cluster.driver.launch import ray_cluster
from longview.cluster.run.config import read_config

@ray.remote
def imported():
    import longview.actors.worker, longview.learner.config, longview.monitoring.hub, longview.replay.store
    return longview.learner.config.__name__

with ray_cluster(read_config(None), None):
    print(ray.get(imported.remote()))
"""
THEIRS = "raise ImportError('this is the file of another project')\n"


@pytest.fixture
def elsewhere(longview: Any) -> dict[str, str]:
    """Write another project, with files of our names, into the working folder, and put that on PYTHONPATH."""
    for name in ("actors/worker", "cluster/run/config", "learner/config", "monitoring/hub", "replay/store"):
        file = longview.folder / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(THEIRS)
        for folder in file.relative_to(longview.folder).parents[:-1]:
            (longview.folder / folder / "__init__.py").write_text(THEIRS)
    paths = (str(longview.folder), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture
def address(longview: Any, elsewhere: dict[str, str]) -> Iterator[str]:
    """Start a Ray cluster in that folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ("start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false")
    cluster = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), *start],
        cwd=longview.folder,
        env=os.environ | longview.environment | elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with cluster:
        assert cluster.stdout is not None
        started = any("Ray runtime started" in line for line in cluster.stdout)
        assert started, f"ray start ended with {cluster.wait()}"
        yield f"127.0.0.1:{port}"
        cluster.terminate()
        cluster.stdout.read()


def assert_it_ran(longview: Any, code: int, output: str) -> None:
    assert code == 0, output
    summary = json.loads((longview.folder / "runs" / "shadow" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["success"]["counting"]["1"]["episodes"] == 2


def test_a_worker_of_ray(longview: Any, elsewhere: dict[str, str]) -> None:
    environment = os.environ | longview.environment | elsewhere
    command, folder = [sys.executable, "-c", WORKER], longview.folder
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "longview.learner.config"


@pytest.mark.slow
def test_a_run_on_this_machine(longview: Any, elsewhere: dict[str, str]) -> None:
    assert_it_ran(longview, *longview("demo", "--task", "counting", *TINY, **elsewhere))


@pytest.mark.slow
def test_a_run_on_an_existing_cluster(longview: Any, elsewhere: dict[str, str], address: str) -> None:
    (longview.folder / "tiny.yaml").write_text("task: counting")
    assert_it_ran(longview, *longview("launch", "tiny.yaml", "--address", address, *TINY, **elsewhere))


def test_the_files_are_in_the_way_of_their_own_names_only(longview: Any, elsewhere: dict[str, str]) -> None:
    """Otherwise the tests above would show nothing."""
    for name in ("actors", "cluster", "learner", "monitoring", "replay"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            cwd=longview.folder,
            env=os.environ | elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
        assert THEIRS.split("'")[1] in done.stderr
