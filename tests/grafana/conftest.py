"""Grafana's packages from npm, and a Prometheus with every metric."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grafana.answers import recorded
from tests.grafana.draw import install


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Grafana's packages, and return the folder that holds them."""
    if missing := [it for it in ("node", "npm", "prometheus") if shutil.which(it) is None]:
        pytest.skip(f"not installed (Debian: apt install nodejs npm prometheus): {', '.join(missing)}")
    return install(tmp_path_factory.mktemp("grafana"))


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a Prometheus that has recorded every metric of the catalogue."""
    with recorded(tmp_path_factory.mktemp("prometheus")) as url:
        yield url
