"""The metrics hub as a Ray actor."""

import ray

from longview.cluster.roles.reporting import restarted
from longview.monitoring.hub import Hub, Reporters
from longview.monitoring.snapshot import Snapshot


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
        if (message := restarted("hub")) is not None:
            self._hub.report(message)

    def report(self, message: bytes) -> None:
        """Take in a message of `encode_report`."""
        self._hub.report(message)

    def exchange(self, kept: Reporters) -> tuple[str, Snapshot, Reporters]:
        """Serve the reports that the driver keeps a copy of; see `Hub.exchange`.

        Returns:
            The URL of /metrics, a snapshot of all reports, and the reports for the driver to keep next.
        """
        following = self._hub.exchange(kept)
        if not self._url:
            # Served only now: a restarted hub without counts would look to Prometheus like counters at 0.
            port = self._hub.serve(self._port, self._host)
            anywhere = self._host in ("0.0.0.0", "::")
            self._url = f"http://{ray.util.get_node_ip_address() if anywhere else self._host}:{port}/metrics"
        return self._url, self._hub.snapshot(), following
