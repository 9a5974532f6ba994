"""Reports of the driver to the metrics hub. A run neither waits for the hub nor fails with it."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import GetTimeoutError, RayError

from longview.actors.worker import Order, Result
from longview.cluster.driver.totals import totals_of
from longview.cluster.run.folder import write_atomically
from longview.cluster.run.progress import RunProgress
from longview.monitoring.hub import Reporters, Totals, encode_report
from longview.monitoring.snapshot import Snapshot
from longview.replay.errors import StoreError
from longview.replay.store import EpisodeStore

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
"""Time between two reports."""
CLOSE_SECONDS = 5.0
"""Longest wait for an exchange with the hub at the end of a run."""
CLOSE_TURNS = 4
"""Most exchanges at the end of a run: the one under way, one that a restarted hub needs, one with the last
numbers, and one that has them served."""
SCRAPE_SECONDS = 2.0
"""Time between two scrapes, as in monitoring/prometheus.yml and k8s/base/monitoring.yaml."""


@contextmanager
def reporting(hub: Any, store: EpisodeStore, progress: RunProgress) -> "Iterator[DriverReporter]":
    """Report until the context ends. If the run has finished or was stopped, the last report says so; a run
    that failed is missed by its alerts until it is resumed.

    Args:
        hub: handle on the metrics hub.
        store: the run's store, whose counts are reported.
        progress: the run's progress, which is reported.
    """
    reporter = DriverReporter(hub, store, progress)
    try:
        yield reporter
    except KeyboardInterrupt:
        with suppress(StoreError):
            reporter.close()
        raise
    reporter.close()


class DriverReporter:
    """Reports the driver's own numbers, fetches everybody's, and keeps the copy that the hub serves."""

    def __init__(self, hub: Any, store: EpisodeStore, progress: RunProgress) -> None:
        """
        Args:
            hub: handle on the metrics hub.
            store: the run's store, whose counts are reported.
            progress: the run's progress, which is reported.
        """
        self._hub, self._store, self._progress = hub, store, progress
        self._incarnation = time.time_ns()
        self._asked_at = 0.0
        self._reply: Any = None
        self._url = ""
        self._snapshot = Snapshot()
        self._following: Any = None
        """Ray's reference to the reports to keep after the exchange under way."""
        self._number, self._kept = 0, ray.put(Reporters())
        """Number of the reports that the driver keeps for the hub, and Ray's reference to them."""
        self._counted = Totals()
        self._counted.add("longview_errors_total", 0, role="hub")
        self._ended = False

    def arrived(self, order: Order, result: Result, newest: int | None) -> None:
        """Count how old the policy was that acted in newly collected episodes.

        Args:
            order: the finished order; evaluations and demonstrations do not count.
            result: its result.
            newest: the newest policy version.
        """
        episodes = sum(result.outcomes.values())
        if order.version is not None and order.purpose != "evaluation" and episodes:
            behind = max(0, (newest or 0) - order.version)
            self._counted.observe("longview_staleness_steps", behind, episodes, source=order.purpose)

    def report(self) -> Snapshot:
        """Report if it is time to, and return the hub's latest snapshot: about a second old, or older while
        the hub is away."""
        if self._reply is None and time.monotonic() - self._asked_at > REPORT_SECONDS:
            self._asked_at = time.monotonic()
            self._ask()
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            self._take()
        return self._snapshot

    def close(self) -> None:
        """Report that the run has ended, and take in the last numbers. Wait until they are served, and until
        they are scraped by the run's own Prometheus, or by another one, which needs to know the port."""
        self._ended = True
        with suppress(GetTimeoutError):
            for _ in range(CLOSE_TURNS):
                if self._reply is None:
                    self._ask()
                self._take(timeout=CLOSE_SECONDS)
            self._progress.update(self._snapshot)
            if self._progress.prometheus is not None or self._progress.config.monitoring.port:
                time.sleep(1.25 * SCRAPE_SECONDS)

    def _ask(self) -> None:
        self._hub.report.remote(encode_report("driver", "driver", self._incarnation, self._totals()))
        self._reply, self._following = self._hub.exchange.remote(self._number)

    def _take(self, timeout: float | None = None) -> None:
        try:
            answer = ray.get(self._reply, timeout=timeout)
        except GetTimeoutError:
            raise
        except RayError as error:
            log.warning("the metrics hub fails: %s", error)
            self._counted.add("longview_errors_total", 1, role="hub")
        else:
            if answer is None:  # the hub has restarted, and needs the reports back
                kept = ray.get(self._kept)
                self._reply, self._following = self._hub.exchange.remote(self._number, kept)
                return
            self._snapshot, self._number, self._kept = answer.snapshot, answer.number, self._following
            self._found(answer.url)
        self._reply = None

    def _found(self, url: str) -> None:
        """Write down where the hub is; a restarted hub may have another port."""
        if url != self._url:
            self._url, run = url, self._progress.run
            run.write_state(metrics=url)
            if self._progress.prometheus is not None:
                targets = json.dumps([{"targets": [urlsplit(url).netloc]}])
                try:
                    write_atomically(run.path / "prometheus" / "targets.json", targets)
                except OSError as error:
                    log.warning("Prometheus is not told where the hub is: %s", error)

    def _totals(self) -> Totals:
        totals = totals_of(self._progress, self._store.stats(), ended=self._ended)
        totals.values.update(self._counted.values)
        if self._progress.config.rollout_actors:
            totals.set("longview_actors_target", self._progress.actors)
        return totals
