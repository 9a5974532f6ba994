"""Builds Longview's image by Debian's programs `debootstrap` and `buildah`, without a registry of images.

The base is Debian with its own Python, in place of the image `python`: Debian with a newer patch of the same
Python. Commands of the Dockerfile run in a chroot, with this machine's network and its settings of pip. The
image is the variant for CPUs.
"""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.k8s.conftest import ROOT

CACHE = Path(tempfile.gettempdir()) / "longview-image"
"""Folder for what a further build uses again."""
BASE, IMAGE = "localhost/longview-base", "localhost/longview:cpu"
RELEASE, PACKAGES = "bookworm", "python3,python3-venv,python-is-python3,libpython3-dev,ca-certificates"
TORCH = "/opt/torch"
"""Folder in the image where uv looks for PyTorch."""


def skip_without_programs() -> None:
    """Skip the test where no image can be built."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if missing := [it for it in ("buildah", "debootstrap") if shutil.which(it) is None]:
        pytest.skip(f"not installed (Debian: apt install buildah debootstrap): {', '.join(missing)}")


def run(*command: str | Path) -> str:
    """Run a command in the repository's root, and return what it prints.

    Raises:
        AssertionError: it fails.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{said}"
    return done.stdout.strip()


def buildah(*arguments: str | Path) -> str:
    """Run buildah with the images in `CACHE`."""
    return run("buildah", "--root", CACHE / "images", "--runroot", CACHE / "state", *arguments)


def pip(*arguments: str | Path) -> str:
    """Run this machine's pip."""
    return run(sys.executable, "-m", "pip", *arguments)


def pip_settings() -> dict[str, str]:
    """Return this machine's settings of pip, as variables."""
    pairs = (line.split("=", 1) for line in pip("config", "list").splitlines())
    return {
        f"PIP_{name.rsplit('.', 1)[-1].replace('-', '_').upper()}": ast.literal_eval(value)
        for name, value in pairs
    }


def torch_settings() -> dict[str, str]:
    """Return variables that let uv take PyTorch from `TORCH`, offline; none if pip knows no build for CPUs.

    A machine whose pip is set up with such a build may not reach PyTorch's own index, which uv would ask.
    """
    wanted = ("--constraint", "constraints.txt", "torch")
    plan = pip("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", *wanted)
    (torch,) = json.loads(plan)["install"]
    if not torch["metadata"]["version"].endswith("+cpu"):
        return {}
    pip("download", "--quiet", "--dest", CACHE / "torch", *wanted)
    return {"UV_OFFLINE": "1", "UV_FIND_LINKS": TORCH}


def volumes(settings: dict[str, str]) -> Iterator[str]:
    """Return the mounts that these settings need: the paths that they name, read-only."""
    for word in {it for value in settings.values() for it in value.split()}:
        path = Path(word.removeprefix("file://"))
        if word.startswith("file://"):  # an index, whose files lie beside it
            path = path.parent
        if path.is_absolute() and path.exists():
            yield f"--volume={path}:{path}:ro"
    yield f"--volume={CACHE / 'torch'}:{TORCH}:ro"


def make_base(settings: dict[str, str]) -> None:
    """Make the base image, unless an earlier build has made it."""
    if buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        return
    system = CACHE / "system"
    if not (system / "usr" / "bin" / "python").exists():
        shutil.rmtree(system, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, system)
    container = buildah("from", "scratch")
    buildah("add", container, system, "/")
    buildah("config", *(f"--env={name}={value}" for name, value in settings.items()), container)
    buildah("commit", "--rm", container, BASE)


def build_image() -> None:
    """Build the image for CPUs, every layer whose files or command have changed."""
    (CACHE / "torch").mkdir(parents=True, exist_ok=True)
    settings = pip_settings() | torch_settings()
    make_base(settings)
    options = (
        "--layers",
        "--isolation=chroot",
        "--network=host",
        f"--build-arg=BASE={BASE}",
        f"--tag={IMAGE}",
    )
    buildah("bud", *options, *volumes(settings), "--file", "k8s/Dockerfile", ".")


@contextmanager
def mounted() -> Iterator[Path]:
    """Mount the image's root file system."""
    container = buildah("from", IMAGE)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container)
