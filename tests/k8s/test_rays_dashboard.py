"""Ray's own dashboard, asked of a real Prometheus that scrapes a real Ray."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.generate import RAYS_DASHBOARD
from tests.cluster.test_prometheus import needs_prometheus, query
from tests.k8s.test_redis import free_port

CHOICES = {"SessionName": ".+", "Instance": ".+", "Cluster": "longview-gpu-x", "RayNodeType": "head|worker"}
"""A person's choices at the top of the dashboard. The Ray cluster is the one that KubeRay names so."""

SHOWN = {"Node CPU Usage", "Node Memory Usage (heap + object store)", "Node Disk Usage", "Node Network"}


@contextmanager
def running(*command: str | Path, **environment: str) -> Iterator[None]:
    """Run a program for as long as the context lasts."""
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def panels(tree: Any) -> Iterator[Any]:
    """Yield the panels of a dashboard, those in rows included."""
    for panel in tree.get("panels", ()):
        yield panel
        yield from panels(panel)


def chosen(expression: str) -> str:
    for name, value in CHOICES.items():
        expression = re.sub(rf"\$({name}\b|{{{name}}})", value, expression)
    return expression.replace("$__rate_interval", "60s").replace("$__interval", "15s")


@pytest.mark.slow
@needs_prometheus
def test_it_shows_the_nodes_of_the_chosen_ray_cluster(tmp_path: Path) -> None:
    metrics, port, here = free_port(), free_port(), Path(sys.executable).parent
    labels = {"ray_io_cluster": CHOICES["Cluster"]}  # by the PodMonitor
    target = {"targets": [f"127.0.0.1:{metrics}"], "labels": labels}
    config = {"scrape_configs": [{"job_name": "ray", "scrape_interval": "1s", "static_configs": [target]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    start = ("--head", "--block", "--port=0", "--num-cpus=1", f"--metrics-export-port={metrics}")
    prometheus = (f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}")
    listens, url = f"--web.listen-address=127.0.0.1:{port}", f"http://127.0.0.1:{port}"
    with (
        running(here / "ray", "start", *start, f"--temp-dir={tmp_path}", RAY_USAGE_STATS_ENABLED="0"),
        running(str(shutil.which("prometheus")), *prometheus, listens),
    ):
        wanted = {
            panel["title"]: panel["targets"]
            for panel in panels(json.loads(RAYS_DASHBOARD.read_text()))
            if panel["title"] in SHOWN
        }
        assert wanted.keys() == SHOWN
        deadline, missing = time.monotonic() + 180, SHOWN
        while missing:
            assert time.monotonic() < deadline, missing
            time.sleep(2)
            try:
                missing = {
                    title
                    for title, targets in wanted.items()
                    if not any(query(url, chosen(target["expr"])) for target in targets)
                }
            except OSError:  # Prometheus does not listen yet
                continue
