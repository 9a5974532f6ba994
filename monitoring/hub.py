"""The metrics hub adds up the running totals of all roles and serves the sums to Prometheus.

A report holds totals since its sender started, so a lost or repeated report does no harm. A sender that
restarts counts from zero under a higher incarnation; the counts of the dead incarnation stay in the sum. The
reporter's name is no label: the number of series does not depend on the number of actors.

A restarted hub has lost its counts, and Prometheus takes everything after a fallen counter for new. Therefore
the hub serves only what the driver keeps a copy of (`Hub.exchange`). A new hub serves nothing until it has
that copy back: Prometheus sees a gap of a second, and then the counters go on.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from longview.monitoring.metrics import CATALOGUE, Metric, metric
from longview.monitoring.snapshot import Series, Snapshot

MAX_REPORT_BYTES = 1 << 18
"""Size of the largest report that the hub takes."""
MAX_TEXT = 128
"""Longest label value, role or reporter name, in characters."""

ALIVE_SECONDS = 15.0
"""A reporter that has been silent for longer is taken to be dead."""

_GROWING = [name for name, found in CATALOGUE.items() if found.kind != "gauge"]
"""Metrics that count from a reporter's start."""

Values = dict[str, Series]
"""One reporter's series by metric."""


class Totals:
    """One role's counts since it started, and the present values of its gauges."""

    def __init__(self) -> None:
        self.values: Values = {}

    def add(self, name: str, amount: float, **labels: str | int) -> None:
        """Raise a counter.

        Raises:
            ValueError: the catalogue has no such counter or other labels for it, or the amount is negative.
        """
        if not 0 <= amount < math.inf:
            raise ValueError(f"{name}: a counter grows by a finite amount, not by {amount}")
        series, key = self._find(name, "counter", labels)
        series[key] = series.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str | int) -> None:
        """Set a gauge.

        Raises:
            ValueError: the catalogue has no such gauge or other labels for it, or the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{name}: a gauge's value must be finite, not {value}")
        series, key = self._find(name, "gauge", labels)
        series[key] = float(value)

    def observe(self, name: str, value: float, count: int = 1, **labels: str | int) -> None:
        """Add a value to a histogram, `count` times.

        Raises:
            ValueError: the catalogue has no such histogram or other labels for it, or the value is negative.
        """
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: a histogram takes finite values that are not negative, not {value}")
        series, key = self._find(name, "histogram", labels)
        for part in metric(name).parts:
            amount = value if part == "sum" else value <= float(part)
            series[*key, part] = series.get((*key, part), 0.0) + count * amount

    def _find(self, name: str, kind: str, labels: Mapping[str, str | int]) -> tuple[Series, tuple[str, ...]]:
        found = metric(name)
        if found.kind != kind:
            raise ValueError(f"{name} is a {found.kind}, not a {kind}")
        if labels.keys() != set(found.labels):
            raise ValueError(f"{name} has labels {list(found.labels)}, not {list(labels)}")
        return self.values.setdefault(name, {}), tuple(str(labels[label]) for label in found.labels)


def encode_report(role: str, reporter: str, incarnation: int, totals: Totals) -> bytes:
    """Encode a role's totals as a message to the hub.

    Args:
        role: what the sender does, such as `actor`.
        reporter: name of the sender within its role; stays the same when it restarts.
        incarnation: higher after every restart, such as the time of the start.
        totals: the sender's counts since that start.
    """
    rows = [
        [name, list(labels), value]
        for name, series in totals.values.items()
        for labels, value in series.items()
    ]
    message = {"role": role, "reporter": reporter, "incarnation": incarnation, "totals": rows}
    return json.dumps(message).encode()


@dataclass
class Reporter:
    """The newest report of one reporter, and the counts of its dead incarnations."""

    incarnation: int
    """The incarnation that sent the newest report."""
    totals: Values = field(default_factory=dict)
    """Its newest totals."""
    folded: Values = field(default_factory=dict)
    """Counters of all dead incarnations together."""

    def take_in(self, incarnation: int, totals: Values) -> bool:
        """Replace the newest report by this one; False if this one is older."""
        if incarnation < self.incarnation:
            return False
        if incarnation > self.incarnation:
            self.folded = {name: _counted(self, name) for name in _GROWING}
            self.incarnation, self.totals = incarnation, {}
        if _is_older(totals, self.totals):
            return False
        self.totals = totals
        return True


Reporters = dict[tuple[str, str], Reporter]
"""Reporters by role and name, in the order of their newest reports: `merge="last"` takes the last one."""


class Hub:
    """The sums of all reporters' totals. Thread-safe."""

    def __init__(self, run: str = "") -> None:
        """
        Args:
            run: name of the run, a label of every series that is served.
        """
        self.run = run
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._reporters: Reporters = {}
        self._heard: dict[tuple[str, str], float] = {}
        """Monotonic time of each reporter's last message."""
        self._kept: Reporters | None = None
        """The reports that are served; None until the driver keeps a copy."""
        self._server: tuple[Any, threading.Thread] | None = None

    def report(self, message: bytes) -> None:
        """Take in a message of `encode_report`; ignore it if a newer one has come before.

        Raises:
            ValueError: the message is no report, too large, or names a metric or labels that do not exist.
        """
        who, incarnation, totals = _decode_report(message)
        with self._lock:
            self._heard[who] = time.monotonic()
            self._take_in(who, incarnation, totals)

    def _take_in(self, who: tuple[str, str], incarnation: int, totals: Values) -> None:
        known = self._reporters.get(who, Reporter(incarnation))
        if known.take_in(incarnation, totals):
            self._reporters.pop(who, None)
            self._reporters[who] = known

    def exchange(self, kept: Reporters) -> Reporters:
        """Serve the reports that the caller keeps a copy of, and return the reports to keep next.

        Args:
            kept: return value of the last call, to this hub or to the one that died; empty at first. A new
                hub continues from it: the reports that it has received itself are newer.
        """
        with self._lock:
            if self._kept is None:
                early = self._reporters
                self._reporters = {who: replace(known) for who, known in kept.items()}
                for who, known in early.items():
                    if who in kept:
                        self._take_in(who, known.incarnation, known.totals)
                    else:
                        self._reporters[who] = known
            self._kept = kept
            return {who: replace(known) for who, known in self._reporters.items()}

    def snapshot(self) -> Snapshot:
        """Merge all reports received so far."""
        with self._lock:
            return self._merged(self._reporters)

    def served(self) -> Snapshot:
        """Merge the reports that are served: those the driver keeps, or all while nobody keeps any."""
        with self._lock:
            return self._merged(self._reporters if self._kept is None else self._kept)

    def _merged(self, reporters: Reporters) -> Snapshot:
        snapshot = Snapshot({name: _merge(found, reporters.values()) for name, found in CATALOGUE.items()})
        now = time.monotonic()
        # A hub that has just started cannot know which reporters are dead.
        if now - self._started > ALIVE_SECONDS:
            alive = [role for (role, _), heard in self._heard.items() if now - heard <= ALIVE_SECONDS]
            snapshot["longview_actors"] = {(): alive.count("actor")}
        return snapshot

    def serve(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Serve /metrics in a background thread until `close`.

        Args:
            port: 0 chooses a free one.
            host: the address to listen on.

        Returns:
            The port that is served.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        registry = CollectorRegistry()
        registry.register(_HubCollector(self))
        try:
            self._server = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            reason = f"cannot serve metrics on {host}:{port} ({error.strerror}); choose another port, or 0"
            raise OSError(error.errno, reason) from error
        return int(self._server[0].server_port)

    def close(self) -> None:
        """Stop serving."""
        if self._server:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None


class _HubCollector(Collector):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Family]:
        run = self._hub.run
        for name, series in self._hub.served().items():
            found = CATALOGUE[name]
            text, names = f"{found.help} ({found.unit}).", ("run", *found.labels)
            if found.kind == "histogram":
                histogram = HistogramMetricFamily(name, text, labels=names)
                for labels in dict.fromkeys(key[:-1] for key in series):
                    *buckets, total = ((part, series[*labels, part]) for part in found.parts)
                    histogram.add_metric((run, *labels), buckets, total[1])
                yield histogram
                continue
            family = (CounterMetricFamily if found.kind == "counter" else GaugeMetricFamily)(
                name, text, labels=names
            )
            for labels, value in series.items():
                family.add_metric((run, *labels), value)
            yield family


