"""The metrics hub as a Ray actor."""

import time
from dataclasses import dataclass

import ray

from longview.cluster.roles.reporting import restarted
from longview.monitoring.hub import Hub, Reporters
from longview.monitoring.snapshot import Snapshot


@dataclass(frozen=True)
class Answer:
    """The hub's answer in an exchange with the driver."""

    url: str
    """URL of /metrics."""
    snapshot: Snapshot
    """Snapshot of all reports."""
    number: int
    """Number of the reports for the driver to keep next."""


class MetricsHub:
    """The metrics hub in a process of its own."""

    def __init__(self, run: str, host: str, port: int) -> None:
        """
        Args:
            run: name of the run, a label of every series.
            host: address to listen on.
            port: port to listen on; 0 chooses a free one.
        """
        self._hub = Hub(run)
        self._host, self._port = host, port
        self._url = ""
        self._number, self._handed_out = 0, Reporters()
        """Number of the reports that were last handed out to keep, and the reports; 0: none were."""
        if (message := restarted("hub")) is not None:
            self._hub.report(message)

    def report(self, message: bytes) -> None:
        """Take in a message of `encode_report`."""
        self._hub.report(message)

    # Two objects, so that the driver need not fetch the second, which is large where a run has many actors.
    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    def exchange(self, number: int, kept: Reporters | None = None) -> tuple[Answer | None, Reporters]:
        """Serve the reports that the driver keeps; see `Hub.exchange`.

        Args:
            number: number of the reports that the driver keeps; 0 if it keeps none.
            kept: the reports themselves, for a hub that has restarted since it handed them out.

        Returns:
            The answer, and the reports for the driver to keep next. The answer is None if this hub does not
            know the reports of this number, and was not given them.
        """
        if kept is None and number != self._number:
            return None, {}
        self._handed_out = self._hub.exchange(self._handed_out if kept is None else kept)
        self._number = time.time_ns()
        if not self._url:
            # Served only now: a restarted hub without counts would look to Prometheus like counters at 0.
            port = self._hub.serve(self._port, self._host)
            anywhere = self._host in ("0.0.0.0", "::")
            self._url = f"http://{ray.util.get_node_ip_address() if anywhere else self._host}:{port}/metrics"
        return Answer(self._url, self._hub.snapshot(), self._number), self._handed_out
