"""Runs and namespaces of Longview 0.1 in the present format: `longview store migrate`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import yaml
from rich.progress import Progress

from longview.cluster.run.config import read_yaml
from longview.cluster.run.folder import Run, find_run, open_run, write_atomically
from longview.cluster.run.services import redis_server
from longview.cluster.run.upgrade import is_old, upgraded
from longview.cluster.views.terminal import console
from longview.replay.config import StoreConfig, with_password
from longview.replay.redis.client import Client
from longview.replay.redis.migrate import Migration
from longview.replay.redis.namespace import FORMAT


def migrate_store(name: str | None, url: str | None) -> None:
    """Bring a run's config and store over to the present format, and print what was done.

    Args:
        name: name of the run, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own.

    Raises:
        RunError: the run does not exist or is under way.
        ConfigError: the run's config holds more than names that have changed.
        StoreError: the namespace does not exist or has an unknown format, or Redis cannot be reached.
    """
    run = find_run(name) if url is not None and name is not None else open_run(name)
    with ExitStack() as services:
        if run is not None:
            run.lock()
            services.callback(run.unlock)
            _bring_config_over(run)
        namespace = run.origin.namespace if run is not None else str(name)
        client, config = services.enter_context(_connected(run, url))
        with Progress(console=console, transient=True) as bars:
            bar = bars.add_task("bringing over")
            result = Migration(
                client, namespace, config, lambda done, total: bars.update(bar, completed=done, total=total)
            ).run()
    console.print(
        f"namespace {namespace} has format {FORMAT}: {result.episodes:,} episodes were brought over",
        soft_wrap=True,
    )
    for why in result.damaged.values():
        console.print(f"in quarantine: {why}", soft_wrap=True, markup=False)


def _bring_config_over(run: Run) -> None:
    """Rename what has another name now in a run's config.yaml, drop what is gone, and check the rest.

    Raises:
        ConfigError: the config holds something else that does not fit this version.
    """
    file = run.path / "config.yaml"
    if is_old(tree := read_yaml(file)):
        write_atomically(file, yaml.safe_dump(upgraded(tree), sort_keys=False))
        console.print(
            f"{file}: sources have their new names; the run goes on without collecting, "
            "collect.kind turns it on",
            soft_wrap=True,
        )
    run.configured()


@contextmanager
def _connected(run: Run | None, url: str | None) -> Iterator[tuple[Client, StoreConfig]]:
    """Connect to the Redis of a locked run, or to any other by its URL."""
    config = StoreConfig() if run is None else run.config.replay
    with ExitStack() as services:
        url = with_password(url) if url is not None else config.url
        if url is None:
            assert run is not None
            url = services.enter_context(redis_server(run.path / "redis", config.fsync))
        client = Client(url, config)
        services.callback(client.redis.close)
        yield client, config
