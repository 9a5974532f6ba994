"""Grafana's packages from npm, and a Prometheus with every metric."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grafana.answers import recorded
from tests.grafana.draw import PACKAGES


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Grafana's packages, and return the folder that holds them."""
    if missing := [it for it in ("node", "npm", "prometheus") if shutil.which(it) is None]:
        pytest.skip(f"not installed (Debian: apt install nodejs npm prometheus): {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("grafana")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {done.stderr[-500:]}")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a Prometheus that has recorded every metric of the catalogue."""
    with recorded(tmp_path_factory.mktemp("prometheus")) as url:
        yield url
