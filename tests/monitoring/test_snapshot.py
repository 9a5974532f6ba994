"""Sums and rates of what a hub serves."""

import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.snapshot import Snapshot, rate, read_metrics

EPISODES, STALENESS = "longview_episodes_total", "longview_staleness_steps"


def snapshot(count: int) -> Snapshot:
    """A hub's snapshot, in which every counter is a multiple of `count`."""
    hub, totals = Hub(), Totals()
    for index, (source, outcome) in enumerate(
        (("demo", "success"), ("correction", "success"), ("correction", "wrong"))
    ):
        totals.add(EPISODES, (index + 1) * count, task="lift", source=source, outcome=outcome)
    totals.observe(STALENESS, 70, count, source="correction")
    totals.set("longview_loss", 0.5, context_length=1)
    totals.set("longview_loss", 0.25, context_length=64)
    hub.report(encode_report("actor", "actor-0", 1, totals))
    return hub.snapshot()


def test_a_total_is_the_sum_over_the_labels_that_are_not_given() -> None:
    metrics = snapshot(10)
    assert metrics.total(EPISODES) == 60
    assert metrics.total(EPISODES, source="correction") == 50
    assert metrics.total(EPISODES, source="correction", outcome="wrong") == 30
    assert metrics.total(EPISODES, source="rollout") == 0
    assert metrics.total("longview_loss", context_length=64) == 0.25
    assert metrics.total("longview_errors_total") == Snapshot().total(EPISODES) == 0


def test_a_histogram_is_summed_by_its_parts() -> None:
    metrics = snapshot(10)
    parts = {part: metrics.total(STALENESS, le=part) for part in ("50.0", "100.0", "+Inf", "sum")}
    assert parts == {"50.0": 0, "100.0": 10, "+Inf": 10, "sum": 700}


def test_values_are_told_apart_by_one_label() -> None:
    metrics = snapshot(10)
    assert metrics.by(EPISODES, "source") == {"demo": 10, "correction": 50}
    assert metrics.by(EPISODES, "outcome") == {"success": 30, "wrong": 30}
    assert metrics.by("longview_loss", "context_length") == {"1": 0.5, "64": 0.25}
    assert Snapshot().by(EPISODES, "source") == {}


def test_what_the_catalogue_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has labels \['task', 'source', 'outcome'\], not sauce"):
        snapshot(1).total(EPISODES, sauce="demo")
    with pytest.raises(ValueError, match="unknown metric 'longview_losses'; did you mean longview_loss"):
        snapshot(1).by("longview_losses", "context_length")


def test_a_rate_is_the_growth_from_the_first_look_to_the_last() -> None:
    looks = [(100.0, snapshot(0)), (101.0, snapshot(30)), (105.0, snapshot(20)), (110.0, snapshot(40))]
    assert rate(looks[:2], EPISODES) == 180
    assert rate(looks[:2], EPISODES, source="demo") == 30
    assert rate(looks[:2], STALENESS, le="sum") == 70 * 30
    # A restarted hub had lost ten of each for a while: 30 more, then 20 more, within 10 s.
    assert rate(looks, EPISODES, source="demo") == 5
    assert rate(looks[:1], EPISODES) == rate([], EPISODES) == 0


def test_a_snapshot_travels_between_processes_as_one() -> None:
    there = pickle.loads(pickle.dumps(snapshot(10)))
    assert there == snapshot(10)
    assert there.total(EPISODES) == 60


def test_another_server_is_no_hub() -> None:
    class Greeter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(OSError, match="no metrics can be read from http"):
            read_metrics(f"http://127.0.0.1:{server.server_port}/metrics")
        thread.join()
