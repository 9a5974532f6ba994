"""What a Prometheus answers to the dashboards' queries, as the data frames that Grafana makes of it."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from longview.cluster.run.services import prometheus_server
from longview.monitoring.dashboards import FOLDER
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.metrics import CATALOGUE
from tests.k8s.conftest import eventually

RUN, LENGTHS = "test", ("1", "8", "64")
LABELS = {"task": "return_point", "source": "demo", "part": "simulator"}
"""Values of the labels by which panels choose series."""
ENDS = {"lower": 0.3, "upper": 0.7}
"""Ends of every interval, by the end of the metric's name."""


def boards() -> dict[str, Any]:
    """Return each dashboard by the name of its file."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


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
                made.set(name, ENDS.get(name.rpartition("_")[2], 0.5), **labels)
            else:
                made.observe(name, metric.buckets[1], count, **labels)
    return made


@contextmanager
def recorded(folder: Path) -> Iterator[str]:
    """Run a Prometheus that has recorded every metric of the catalogue, counters growing; yields its URL."""
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
        with prometheus_server(folder) as url:
            assert url is not None
            (folder / "targets.json").write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"]}]))
            often = {"expr": 'count_over_time(longview:backpressure:ratio5m{run="$run"}[1m]) >= 8'}
            eventually(lambda: series_of(looked_at(url), often))  # rates need several reports
            yield url
    finally:
        ended.set()
        thread.join()
        hub.close()


@dataclass(frozen=True)
class View:
    """What a person looks at: a run, at one context length where a panel shows one, for some time."""

    url: str
    """Address of the Prometheus."""
    run: str
    context_length: str
    end: float
    """In seconds since 1970."""
    seconds: float


def looked_at(url: str) -> View:
    """Return a view of the last half minute of what `recorded` records."""
    return View(url, RUN, LENGTHS[1], time.time(), 30)


def series_of(view: View, target: Any) -> list[Any]:
    """Ask Prometheus what Grafana asks for a panel's query `target`; return the series."""
    expression = target["expr"]
    values = {
        "run": view.run,
        "task": ".+",
        "context_length": view.context_length,
        "__range": f"{round(max(view.seconds, 900))}s",
        "__rate_interval": "60s",
    }
    for name, value in values.items():
        expression = re.sub(rf"\$({name}\b|{{{name}}})", value, expression)
    path, asked = "query", {"query": expression, "time": view.end}
    if target.get("range"):
        path, step = "query_range", max(view.seconds / 200, 2)
        asked = {"query": expression, "start": view.end - view.seconds, "end": view.end, "step": step}
    with build_opener(ProxyHandler({})).open(
        f"{view.url}/api/v1/{path}?{urlencode(asked)}", timeout=10
    ) as answer:
        series: list[Any] = json.load(answer)["data"]["result"]
    return series


def frames(view: View, panel: Any) -> list[Any]:
    """Return the data frames that Grafana's data source for Prometheus makes of a panel's answers.

    A table is one frame for a query, with a field for each label. Otherwise each series is a frame, called as
    the query's legend says.
    """
    made = []
    answers = [(target, series_of(view, target)) for target in panel.get("targets", [])]
    several = len([series for _, series in answers if series]) > 1
    for target, series in answers:
        letter = target["refId"]
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
