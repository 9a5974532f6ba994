"""Sends a role's running totals to the metrics hub. A run neither waits for the hub nor fails with it."""

import logging
import threading
import time

import ray
from ray.exceptions import RayError

from longview.monitoring.hub import Totals, encode_report

log = logging.getLogger(__name__)

HUB = "hub"
"""Name under which every other role finds the metrics hub. A handle would not do: an actor whose constructor
was given a handle cannot be restarted once that handle is gone."""

HEARTBEAT_SECONDS = 5.0
"""Time after which an actor repeats its last report."""


def send(message: bytes) -> None:
    """Send a report to the hub. A lost report does no harm, since the next one holds its totals too."""
    try:
        ray.get_actor(HUB).report.remote(message)
    except (ValueError, RayError) as error:
        log.warning("a report did not reach the hub: %s", error)


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
    """Sends reports, and repeats the last one: a sign of life while the actor waits, and news to a restarted
    hub."""

    def __init__(self) -> None:
        self._last: bytes | None = None
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Send a report, and repeat it until the next one."""
        self._last = message
        send(message)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            if self._last is not None:
                send(self._last)
