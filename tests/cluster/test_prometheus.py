"""A run that its own real Prometheus watches, also while processes die."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml

from longview import monitoring
from longview.cluster.run.folder import Run
from longview.cluster.run.services import prometheus_server
from longview.monitoring.panels import KUBERNETES
from longview.monitoring.snapshot import read_metrics
from tests.conftest import COMMAND

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed (Debian: apt install prometheus)"
)

WATCHED = """
task: return_point
seed: 5
actors: {count: 2, simulators: 8, demonstrations: 12}
collect: {kind: takeover, steps_per_training_step: 50}
learner:
  steps: 100000
  warmup: 5
  batch_size: 16
  publish_every: 20
  checkpoint_every: 1000
  report_every: 5
  validation_episodes: 4
  policy: {architecture: mlp, width: 32, depth: 1, token_size: 16, sampling_steps: 1}
evaluation: {episodes: 4, context_lengths: [1, 8]}
inference: {servers: 1}
"""
RECORDED = {
    rule["record"]
    for rule in yaml.safe_load((Path(monitoring.__file__).parent / "rules.yaml").read_text())["groups"][0][
        "rules"
    ]
    if "record" in rule
}

SILENT = {
    "longview:backpressure:ratio5m",
    "longview:limiter_wait:ratio5m",
    "longview:learner_data_wait:ratio5m",
}
"""Recorded rates of events that need not happen in such a run."""
KUBERNETES_ONLY = set(
    re.findall(
        r"longview:[\w:]+", " ".join(query for panel in KUBERNETES for query in panel.queries.values())
    )
)
REPORTED = {
    *("env_steps_total", "simulated_seconds_total", "actor_seconds_total", "staleness_steps_bucket"),
    *("publish_to_use_seconds_bucket", "success_ratio_lower", "completion_ratio", "gradient_norm", "loss"),
    *("learner_step_seconds_bucket", "gpu_memory_bytes", "store_committed_bytes_total", "actors_target"),
    *("publish_interval_steps", "store_byte_budget", "errors_total", "samples_trained_total"),
}
DASHBOARDS = Path(monitoring.__file__).parent / "dashboards"
NOTHING_TO_SHOW = {f"{file.stem}: Alerts" for file in DASHBOARDS.glob("*.json")} | {
    f"store: {panel.title}" for panel in KUBERNETES
}
"""Marks that find nothing, since no alert fires; the panel of that name counts alerts, and shows 0. Panels on
Kubernetes."""


def ask(url: str, path: str) -> Any:
    """Ask Prometheus' HTTP API, and return its answer."""
    with build_opener(ProxyHandler({})).open(f"{url}/api/v1/{path}", timeout=10) as response:
        return json.load(response)["data"]


