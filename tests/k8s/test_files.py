"""Tests of `make fetch` and `make put`. A script in place of kubectl stands for the cluster."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.k8s.conftest import ROOT

KUBECTL = """#!/bin/sh
# $CLUSTER/volume is the volume of the runs. The pod is a file while it is there. If $CLUSTER/breaks is there,
# copies fail after they have written something.
[ "$1" != --namespace ] || shift 2
case $1 in
apply) grep -q "claimName: longview-runs-gpu}" && touch "$CLUSTER/pod" ;;
wait) [ -e "$CLUSTER/pod" ] ;;
delete) rm "$CLUSTER/pod" ;;
cp)
    [ -e "$CLUSTER/pod" ] || exit 1
    from=$(echo "$2" | sed "s|^longview-files-gpu:/var/lib/longview|$CLUSTER/volume|")
    to=$(echo "$3" | sed "s|^longview-files-gpu:/var/lib/longview|$CLUSTER/volume|")
    cp -r "$from" "$to" && [ ! -e "$CLUSTER/breaks" ] ;;
*) exit 64 ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Make a cluster whose volume holds the run `gpu`."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "volume" / "runs" / "gpu").mkdir(parents=True)
    (tmp_path / "volume" / "runs" / "gpu" / "report.html").write_text("report")
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    return tmp_path


def make(cluster: Path, *arguments: str) -> tuple[int, str]:
    """Run make in the cluster's folder: exit code and output. No pod may be left."""
    environment = os.environ | {"PATH": f"{cluster}:{os.environ['PATH']}", "CLUSTER": str(cluster)}
    done = subprocess.run(
        ["make", "--file", ROOT / "Makefile", *arguments],
        cwd=cluster,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (cluster / "pod").exists()
    return done.returncode, done.stdout + done.stderr


def test_a_run_is_fetched_once(cluster: Path) -> None:
    assert make(cluster, "fetch", "RUN=gpu")[0] == 0
    assert (cluster / "runs" / "gpu" / "report.html").read_text() == "report"
    code, said = make(cluster, "fetch", "RUN=gpu")
    assert code == 2
    assert "runs/gpu exists: move it away" in said


def test_a_file_is_put_into_the_volume(cluster: Path) -> None:
    (cluster / "demos.hdf5").write_text("episodes")
    assert make(cluster, "put", "FILE=demos.hdf5", "RUN=gpu")[0] == 0
    assert (cluster / "volume" / "demos.hdf5").read_text() == "episodes"


@pytest.mark.parametrize("target", ["fetch", "put"])
def test_what_to_copy_must_be_named(cluster: Path, target: str) -> None:
    code, said = make(cluster, target)
    assert code == 2
    assert f"make {target} " in said


def test_a_copy_that_fails_leaves_no_pod(cluster: Path) -> None:
    assert make(cluster, "fetch", "RUN=other")[0] != 0


def test_a_copy_that_breaks_off_can_be_made_again(cluster: Path) -> None:
    (cluster / "breaks").touch()
    assert make(cluster, "fetch", "RUN=gpu")[0] != 0
    assert [it.name for it in (cluster / "runs").iterdir()] == ["gpu.part"], "no half of a run has its name"
    (cluster / "runs" / "gpu.part" / "stale").touch()
    (cluster / "breaks").unlink()
    assert make(cluster, "fetch", "RUN=gpu")[0] == 0
    assert [it.name for it in (cluster / "runs").iterdir()] == ["gpu"]
    assert [it.name for it in (cluster / "runs" / "gpu").iterdir()] == ["report.html"]
