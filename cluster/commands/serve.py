"""A policy for robots over the network: `longview serve`."""

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from longview.cluster.commands.common import new_names
from longview.cluster.run.config import ConfigError
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import Run
from longview.cluster.run.sizing import device
from longview.cluster.serving.calls import Form
from longview.cluster.serving.recorder import Recorder
from longview.cluster.serving.server import BASE, Acting, RobotServer, ServeConfig
from longview.cluster.serving.weights import Weights
from longview.cluster.views.terminal import console
from longview.learner.files import adapter_file, policy_file
from longview.monitoring.serving import ServingMetrics
from longview.replay.config import StoreConfig, with_password

if TYPE_CHECKING:
    from longview.replay.store import EpisodeStore

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
    adapters: Sequence[str],
    map: Sequence[str],
    resize: bool,
    tls: ssl.SSLContext | None,
    metrics_port: int | None,
    record: str | None,
    namespace: str | None,
) -> None:
    """Serve the newest policy of a path until this process is interrupted.

    Args:
        checkpoint: as for `policy_file`.
        config: settings of the server.
        adapters: adapters of this policy that act beside it, `NAME=PATH`. With them, the policy stays that is
            the newest one now.
        map: names of observations, `THEIRS=OURS`.
        resize: resize pictures even if nothing tells that those of the training data were.
        tls: certificate and key; None serves without TLS.
        metrics_port: port of /metrics; None serves none.
        record: URL of the Redis that episodes are recorded into; None records nothing.
        namespace: namespace of these episodes; by default that of each policy's run.

    Raises:
        ConfigError: there is no policy, or an adapter or a setting does not fit it.
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
        policies = policies_of(checkpoint, adapters)
        weights = policies[BASE].weights
        run, horizon = run_of(weights.file), weights.policy.horizon
        resizing = resize or (run is not None and resizes(run))
        form = Form(weights.policy.spec, horizon.context, names, resizing, horizon.max_delay)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None
    metrics = ServingMetrics()
    with ExitStack() as services:
        if record is not None:
            for acting in policies.values():
                store = recording_store(record, namespace, acting.weights)
                services.enter_context(ending(store.close))
                spec = acting.weights.policy.spec
                acting.recorder = Recorder(
                    store, spec, lambda outcome: metrics.episodes.labels(outcome).inc()
                )
                services.callback(acting.recorder.close)
        server = RobotServer(policies, form, config, metrics)
        if metrics_port is not None:
            port = metrics.serve(metrics_port, config.host)
            console.print(f"metrics: http://{config.host}:{port}/metrics", soft_wrap=True)

        def started(port: int) -> None:
            scheme = "ws" if tls is None else "wss"
            url = f"{scheme}://{config.host}:{port}"
            for name, acting in policies.items():
                term = f"?adapter={quote(name)}" if name != BASE else ""
                task, version = acting.weights.policy.spec.name, acting.weights.version
                console.print(f"{task}, version {version}: {url}{term}", soft_wrap=True)

        asyncio.run(server.run(started, tls))


def policies_of(checkpoint: Path, adapters: Sequence[str]) -> dict[str, Acting]:
    """Read a policy and adapters of it, by the names that robots choose them by.

    Raises:
        ConfigError: an adapter is named wrongly, is not there, or does not fit the policy.
        FileNotFoundError, ValueError: as for `Weights`, of the policy itself.
    """
    files, file = named_files(adapters), policy_file(checkpoint)  # fails before PyTorch loads
    # Adapters fit the weights that they were trained from, and no later ones.
    weights = Weights(file if files else checkpoint, device())
    policies = {BASE: Acting(weights)}
    for name, path in files.items():
        try:
            policies[name] = Acting(Weights(path, device(), weights.policy))
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"--adapter {name}: {error}") from None
    return policies


def named_files(adapters: Sequence[str]) -> dict[str, Path]:
    """Read the adapters that a person typed, and find their files: paths by name.

    Raises:
        ConfigError: a pair is not written as NAME=PATH, a name comes twice, or a path holds no adapter.
    """
    paths = dict[str, Path]()
    for pair in adapters:
        name, _, path = pair.partition("=")
        if not name or not path:
            raise ConfigError(f"--adapter takes NAME=PATH, such as left=runs/left, not {pair}")
        if name in paths:
            raise ConfigError(f"--adapter {name} is given twice")
        paths[name] = Path(path)
        try:
            adapter_file(paths[name])
        except FileNotFoundError as error:
            raise ConfigError(f"--adapter {name}: {error}") from None
    return paths


def recording_store(url: str, namespace: str | None, weights: Weights) -> "EpisodeStore":
    """Connect to the store that a policy's episodes are recorded into.

    Raises:
        ConfigError: no namespace is given, and the policy lies in no run's folder.
        StoreError: the store cannot be reached.
    """
    from longview.replay.store import EpisodeStore

    if namespace is None:
        run = run_of(weights.file)
        if run is None:
            raise ConfigError(f"{weights.file} lies in no run's folder: say by --namespace where to record")
        namespace = run.namespace
    config = StoreConfig(patience_seconds=PATIENCE_SECONDS)
    return EpisodeStore.connect(with_password(url), namespace, config)


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
