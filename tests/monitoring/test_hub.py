import json
import random
import re
import socket
import time
from collections.abc import Iterator
from urllib.request import ProxyHandler, build_opener

import pytest

from longview.monitoring import hub as hub_module
from longview.monitoring.hub import MAX_REPORT_BYTES, Hub, Reporters, Totals, encode_report
from longview.monitoring.metrics import CATALOGUE, metric
from longview.monitoring.snapshot import read_metrics

STEPS = "longview_env_steps_total"
SECONDS = "longview_publish_to_use_seconds"


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


def everything(value: float = 1.0) -> Totals:
    """Make totals of every metric."""
    totals = Totals()
    for found in CATALOGUE.values():
        change = {"counter": totals.add, "gauge": totals.set, "histogram": totals.observe}[found.kind]
        for label in ("demo", "rollout"):
            change(found.name, value, **dict.fromkeys(found.labels, label))
    return totals


def test_series_do_not_grow_with_reporters_or_restarts(hub: Hub) -> None:
    port = hub.serve()
    hub.report(encode_report("actor", "actor-0", 1, everything()))
    few = series_at(port)
    for incarnation in (1, 2):
        message = encode_report("actor", "actor-0", incarnation, everything())
        for reporter in range(1000):
            hub.report(message.replace(b"actor-0", b"actor-%d" % reporter))
    started = time.perf_counter()
    assert series_at(port) == few
    assert time.perf_counter() - started < 10  # it takes a fraction of a second; see docs/performance.md
    assert hub.snapshot()[STEPS] == {("demo",): 2000, ("rollout",): 2000}


def series_at(port: int) -> list[str]:
    """Read the names and labels of all served series."""
    with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    return [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]


def test_every_series_has_the_run() -> None:
    hub = Hub("run-1")
    try:
        hub.report(encode_report("actor", "a", 1, everything()))
        names = series_at(hub.serve())
    finally:
        hub.close()
    assert len(names) > len(CATALOGUE)
    assert all(re.search(r'[{,]run="run-1"[,}]', name) for name in names)


def observed(*values: float, reporter: str = "a", incarnation: int = 1) -> bytes:
    totals = Totals()
    for value in values:
        totals.observe(SECONDS, value)
    return encode_report("actor", reporter, incarnation, totals)


def test_histograms_add_up_like_counters(hub: Hub) -> None:
    hub.report(observed(0, 0.5, 7))
    hub.report(observed(0, 0.5, 7))
    hub.report(observed(1e6, incarnation=2))
    hub.report(observed(30, 30, reporter="b"))
    found = {part: value for (part,), value in hub.snapshot()[SECONDS].items()}
    assert found["sum"] == 1e6 + 67.5
    values = (0, 0.5, 7, 1e6, 30, 30)
    bounds = [part for part in metric(SECONDS).parts if part != "sum"]
    assert [found[bound] for bound in bounds] == [sum(v <= float(bound) for v in values) for bound in bounds]
    weighted = Totals()
    weighted.observe(SECONDS, 3, count=5)
    assert (weighted.values[SECONDS][("5.0",)], weighted.values[SECONDS][("sum",)]) == (5, 15)


def test_who_reported_lately_is_alive(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.report(steps(1, "a"))
    assert hub.snapshot()["longview_actors"] == {}, "a hub that has just started cannot know"
    monkeypatch.setattr(hub_module, "ALIVE_SECONDS", 0.2)
    time.sleep(0.25)
    for reporter in ("b", "c", "b"):
        hub.report(steps(1, reporter))
    hub.report(encode_report("learner", "rank-0", 1, Totals()))
    assert hub.snapshot()["longview_actors"] == {(): 2}


def test_what_is_served_is_what_is_kept(hub: Hub) -> None:
    hub.report(steps(10))
    assert hub.served() == hub.snapshot()
    kept = hub.exchange({})
    assert hub.served()[STEPS] == {}
    hub.report(steps(12))
    hub.exchange(kept)
    assert hub.served()[STEPS][("lift",)] == 10
    assert total(hub) == 12


def test_no_counter_falls_whenever_the_hub_dies() -> None:
    """Actors report, die and come back, and the hub dies at any moment. The served sum only grows, and is
    exact in the end."""
    rng = random.Random(0)
    hub, kept = Hub(), Reporters()
    hub.exchange(kept)
    served = counted = 0.0
    actors = {name: [1, 0.0] for name in "abcde"}
    """Incarnation of each actor, and its steps since its start."""
    for _ in range(3000):
        name = rng.choice("abcde")
        match rng.choice(["step", "step", "step", "restart", "exchange", "exchange", "hub dies"]):
            case "step":
                actors[name][1] += 1
                counted += 1
                hub.report(steps(actors[name][1], name, int(actors[name][0])))
            case "restart":
                # Reports that only the hub has seen would be lost if it died too, so they are kept first.
                hub.report(steps(actors[name][1], name, int(actors[name][0])))
                kept = hub.exchange(kept)
                actors[name] = [actors[name][0] + 1, 0.0]
            case "exchange":
                kept = hub.exchange(kept)
            case "hub dies":
                hub = Hub()
                if rng.random() < 0.5:
                    hub.report(steps(actors[name][1], name, int(actors[name][0])))
                kept = hub.exchange(kept)
        now = hub.served()[STEPS].get(("lift",), 0.0)
        assert now >= served
        served = now
    for name, (incarnation, count) in actors.items():
        hub.report(steps(count, name, int(incarnation)))
    hub.exchange(hub.exchange(kept))
    assert hub.served()[STEPS][("lift",)] == counted > 1000


def test_reports_that_come_before_a_new_hub_knows_the_old_are_the_newer_ones() -> None:
    old = Hub()
    old.report(steps(10, "a"))
    old.report(steps(5, "b", longview_policy_version=7))
    kept = old.exchange({})
    new = Hub()
    new.report(steps(2, "a", incarnation=2))
    new.report(steps(1, "c"))
    new.exchange(kept)
    assert total(new) == 18
    assert new.served()[STEPS][("lift",)] == 15
    assert new.snapshot()["longview_policy_version"] == {(): 7}


def test_what_is_scraped_is_what_is_known(hub: Hub) -> None:
    totals = Totals()
    for index, found in enumerate(CATALOGUE.values()):
        labels = dict.fromkeys(found.labels, f'odd "{index}" \\ value')
        change = {"counter": totals.add, "gauge": totals.set, "histogram": totals.observe}[found.kind]
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
    with pytest.raises(ValueError, match="not negative, not -1"):
        totals.observe(SECONDS, -1)
    with pytest.raises(ValueError, match="is a gauge, not a histogram"):
        totals.observe("longview_learner_step", 1)
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
        (GOOD | {"totals": [[SECONDS, [], 1]]}, f"{SECONDS} needs a text for each of its labels .'le'"),
        (GOOD | {"totals": [[SECONDS, ["0.7"], 1]]}, f"{SECONDS} has the parts"),
        (GOOD | {"totals": [[SECONDS, ["0.5"], -1]]}, f"{SECONDS}: -1 is no value of a histogram"),
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