def _decode_report(message: bytes) -> tuple[tuple[str, str], int, Values]:
    if len(message) > MAX_REPORT_BYTES:
        raise ValueError(f"report of {len(message)} bytes: the limit is {MAX_REPORT_BYTES}")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"report is not JSON: {error}") from error
    match fields:
        case {
            "role": str(role),
            "reporter": str(reporter),
            "incarnation": int(incarnation),
            "totals": list(rows),
            **others,
        } if not others and _is_text(role) and _is_text(reporter):
            totals: Values = {}
            for row in rows:
                name, labels, value = _decode_row(row)
                totals.setdefault(name, {})[labels] = value
            return (role, reporter), incarnation, totals
    raise ValueError("report must hold role, reporter, incarnation and totals, and nothing else")


def _decode_row(row: object) -> tuple[str, tuple[str, ...], float]:
    match row:
        case [str(name), list(labels), int(value) | float(value)]:
            found = metric(name)
            if len(labels) != len(found.key) or not all(map(_is_text, labels)):
                raise ValueError(f"{name} needs a text for each of its labels {found.key}, not {labels}")
            if found.parts and labels[-1] not in found.parts:
                raise ValueError(f"{name} has the parts {found.parts}, not {labels[-1]}")
            if not abs(value) <= sys.float_info.max or (found.kind != "gauge" and value < 0):
                raise ValueError(f"{name}: {value} is no value of a {found.kind}")
            return name, tuple(labels), float(value)
    raise ValueError(f"report's row must be [name, label values, number], not {str(row)[:MAX_TEXT]}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _is_older(totals: Values, known: Values) -> bool:
    """Whether a report was overtaken: counters only grow, so one that is lower is older."""
    return any(
        totals.get(name, {}).get(labels, 0.0) < value
        for name, series in known.items()
        if CATALOGUE[name].kind != "gauge"
        for labels, value in series.items()
    )


def _counted(reporter: Reporter, name: str) -> Series:
    """Sum one counter or histogram of one reporter over all its incarnations."""
    total = dict(reporter.folded.get(name, {}))
    for labels, value in reporter.totals.get(name, {}).items():
        total[labels] = total.get(labels, 0.0) + value
    return total


def _merge(found: Metric, reporters: Iterable[Reporter]) -> Series:
    values: dict[tuple[str, ...], list[float]] = {}
    for reporter in reporters:
        gauge = found.kind == "gauge"
        series = reporter.totals.get(found.name, {}) if gauge else _counted(reporter, found.name)
        for labels, value in series.items():
            values.setdefault(labels, []).append(value)
    return {labels: _MERGES[found.merge](merged) for labels, merged in values.items()}


_MERGES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
}
