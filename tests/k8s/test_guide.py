"""Every shell command of docs/kubernetes.md, run as far as it can be without a cluster."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from k8s.check import job_of
from tests.k8s.conftest import ROOT, kustomized

GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)

NOT_HERE = ("helm", "docker", "kind", "minikube", "sudo", "curl")
"""Programs of which only the calls are noted: they need a cluster, a container runtime, or a download."""

# No API server answers at this address, so kubectl goes that far. It prints a name for the next command.
KUBECTL = """#!/bin/sh
said=$("$REAL" --server http://127.0.0.1:1 "$@" 2>&1 >/dev/null)
case $said in
*refused*) echo name ;;
*)
    echo "kubectl $*: $said" >>"$FAULTS"
    exit 1
    ;;
esac
"""
MAKE = """#!/bin/sh
"$REAL_MAKE" --dry-run --file "$REPOSITORY/Makefile" "$@" >/dev/null || echo "make $*" >>"$FAULTS"
"""
# The config and the settings are read; nothing is launched.
LONGVIEW = f"""#!{sys.executable}
import os, pathlib, sys
sys.path.insert(0, os.environ["REPOSITORY"])
from longview.cluster.run.config import read_config
command, file, *settings = sys.argv[1:]
assert command == "launch"
read_config(pathlib.Path(file), settings)
"""
NOTED = """#!/bin/sh
[ $# -gt 0 ] || echo "$0 without arguments" >>"$FAULTS"
[ -t 0 ] || cat >/dev/null
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a copy of what the commands change, and programs in place of those that need a cluster."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "monitoring" / "dashboards", tmp_path / "monitoring" / "dashboards")
    for name in ("constraints.txt", "demonstrations.hdf5", "receivers.yaml"):
        (tmp_path / name).touch()
    programs = {"kubectl": KUBECTL, "make": MAKE, "longview": LONGVIEW} | dict.fromkeys(NOT_HERE, NOTED)
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_every_command_of_the_guide_runs_up_to_the_cluster(repository: Path) -> None:
    kubectl, make = shutil.which("kubectl"), shutil.which("make")
    if kubectl is None:
        (repository / "bin" / "kubectl").write_text(f"{NOTED}echo name\n")
    faults = repository / "faults"
    faults.touch()
    path = f"{repository / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "REAL": str(kubectl), "REAL_MAKE": str(make), "REPOSITORY": str(ROOT)}
    environment |= {"FAULTS": str(faults), "HOME": str(repository), "TERM": "dumb"}
    kustomized(repository / "k8s" / "overlays" / "gpu")  # skips the test where kustomize is missing
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-euc", f"head=pod/head\n{block}"],
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # what stands for a secret decodes to anything
            check=False,
        )
        assert (done.returncode, faults.read_text()) == (0, ""), block + done.stderr
    # The images of the overlay were renamed, also where only a RayJob names them.
    overlay = yaml.load_all(kustomized(repository / "k8s" / "overlays" / "gpu"), yaml.CSafeLoader)
    assert str(job_of(list(overlay))).count("'REGISTRY/longview:0.2.0-") == 4
    if kubectl is None:
        pytest.skip("kubectl is not installed: all commands ran but its own")


def test_every_command_of_the_guide_is_in_a_block_that_runs() -> None:
    prose = re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL)
    programs = ("kubectl", "kustomize", "export", "port-forward", "longview launch", *NOT_HERE)
    said = [
        code
        for code in re.findall(r"`([^`]+)`", prose)
        if code.startswith(tuple(f"{it} " for it in programs))
    ]
    assert said == ["helm upgrade"], "the program's command is named, without what it works on"
    assert set(re.findall(r"```(\w+)", GUIDE)) == {"sh", "yaml"}


def test_the_guide_says_which_commands_do_not_run_here() -> None:
    assert f"| {', '.join(f'`{it}`' for it in NOT_HERE)} | not at all" in GUIDE


WRONG = [
    "kubectl get pods --outputs json",
    "kubectl -n longview weit rayjob",
    "make deplay",
    "longview launch k8s/overlays/gpu/run.yaml actors.cuont=2",
]


def test_what_is_wrong_in_a_command_is_found(repository: Path) -> None:
    for command in WRONG:
        if command.startswith("kubectl") and shutil.which("kubectl") is None:
            continue
        faults = repository / "faults"
        faults.unlink(missing_ok=True)
        environment = {"PATH": f"{repository / 'bin'}:{os.environ['PATH']}", "FAULTS": str(faults)}
        environment |= {"REAL": str(shutil.which("kubectl")), "REAL_MAKE": str(shutil.which("make"))}
        environment |= {"REPOSITORY": str(ROOT), "HOME": str(repository)}
        done = subprocess.run(["sh", "-c", command], cwd=repository, env=environment, check=False)
        assert faults.exists() or done.returncode, command