def query(url: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Run an instant query, and return the series it finds with their values."""
    found = ask(url, f"query?query={quote(expression)}")["result"]
    return [(series["metric"], float(series["value"][1])) for series in found]


class Terminal:
    """A command in a terminal of 80 columns, and all its output so far."""

    def __init__(self, longview: Any, *arguments: str) -> None:
        self.text = ""
        self._screen, there = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=longview.folder,
            env=os.environ | longview.environment | {"TERM": "xterm", "COLUMNS": "80", "LINES": "40"},
            stdin=there,
            stdout=there,
            stderr=there,
        )
        longview.started.append(self.process)
        os.close(there)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(OSError):  # the command has ended
            while shown := os.read(self._screen, 1 << 16):
                self.text += shown.decode(errors="replace")


def look_on_and_away(longview: Any) -> None:
    terminal = Terminal(longview, "status", "watched", "--watch")
    longview.wait_for(lambda: "newest evaluated weights" in terminal.text and "2 of 2" in terminal.text)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(30) == 130
    lines = re.split(r"\x1b\[[0-9;?]*[A-Khl]|[\r\n]", re.sub(r"\x1b\[[0-9;]*m", "", terminal.text))
    assert 60 < max(map(len, lines)) <= 80


def chosen(expression: str) -> str:
    """Fill a panel's variables in as Grafana does, with a person's choices, for the last quarter of an hour.
    Grafana takes rates over four times the 15 s that it assumes between scrapes."""
    variables = {"run": "watched", "task": "return_point", "context_length": "8"}
    for name, value in (variables | {"__range": "900s", "__rate_interval": "60s"}).items():
        expression = re.sub(rf"\$({name}\b|{{{name}}})", value, expression)
    assert "$" not in expression, expression
    return expression


def without_data(url: str) -> set[str]:
    """List the panels, variables and marks of all dashboards with a query that finds nothing."""
    found, now = set(), time.time()
    for file in DASHBOARDS.glob("*.json"):
        dashboard = json.loads(file.read_text())
        queries = [
            *(
                (panel["title"], target["expr"])
                for panel in dashboard["panels"]
                for target in panel.get("targets", ())
            ),
            *((mark["name"], mark["expr"]) for mark in dashboard["annotations"]["list"]),
        ]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(
                    r"label_values\((.+), (\w+)\)", variable["query"]["query"]
                ).groups()
                queries.append((variable["name"], f"group by ({label}) ({series})"))
        for name, expression in queries:
            asked = f"query_range?query={quote(chosen(expression))}&start={now - 60}&end={now}&step=2"
            values = [value for series in ask(url, asked)["result"] for _, value in series["values"]]
            if set(values) <= {"NaN"}:
                found.add(f"{file.stem}: {name}")
    return found


def recorded(url: str) -> set[str]:
    """List the recorded series of the run."""
    return {series["__name__"] for series, _ in query(url, '{__name__=~"longview:.+", run="watched"}')}


def series_arrive(longview: Any, url: str) -> set[str]:
    """Check that metrics arrive with the run's name and that every rule works; return the metrics' names."""
    longview.wait_for(lambda: query(url, "longview_success_ratio_upper"))
    expected = RECORDED - SILENT - KUBERNETES_ONLY
    with suppress(TimeoutError):  # the assertion tells which is missing
        longview.wait_for(lambda: recorded(url) >= expected)
    assert recorded(url) >= expected
    longview.wait_for(lambda: query(url, "longview:staleness_publications:p90_10m >= 0"))
    (target,) = ask(url, "targets")["activeTargets"]
    assert (target["health"], target["labels"]) == ("up", {"instance": "hub", "job": "longview"})
    (group,) = ask(url, "rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group["rules"]
    assert sum(rule["type"] == "alerting" for rule in group["rules"]) == 18
    names = {series["__name__"] for series in ask(url, "series?match[]={job='longview',run!=''}")}
    assert names >= {f"longview_{name}" for name in REPORTED}
    assert {value for _, value in query(url, "sum by (run) (longview_actor_seconds_total) > 0")}
    parts = {labels["part"] for labels, _ in query(url, "longview_actor_seconds_total > 0")}
    assert parts >= {"simulator", "policy", "expert", "store", "weights", "waiting"}
    longview.wait_for(lambda: query(url, "longview_actors == 2"))
    return names


def another_hub_takes_over(longview: Any, run: Run, url: str, names: set[str]) -> None:
    """Check that a hub that dies is found at its new address, and that no counter falls."""
    before = query(url, "longview_env_steps_total")[0][1]
    served = run.state()["metrics"]
    (hub,) = longview.processes("ray::MetricsHub")
    os.kill(hub, signal.SIGKILL)
    longview.wait_for(lambda: run.state()["metrics"] != served)
    died = 'longview_actor_restarts_total{role="hub", cause="died"}'
    longview.wait_for(lambda: query(url, f"{died} == 1"))
    longview.wait_for(lambda: query(url, f"longview_env_steps_total > {before}"))
    counters = [name for name in names if name.endswith(("_total", "_bucket", "_sum", "_count"))]
    resets = {name: query(url, f"max(resets({name}[10m]))")[0][1] for name in counters}
    assert resets == dict.fromkeys(counters, 0.0)


def the_run_goes_on_without_prometheus(longview: Any, run: Run, url: str) -> None:
    (prometheus,) = longview.processes("/prometheus --config")
    os.kill(prometheus, signal.SIGKILL)

    def step() -> float:
        return read_metrics(run.state()["metrics"])["longview_learner_step"][()]

    _, output = longview("status", "watched")
    assert f"Prometheus: {url}" in output
    reached = step()
    longview.wait_for(lambda: step() > reached + 40)


@needs_prometheus
def test_a_run_is_watched_and_outlives_the_death_of_hub_and_prometheus(longview: Any) -> None:
    (longview.folder / "watched.yaml").write_text(WATCHED)
    process = longview.start("launch", "watched.yaml", "name=watched")
    run = Run(longview.folder / "runs" / "watched")
    url = longview.wait_for(lambda: run.state().get("prometheus"))
    names = series_arrive(longview, url)

    # Every panel shows something, and every choice has values.
    longview.wait_for(lambda: without_data(url) <= NOTHING_TO_SHOW)
    another_hub_takes_over(longview, run, url, names)

    # One person watches in a terminal and stops; another one watches to the end.
    other = Terminal(longview, "status", "--watch")
    look_on_and_away(longview)
    assert process.poll() is None, "the run goes on"

    the_run_goes_on_without_prometheus(longview, run, url)
    code, output = longview("stop", "watched")
    assert code == 0, output
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"Prometheus: {url}" in output
    assert other.process.wait(120) == 0
    longview.wait_for(lambda: "interrupted after" in other.text)
    longview.wait_for(lambda: not longview.processes())


@needs_prometheus
def test_it_listens_to_this_machine_only_and_ends_with_its_context(tmp_path: Path) -> None:
    with prometheus_server(tmp_path) as url:
        assert url is not None
        assert url.startswith("http://127.0.0.1:")
        flags = ask(url, "status/flags")
        assert flags["storage.tsdb.path"] == str(tmp_path / "data")
        assert flags["storage.tsdb.retention.size"] != "0B"
        assert ask(url, "targets")["activeTargets"] == []
        (tmp_path / "targets.json").write_text("[]")
    with pytest.raises(OSError, match="refused"):
        ask(url, "targets")
    with prometheus_server(tmp_path):
        assert not (tmp_path / "targets.json").exists(), "of an earlier launch"


@needs_prometheus
def test_one_that_does_not_start_is_gone_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("no folder")
    with prometheus_server(tmp_path) as url:
        assert url is None
    message = capsys.readouterr().err
    assert "longview: going on without Prometheus: Prometheus ended with" in message
    assert str(tmp_path / "prometheus.log") in message


def test_where_there_is_none_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with prometheus_server(tmp_path / "prometheus") as url:
        assert url is None
    assert not (tmp_path / "prometheus").exists()
