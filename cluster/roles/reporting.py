"""Sends a role's running totals to the metrics hub. A run neither waits for the hub nor fails with it."""

import logging
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from longview.monitoring.hub import Totals, encode_report

log = logging.getLogger(__name__)

HUB = "hub"
"""Name under which every other role finds the metrics hub. A handle would not do: an actor whose constructor
was given a handle cannot be restarted once that handle is gone."""

HEARTBEAT_SECONDS = 7.0
"""Silence after which an actor repeats its last report. The driver asks an idle actor for a new one more
often, so that it repeats none: that would double the hub's work."""
UNDER_WAY = 4
"""Most reports of an actor that wait at the hub."""


def send(message: bytes) -> Any:
    """Send a report to the hub. A lost report does no harm, since the next one holds its totals too.

    Returns:
        Ray's reference to the call; None if there is no hub.
    """
    try:
        return ray.get_actor(HUB).report.remote(message)
    except (ValueError, RayError) as error:
        log.warning("a report did not reach the hub: %s", error)
        return None


def restarted(role: str) -> bytes | None:
    """Make the report that this Ray actor was restarted; None if it was not.

    Args:
        role: name of the actor's role, of which a run has one actor.
    """
    if not ray.get_runtime_context().was_current_actor_reconstructed:
        return None
    totals = Totals()
    totals.add("longview_actor_restarts_total", 1, role=role, cause="died")
    return encode_report(role, role, time.time_ns(), totals)


class Heartbeat:
    """Sends reports, and repeats the last one after a silence: a sign of life, and news to a restarted
    hub. Where `UNDER_WAY` reports wait at the hub, only the newest one follows, once the hub has taken one
    in: all reports of a thousand actors would fill its memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: list[Any] = []
        """Ray's references to reports that the hub may not have taken in yet."""
        self._behind = False
        """Whether the last report waits until the hub has taken one in."""
        self._last: bytes | None = None
        self._sent = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Send a report, and repeat it until the next one."""
        self._last = message
        self._deliver()
        self._sent.set()

    def _deliver(self) -> None:
        """Send the last report, unless too many wait at the hub."""
        with self._lock:
            if count := len(self._under_way):
                _, self._under_way = ray.wait(self._under_way, num_returns=count, timeout=0)
            self._behind = len(self._under_way) >= UNDER_WAY
            if not self._behind and self._last is not None and (reference := send(self._last)) is not None:
                self._under_way.append(reference)

    def _beat(self) -> None:
        while True:
            if self._behind:
                ray.wait(list(self._under_way))
            elif self._sent.wait(HEARTBEAT_SECONDS):
                self._sent.clear()
                continue
            self._deliver()
