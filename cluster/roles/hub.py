"""The metrics hub as a Ray actor."""

import ray

from longview.cluster.roles.reporting import restarted
from longview.monitoring.hub import Hub, Reporters
from longview.monitoring.snapshot import Snapshot


class MetricsHub:
    """Merges totals and serves /metrics."""

    def __init__(self, run: str, host: str, port: int) -> None:
        self._hub = Hub(run)
        self._host, self._port = host, port
        self._url = ""
        if (message := restarted("hub")) is not None:
            self._hub.report(message)

    def report(self, message: bytes) -> None:
        """Take in a role's totals."""
        self._hub.report(message)

    def exchange(self, kept: Reporters) -> tuple[str, Snapshot, Reporters]:
        """Serve what the driver keeps.

        Returns:
            The URL of /metrics, everything merged, and what the driver shall keep next.
        """
        following = self._hub.exchange(kept)
        if not self._url:
            # Not before there is something to serve: to Prometheus, a hub that was restarted was away.
            port = self._hub.serve(self._port, self._host)
            anywhere = self._host in ("0.0.0.0", "::")
            self._url = f"http://{ray.util.get_node_ip_address() if anywhere else self._host}:{port}/metrics"
        return self._url, self._hub.snapshot(), following
