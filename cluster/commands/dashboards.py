"""The commands of `longview dashboards`: make them, and put them on a Grafana."""

import os
from typing import Annotated

import typer

from longview.cluster.commands.common import explained, group

app = group("Grafana's dashboards: make their files, put them on a Grafana.")


@app.command()
@explained
def build() -> None:
    """Build monitoring/dashboards/*.json from monitoring/panels.py.

    Example:

        longview dashboards build
    """
    from longview.monitoring.dashboards import build as build_files

    for file in build_files():
        typer.echo(str(file))


@app.command()
@explained
def push(
    url: Annotated[
        str | None, typer.Option(help="Grafana's address.", envvar="GRAFANA_URL", show_envvar=True)
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(help="Prometheus' address as Grafana reaches it; by default the newest run's own."),
    ] = None,
) -> None:
    """Create or renew folder, data source and dashboards on a Grafana. A repeated push changes nothing.

    GRAFANA_TOKEN in the environment holds the token of a service account with the role Admin.

    Examples:

        GRAFANA_TOKEN=... longview dashboards push --url http://localhost:3000

        longview dashboards push --prometheus http://prometheus.monitoring:9090
    """
    from longview.cluster.run.config import ConfigError
    from longview.cluster.run.folder import prometheus_under_way
    from longview.monitoring.dashboards import FOLDER
    from longview.monitoring.grafana import push as push_files

    token = os.environ.get("GRAFANA_TOKEN", "")
    if not url or not token:
        missing = [name for name, value in (("GRAFANA_URL", url), ("GRAFANA_TOKEN", token)) if not value]
        raise ConfigError(
            f"the environment lacks {' and '.join(missing)}: Grafana's address (or --url), the token of a "
            "service account there with the role Admin"
        )
    for line in push_files(url, token, sorted(FOLDER.glob("*.json")), prometheus or prometheus_under_way()):
        typer.echo(line)
