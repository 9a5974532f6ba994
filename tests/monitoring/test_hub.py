import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import ProxyHandler, build_opener

import pytest

from monitoring.hub import MAX_REPORT_BYTES, Hub, Totals, encode_report, read_metrics
from monitoring.metrics import CATALOGUE

STEPS = "longview_env_steps_total"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def steps(count: float, reporter: str = "a", incarnation: int = 1, **gauges: float) -> bytes:
    totals = Totals()
    totals.add(STEPS, count, task="lift")
    for name, value in gauges.items():
        totals.set(name, value)
    return encode_report("actor", reporter, incarnation, totals)


def total(hub: Hub) -> float:
    return hub.snapshot()[STEPS][("lift",)]


def test_totals_add_up_within_a_role() -> None:
    totals = Totals()
    totals.add("longview_episodes_total", 2, task="lift", source="demo", outcome="success")
    totals.add("longview_episodes_total", 1, outcome="success", source="demo", task="lift")
    totals.set("longview_loss", 0.5, context_length=8)
    totals.set("longview_loss", 0.25, context_length=8)
    assert totals.values == {
        "longview_episodes_total": {("lift", "demo", "success"): 3.0},
        "longview_loss": {("8",): 0.25},
    }


def test_counters_add_up_over_reporters_and_repeats_do_no_harm(hub: Hub) -> None:
    for _ in range(3):
        hub.report(steps(10, "a"))
        hub.report(steps(5, "b"))
    assert total(hub) == 15
    hub.report(steps(12, "a"))
    assert total(hub) == 17


def test_a_restart_continues_the_sum(hub: Hub) -> None:
    hub.report(steps(10, incarnation=1))
    hub.report(steps(3, incarnation=2))
    hub.report(steps(4, incarnation=7))
    assert total(hub) == 17
    hub.report(steps(6, incarnation=7))
    assert total(hub) == 19


def test_reports_that_were_overtaken_are_ignored_gauges_included(hub: Hub) -> None:
    hub.report(steps(10, longview_policy_version=50))
    hub.report(steps(9, longview_policy_version=40))
    assert total(hub) == 10
    assert hub.snapshot()["longview_policy_version"][()] == 50
    hub.report(steps(2, incarnation=2))
    hub.report(steps(11, incarnation=1))
    assert total(hub) == 12


def test_gauges_merge_as_the_catalogue_says(hub: Hub) -> None:
    for reporter, value in (("a", 4), ("b", 0), ("c", 2)):
        hub.report(
            steps(
                1,
                reporter,
                longview_staleness_max=value,
                longview_staleness_mean=value,
                longview_evaluation_version=value,
            )
        )
    hub.report(steps(2, "a", longview_staleness_max=3, longview_staleness_mean=4))
    snapshot = hub.snapshot()
    assert snapshot["longview_staleness_max"][()] == 3
    assert snapshot["longview_staleness_mean"][()] == 2
    assert snapshot["longview_evaluation_version"][()] == 2


def test_a_restart_forgets_the_gauges_of_the_dead(hub: Hub) -> None:
    hub.report(steps(1, longview_staleness_max=9))
    hub.report(steps(1, incarnation=2))
    assert hub.snapshot()["longview_staleness_max"] == {}


def test_series_do_not_grow_with_reporters_or_restarts(hub: Hub) -> None:
    port = hub.serve()
    hub.report(steps(1, "actor-0", longview_staleness_max=1))
    few = _served_lines(port)
    for reporter in range(1000):
        for incarnation in (1, 2):
            hub.report(steps(1, f"actor-{reporter}", incarnation, longview_staleness_max=1))
    assert _served_lines(port) == few
    assert total(hub) == 2000


def _served_lines(port: int) -> int:
    with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/metrics") as response:
        return len(response.read().splitlines())


