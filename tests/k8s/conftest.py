"""Fixtures that build each overlay with kustomize, and what several tests of real processes share."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

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


def run_here(main: Callable[..., None], *arguments: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command of k8s/ in this process: exit code, and what it prints itself.

    Args:
        main: the command's function.
        arguments: its arguments.
        environment: variables to add to the environment.
    """
    code, out, err = 0, io.StringIO(), io.StringIO()
    with patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
        try:
            main(*arguments)
        except SystemExit as exited:
            code = int(exited.code or 0)
    return code, out.getvalue() + err.getvalue()


def skip_without_namespaces(unshare: Sequence[str]) -> None:
    """Skip the test where this command cannot make the namespaces of a container."""
    if os.geteuid() != 0 or shutil.which(unshare[0]) is None:
        pytest.skip("needs root and `unshare`")
    if subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs the right to unshare namespaces")


def free_ports(count: int) -> list[int]:
    """Return numbers of ports of this machine that nobody uses now."""
    with_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in with_sockets]
    for it in with_sockets:
        it.close()
    return ports


def eventually(question: Callable[[], Any], seconds: float = 500.0) -> Any:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, KeyError):
            if answer := question():
                return answer
        time.sleep(0.5)
    raise AssertionError(f"the answer was not true within {seconds} s")
