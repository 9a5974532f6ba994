"""Reports of the driver to a real metrics hub."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray

from longview.actors.task import load_task
from longview.actors.worker import Order, Result
from longview.cluster.driver import reports
from longview.cluster.driver.reports import DriverReporter
from longview.cluster.roles import reporting
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.ray import ALWAYS_BACK, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.run.config import read_config
from longview.cluster.run.folder import Run
from longview.cluster.run.progress import RunProgress
from longview.cluster.run.services import redis_server
from longview.monitoring.snapshot import Snapshot, read_metrics
from longview.monitoring.success import Evaluation
from longview.replay.store import EpisodeStore


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class LateHub:
    """A hub that takes in nothing until a file is there."""

    def __init__(self) -> None:
        self._reports: list[bytes] = []

    def wait(self, file: Path) -> None:
        while not file.exists():
            time.sleep(0.05)

    def report(self, message: bytes) -> None:
        self._reports.append(message)

    def reports(self) -> list[bytes]:
        return self._reports


class Reporting:
    """An actor that reports often, and never repeats a report because of a silence."""

    def __init__(self) -> None:
        reporting.HEARTBEAT_SECONDS = 1e6
        self._heartbeat = reporting.Heartbeat()

    def report(self, reports: int) -> None:
        for number in range(reports):
            self._heartbeat.send(b"%d" % number)


def test_a_hub_that_lags_gets_the_newest_report_alone(cluster: None, tmp_path: Path) -> None:
    hub = start(LateHub, name=HUB, num_cpus=0)
    assert ray.get(hub.reports.remote()) == []  # it is there
    waiting = hub.wait.remote(tmp_path / "go on")
    actor = start(Reporting, num_cpus=0)
    ray.get(actor.report.remote(1000))
    (tmp_path / "go on").touch()
    ray.get(waiting)
    deadline = time.monotonic() + 60
    try:
        while b"999" not in (reports := ray.get(hub.reports.remote())):
            assert time.monotonic() < deadline, reports
            time.sleep(0.05)
        assert reports == [b"0", b"1", b"2", b"3", b"999"]
    finally:
        for role in (actor, hub):
            ray.kill(role)


def evaluation(version: int, length: int, successes: int, completed: int) -> Evaluation:
    outcomes = {"success": successes, "wrong": completed - successes, "failure": 20 - completed}
    return Evaluation(version, length, 20).plus(outcomes, 10)


def test_the_driver_tells_what_it_knows_and_keeps_what_the_hub_serves(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "CLOSE_SECONDS", 60.0)
    config, task = read_config(None, ["actors.count=3"]), load_task("return_point")
    run = Run(tmp_path / "told")
    run.path.mkdir()
    progress = RunProgress(run, config, task.spec, version=300)
    progress.history = [
        evaluation(100, 1, 10, 20),
        evaluation(100, 8, 18, 20),
        evaluation(200, 8, 15, 20),
        evaluation(300, 1, 0, 0),
        evaluation(300, 8, 2, 16),
    ]
    progress.restarts = {"actor": Counter(worn=2, died=1), "learner": Counter()}
    with redis_server(tmp_path / "redis") as url:
        store = EpisodeStore.connect(url, "told", config.replay)
        hub = start(MetricsHub, "told", "127.0.0.1", 0, **ALWAYS_BACK)
        reporter = DriverReporter(hub, store, progress)
        reporter.arrived(Order("correction", 0, 4, 8, version=200), Result({"success": 3}, 10), 300)
        reporter.arrived(Order("evaluation", 0, 4, 8, version=100), Result({"success": 4}, 10), 300)
        reporter.arrived(Order("demo", 0, 4), Result({"success": 4}, 10), 300)
        reporter.close()
        assert progress.metrics["longview_evaluation_version"][()] == 300, "the last numbers are taken in"
        served = read_metrics(run.state()["metrics"])

        # Another process goes on with the hub, and no number has changed.
        ray.kill(hub, no_restart=False)
        with suppress(OSError):
            while read_metrics(run.state()["metrics"]):
                pass  # it is not dead yet
        reporter.close()
        again = read_metrics(run.state()["metrics"])
        store.close()

    check(served)
    assert again["longview_actor_restarts_total"]["hub", "died"] == 1
    unchanged = served | {"longview_actor_restarts_total": again["longview_actor_restarts_total"]}
    assert again == unchanged


def check(served: Snapshot) -> None:
    newest = ("return_point", "8")
    assert served["longview_success_ratio"][newest] == 0.1
    assert served["longview_success_ratio_lower"][newest] == pytest.approx(0.0279, abs=1e-4)
    assert served["longview_success_ratio_upper"][newest] == pytest.approx(0.3010, abs=1e-4)
    assert served["longview_completion_ratio"][newest] == 0.8
    assert served["longview_contextual_success_ratio"][newest] == 0.125
    assert served["longview_success_drop_ratio"] == {newest: 0, ("return_point", "1"): 0}
    assert served["longview_phase"][()] == 0, "the run has ended"
    assert served["longview_evaluation_version"][()] == 300
    # Without completed episodes there is no contextual success.
    assert served["longview_completion_ratio"]["return_point", "1"] == 0
    assert served["longview_contextual_success_ratio"].keys() == {newest}
    staleness = served["longview_staleness_steps"]
    assert {source for source, _ in staleness} == {"correction"}
    assert [staleness["correction", bound] for bound in ("50.0", "100.0", "sum")] == [0, 3, 300]
    restarts = served["longview_actor_restarts_total"]
    assert (restarts["actor", "worn"], restarts["actor", "died"], restarts["learner", "died"]) == (2, 1, 0)
    assert served["longview_actors_target"][()] == 3
    assert served["longview_store_bytes"]["demo",] == 0


def test_a_hub_that_cannot_serve_is_no_reason_to_stop(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reports, "CLOSE_SECONDS", 60.0)
    config = read_config(None, [])
    run = Run(tmp_path / "unheard")
    run.path.mkdir()
    progress = RunProgress(run, config, load_task("return_point").spec)
    with redis_server(tmp_path / "redis") as url:
        store = EpisodeStore.connect(url, "unheard", config.replay)
        hub = start(MetricsHub, "unheard", "192.0.2.1", 0, **ALWAYS_BACK)
        reporter = DriverReporter(hub, store, progress)
        reporter.close()
        assert reporter.report() == {}
        store.close()
    assert "the metrics hub fails" in caplog.text
    assert "cannot serve metrics on 192.0.2.1:0" in caplog.text
    assert "metrics" not in run.state()
