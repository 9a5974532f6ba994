"""Grafana's own transformations, from npm, make the fields that the dashboards' panels name."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest

from longview.cluster.run.services import prometheus_server
from longview.monitoring.dashboards import FOLDER
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.metrics import CATALOGUE
from longview.monitoring.panels import KUBERNETES
from tests.k8s.conftest import eventually

GRAFANA = "13.2.3"
"""Version of the newest Grafana that the dashboards are made for."""
RUN, LENGTHS = "test", ("1", "8", "64")
LABELS = {"task": "return_point", "source": "demo", "part": "simulator"}
"""Values of the labels by which panels choose series."""


def totals(count: int) -> Totals:
    """Return one value for each series of the catalogue.

    Args:
        count: value of counters, and number of observations of histograms.
    """
    made = Totals()
    for name, metric in CATALOGUE.items():
        for length in LENGTHS if "context_length" in metric.labels else LENGTHS[:1]:
            labels = {
                it: length if it == "context_length" else LABELS.get(it, "some") for it in metric.labels
            }
            if metric.kind == "counter":
                made.add(name, count, **labels)
            elif metric.kind == "gauge":
                made.set(name, 0.5, **labels)
            else:
                made.observe(name, metric.buckets[1], count, **labels)
    return made


@contextmanager
def served() -> Iterator[int]:
    """Serve every metric of the catalogue, with counters that grow; yields the port."""
    hub, ended = Hub(RUN), threading.Event()
    port = hub.serve()

    def report() -> None:
        for count in range(1, 1000):
            hub.report(encode_report("actor", "actor-0", 1, totals(count)))
            if ended.wait(1.0):
                return

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield port
    finally:
        ended.set()
        thread.join()
        hub.close()


def ask(url: str, target: Any) -> list[Any]:
    """Ask Prometheus what Grafana asks for a panel's query, with a person's choices; return the series."""
    expression = target["expr"]
    values = {
        "run": RUN,
        "task": LABELS["task"],
        "context_length": "8",
        "__range": "900s",
        "__rate_interval": "60s",
    }
    for name, value in values.items():
        expression = re.sub(rf"\$({name}\b|{{{name}}})", value, expression)
    now = time.time()
    path = f"query?query={quote(expression)}"
    if target.get("range"):
        path = f"query_range?query={quote(expression)}&start={now - 30}&end={now}&step=2"
    with build_opener(ProxyHandler({})).open(f"{url}/api/v1/{path}", timeout=10) as response:
        series: list[Any] = json.load(response)["data"]["result"]
    return series


def frames(panel: Any, answers: dict[str, list[Any]]) -> list[Any]:
    """Return the data frames that Grafana's data source for Prometheus makes of the answers to queries.

    A table is one frame for a query, with a field for each label. Otherwise each series is a frame, called as
    the query's legend says.
    """
    made = []
    several = len([series for series in answers.values() if series]) > 1
    for target in panel["targets"]:
        letter, series = target["refId"], answers[target["refId"]]
        samples = [(it["metric"], sample) for it in series for sample in it.get("values", [it.get("value")])]
        if target["format"] == "table" and series:
            labels = sorted({name for it in series for name in it["metric"]})
            fields = [
                {"name": "Time", "type": "time", "values": [sample[0] * 1000 for _, sample in samples]},
                *(
                    {"name": it, "type": "string", "values": [found.get(it, "") for found, _ in samples]}
                    for it in labels
                ),
                {
                    "name": f"Value #{letter}" if several else "Value",
                    "type": "number",
                    "values": [float(sample[1]) for _, sample in samples],
                },
            ]
            made.append({"refId": letter, "fields": fields})
        elif target["format"] != "table":
            for it in series:
                rows = it.get("values", [it.get("value")])
                legend = re.sub(
                    r"{{\s*(\w+)\s*}}",
                    lambda name, it=it: it["metric"].get(name[1], ""),
                    target["legendFormat"],
                )
                fields = [
                    {"name": "Time", "type": "time", "values": [row[0] * 1000 for row in rows]},
                    {
                        "name": "Value",
                        "type": "number",
                        "labels": it["metric"],
                        "config": {"displayNameFromDS": legend},
                        "values": [float(row[1]) for row in rows],
                    },
                ]
                made.append({"refId": letter, "fields": fields})
    return made


def named(panel: Any) -> set[str]:
    """Return the fields that a panel's options name."""
    settings = [it for override in panel["fieldConfig"]["overrides"] for it in override["properties"]]
    below = {it["value"] for it in settings if it["id"] == "custom.fillBelowTo"}
    return below | {panel["options"][it] for it in ("xField",) if it in panel.get("options", {})}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Grafana's package for data, and return the folder of packages."""
    if missing := [it for it in ("node", "npm", "prometheus") if shutil.which(it) is None]:
        pytest.skip(f"not installed (Debian: apt install nodejs npm prometheus): {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("grafana")
    folder = tmp_path_factory.mktemp("grafana")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"@grafana/data@{GRAFANA}"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install @grafana/data {GRAFANA}: {done.stderr[-500:]}")
    return folder / "node_modules"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_panel_gets_the_fields_that_it_names(packages: Path, tmp_path: Path) -> None:
    boards = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
    panels = [(name, it) for name, board in boards.items() for it in board["panels"] if it["type"] != "row"]
    with served() as port, prometheus_server(tmp_path) as url:
        assert url is not None
        (tmp_path / "targets.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"]}]))
        eventually(lambda: ask(url, {"expr": 'longview:backpressure:ratio5m{run="$run"}'}))
        time.sleep(15)  # for rates
        answers = [{it["refId"]: ask(url, it) for it in panel["targets"]} for _, panel in panels]
    asked = [
        {
            "transformations": panel.get("transformations", []),
            "matchers": [it["matcher"] for it in panel["fieldConfig"]["overrides"]],
            "frames": frames(panel, found),
        }
        for (_, panel), found in zip(panels, answers, strict=True)
    ]
    done = subprocess.run(
        ["node", Path(__file__).with_name("transform.cjs")],
        env=os.environ | {"NODE_PATH": str(packages)},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    without = set()
    for (name, panel), question, shown in zip(panels, asked, json.loads(done.stdout), strict=True):
        if not question["frames"]:
            without.add(panel["title"])
            continue
        assert named(panel) <= set(shown["names"]), (name, panel["title"], shown["names"])
        assert 0 not in shown["matched"], (name, panel["title"], shown)
        if panel["type"] in ("trend", "table"):
            assert shown["names"][0] == "T_o"
            assert not any(it.startswith(("Value", "Time")) for it in shown["names"]), (
                panel["title"],
                shown["names"],
            )
    quiet = {panel.title for panel in KUBERNETES} | {"Alerts"}
    assert not without - quiet
