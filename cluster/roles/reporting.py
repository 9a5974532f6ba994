"""How a role tells the metrics hub its running totals. No run ever waits for the hub, or fails with it."""

import logging
import threading
import time

import ray
from ray.exceptions import RayError

from longview.monitoring.hub import Totals, encode_report

log = logging.getLogger(__name__)

HUB = "hub"
"""Name under which every other role finds the metrics hub. Not by handle: an actor whose constructor was
given one cannot be restarted once that handle is gone."""

HEARTBEAT_SECONDS = 5.0


def send(message: bytes) -> None:
    """A report to the hub; one that is lost does no harm, since the next holds all that it did."""
    try:
        ray.get_actor(HUB).report.remote(message)
    except (ValueError, RayError) as error:
        log.warning("a report did not reach the hub: %s", error)


def restarted(role: str) -> bytes | None:
    """A Ray actor's report that it is not the first of its role; None if it is."""
    if not ray.get_runtime_context().was_current_actor_reconstructed:
        return None
    totals = Totals()
    totals.add("longview_actor_restarts_total", 1, role=role, cause="died")
    return encode_report(role, role, time.time_ns(), totals)


class Heartbeat:
    """Sends reports, and the last one again and again: it is the sign of life of an actor that waits, and
    what a hub that was restarted has yet to be told."""

    def __init__(self) -> None:
        self._last: bytes | None = None
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, message: bytes) -> None:
        """A report."""
        self._last = message
        send(message)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            if self._last is not None:
                send(self._last)
