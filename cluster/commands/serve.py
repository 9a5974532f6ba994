"""A policy for robots over the network: `longview serve`."""

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from longview.cluster.commands.common import new_names
from longview.cluster.run.config import ConfigError
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import Run
from longview.cluster.run.sizing import device
from longview.cluster.serving.calls import Form
from longview.cluster.serving.recorder import Recorder
from longview.cluster.serving.server import RobotServer, ServeConfig
from longview.cluster.serving.weights import Weights
from longview.cluster.views.terminal import console
from longview.learner.files import policy_file
from longview.monitoring.serving import ServingMetrics
from longview.replay.config import StoreConfig, with_password

KEY_VARIABLE: Final = "LONGVIEW_API_KEY"
"""Name of the environment variable with the key that robots must bring."""
PATIENCE_SECONDS: Final = 10.0
"""Time for which the recorder tries to reach a Redis, before it gives an episode up."""


def api_key(file: Path | None) -> str | None:
    """Read the key that robots must bring, from a file or else from the environment; None if there is none.

    Raises:
        ConfigError: the file cannot be read, or the key is empty or no printable ASCII.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
    else:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the key in {file}: {error}") from None
    if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
        raise ConfigError(f"the key in {file or KEY_VARIABLE} must be printable ASCII, and not empty")
    return key


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Load a certificate and its private key; None if neither is given.

    Raises:
        ConfigError: only one is given, or they cannot be read or do not fit each other.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS needs both --cert and --key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use --cert {certificate} with --key {key}: {error}") from None
    return context


def serve_checkpoint(
    checkpoint: Path,
    config: ServeConfig,
    *,
    map: Sequence[str],
    tls: ssl.SSLContext | None,
    metrics_port: int | None,
    record: str | None,
    namespace: str | None,
) -> None:
    """Serve the newest policy of a path until this process is interrupted.

    Args:
        checkpoint: as for `policy_file`.
        config: settings of the server.
        map: names of observations, `THEIRS=OURS`.
        tls: certificate and key; None serves without TLS.
        metrics_port: port of /metrics; None serves none.
        record: URL of the Redis that episodes are recorded into; None records nothing.
        namespace: namespace of these episodes; by default that of the policy's run.

    Raises:
        ConfigError: there is no policy, or a setting does not fit it.
        StoreError: the store cannot be reached, or holds another task of this name.
        OSError: a port is in use.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    if config.key is None and not _is_loopback(config.host):
        raise ConfigError(
            f"{config.host} is reached from outside: set {KEY_VARIABLE} or give --api-key-file, so that not "
            "everybody can use the policy"
        )
    names = new_names(map)
    try:
        policy_file(checkpoint)  # fails before PyTorch loads
        weights = Weights(checkpoint, device())
        run = run_of(weights.file)
        spec, horizon = weights.policy.spec, weights.policy.horizon
        resize = run is not None and resizes(run)
        form = Form(spec, horizon.context, names, resize, horizon.max_delay)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None
    metrics = ServingMetrics()
    with ExitStack() as services:
        recorder = None
        if record is not None:
            from longview.replay.store import EpisodeStore

            if namespace is None:
                if run is None:
                    raise ConfigError(
                        "the policy lies in no run's folder: say by --namespace where to record"
                    )
                namespace = run.namespace
            store = EpisodeStore.connect(
                with_password(record), namespace, StoreConfig(patience_seconds=PATIENCE_SECONDS)
            )
            services.enter_context(ending(store.close))
            recorder = Recorder(store, spec, lambda outcome: metrics.episodes.labels(outcome).inc())
            services.callback(recorder.close)
        server = RobotServer(weights, form, config, metrics, recorder)
        if metrics_port is not None:
            port = metrics.serve(metrics_port, config.host)
            console.print(f"metrics: http://{config.host}:{port}/metrics", soft_wrap=True)

        def started(port: int) -> None:
            scheme = "ws" if tls is None else "wss"
            console.print(
                f"{spec.name}, version {weights.version}: {scheme}://{config.host}:{port}", soft_wrap=True
            )

        asyncio.run(server.run(started, tls))


def run_of(file: Path) -> Run | None:
    """Return the run whose folder holds a policy's file; None if it lies elsewhere."""
    for folder in file.absolute().parents[:3]:
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            return Run(folder)
    return None


def resizes(run: Run) -> bool:
    """Tell whether `longview train` has resized the pictures that a run's policy was trained with."""
    data = run.config.data
    return bool(data.paths) and data.size is not None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
