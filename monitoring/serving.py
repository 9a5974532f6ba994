"""Metrics of `longview serve`. They are no part of the catalogue, because a server belongs to no run."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from longview.monitoring.metrics import BATCHES, WAIT_SECONDS


class ServingMetrics:
    """Metrics of one server. Any thread may change them."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge("longview_serving_connections", "Connections of robots.", registry=registry)
        self.calls = Counter(
            "longview_serving_calls",
            "Calls by their answer: actions or an error.",
            ["answer"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "longview_serving_batch_size", "Robots decided for at once.", registry=registry, buckets=BATCHES
        )
        self.decision_seconds = Histogram(
            "longview_serving_decision_seconds",
            "From the arrival of a call until its actions are sent.",
            registry=registry,
            buckets=WAIT_SECONDS,
        )
        self.version = Gauge(
            "longview_serving_policy_version",
            "Version that acts in new episodes, by adapter; empty: the policy itself.",
            ["adapter"],
            registry=registry,
        )
        self.episodes = Counter(
            "longview_serving_recorded_episodes",
            "Recorded episodes by outcome; lost ones could not be recorded.",
            ["outcome"],
            registry=registry,
        )
        for answer in ("actions", "error"):
            self.calls.labels(answer)

    def serve(self, port: int, host: str) -> int:
        """Serve /metrics in a background thread for as long as the process lives, and return the port.

        Args:
            port: port; 0 chooses a free one.
            host: address to listen on.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        try:
            server, _ = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            reason = f"cannot serve metrics on {host}:{port} ({error.strerror}); choose another port, or 0"
            raise OSError(error.errno, reason) from error
        return int(server.server_port)
