"""Fixtures that build each overlay with kustomize."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.pods import Object

ROOT = Path(__file__).parents[2]
OVERLAYS = ("local", "gpu", "production")


@cache
def build(overlay: str) -> str:
    """Return the YAML that `make deploy OVERLAY=<overlay>` sends."""
    return f"{kustomized(ROOT / 'k8s' / 'shared')}---\n{kustomized(ROOT / 'k8s' / 'overlays' / overlay)}"


def kustomized(folder: Path) -> str:
    """Return the YAML that kustomize builds from a folder."""
    kustomize = shutil.which("kustomize", path=Path(sys.executable).parent) or shutil.which("kustomize")
    if kustomize is None:
        pytest.skip("kustomize is not installed: `make test` installs it on Debian")
    built = subprocess.run([kustomize, "build", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return built.stdout


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Run the test once for each overlay, given by name."""
    name: str = request.param
    return name


@pytest.fixture
def objects(overlay: str) -> list[Object]:
    """Return a fresh copy of the overlay's objects, which the test may change."""
    return list(yaml.load_all(build(overlay), yaml.CSafeLoader))


def find(objects: list[Object], kind: str, name: str | None = None) -> Any:
    """Return the only object of this kind; where kinds repeat, give the name as well."""
    (found,) = (it for it in objects if it["kind"] == kind and name in (None, it["metadata"]["name"]))
    return found