def test_what_is_scraped_is_what_is_known(hub: Hub) -> None:
    totals = Totals()
    for index, found in enumerate(CATALOGUE.values()):
        labels = dict.fromkeys(found.labels, f'odd "{index}" \\ value')
        change = totals.add if found.kind == "counter" else totals.set
        change(found.name, index + 1 / 3, **labels)
    hub.report(encode_report("actor", "a", 1, totals))
    port = hub.serve()
    scraped = read_metrics(f"http://127.0.0.1:{port}/metrics")
    assert scraped == hub.snapshot() == totals.values


def test_an_empty_hub_serves_an_empty_snapshot_of_every_metric(hub: Hub) -> None:
    port = hub.serve()
    assert read_metrics(f"http://127.0.0.1:{port}/metrics") == {name: {} for name in CATALOGUE}


def test_a_port_in_use_is_named(hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot serve metrics on 127\.0\.0\.1:{port} \(.*in use"):
            hub.serve(port)


def test_closing_frees_the_port(hub: Hub) -> None:
    port = hub.serve()
    hub.close()
    with pytest.raises(OSError, match="no metrics can be read"):
        read_metrics(f"http://127.0.0.1:{port}/metrics")
    assert hub.serve(port) == port


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


def test_totals_refuse_what_the_catalogue_does_not_have() -> None:
    totals = Totals()
    with pytest.raises(
        ValueError, match="unknown metric 'longview_env_step_total'; did you mean longview_env_s"
    ):
        totals.add("longview_env_step_total", 1, task="lift")
    with pytest.raises(ValueError, match=r"has labels \['task'\], not \['tusk'\]"):
        totals.add(STEPS, 1, tusk="lift")
    with pytest.raises(ValueError, match="is a counter, not a gauge"):
        totals.set(STEPS, 1, task="lift")
    with pytest.raises(ValueError, match="not by -1"):
        totals.add(STEPS, -1, task="lift")
    with pytest.raises(ValueError, match="must be finite, not nan"):
        totals.set("longview_learner_step", float("nan"))
    assert totals.values == {}


GOOD = {"role": "actor", "reporter": "a", "incarnation": 1, "totals": [[STEPS, ["lift"], 1.0]]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 20_000, "not JSON"),
        (b" " * (MAX_REPORT_BYTES + 1), f"limit is {MAX_REPORT_BYTES}"),
        ([], "must hold role"),
        (GOOD | {"role": ""}, "must hold role"),
        (GOOD | {"reporter": "x" * 200}, "must hold role"),
        (GOOD | {"incarnation": "1"}, "must hold role"),
        (GOOD | {"extra": 1}, "must hold role"),
        (GOOD | {"totals": [1]}, "must be .name, label values, number., not 1"),
        (GOOD | {"totals": [["longview_nothing", [], 1]]}, "unknown metric 'longview_nothing'"),
        (GOOD | {"totals": [[STEPS, [], 1]]}, f"{STEPS} needs a text for each"),
        (GOOD | {"totals": [[STEPS, [8], 1]]}, f"{STEPS} needs a text for each"),
        (GOOD | {"totals": [[STEPS, ["x" * 200], 1]]}, f"{STEPS} needs a text for each"),
        (GOOD | {"totals": [[STEPS, ["\ud800"], 1]]}, f"{STEPS} needs a text for each"),
        (GOOD | {"totals": [[STEPS, ["lift"], -1]]}, f"{STEPS}: -1 is no value of a counter"),
        (GOOD | {"totals": [[STEPS, ["lift"], 10**400]]}, "is no value of a counter"),
        (GOOD | {"totals": [[STEPS, ["lift"], float("nan")]]}, "nan is no value of a counter"),
    ],
)
def test_what_is_no_report_is_refused_and_changes_nothing(hub: Hub, message: object, expected: str) -> None:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    with pytest.raises(ValueError, match=expected):
        hub.report(data)
    assert not any(hub.snapshot().values())


def test_the_good_report_is_good(hub: Hub) -> None:
    hub.report(json.dumps(GOOD).encode())
    assert total(hub) == 1
