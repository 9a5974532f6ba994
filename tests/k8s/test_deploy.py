"""Tests of `make deploy`: it reports what is missing before it applies anything.

A script in place of kubectl stands for the cluster.
"""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from k8s.check import config_map_of
from k8s.deploy import QUEUE, main, origins_runbook
from tests.k8s.conftest import ROOT, build, find, run_here

KUBECTL = """#!/bin/sh
# $CLUSTER holds one file for each thing that the cluster has. What is applied is written to $CLUSTER/applied.
case "$1 $2" in
kustomize*shared) ;;
kustomize*) exec cat "$CLUSTER/built" ;;
version*) [ -e "$CLUSTER/up" ] || { echo "the server was refused" >&2; exit 1; } ;;
api-resources*) cat "$CLUSTER/$3" 2>/dev/null || true ;;
"get secret"*) cat "$CLUSTER/secret" 2>/dev/null || true ;;
"get storageclass"*) cat "$CLUSTER/storageclass" 2>/dev/null || true ;;
"get rayjob"*) cat "$CLUSTER/rayjob" 2>/dev/null || true ;;
"get configmap"*) cat "$CLUSTER/configmap" ;;
apply*) cat >"$CLUSTER/applied"; echo applied ;;
*) exit 64 ;;
esac
"""
READY = {
    "up": "",
    "ray.io": "rayjobs.ray.io\n",
    "monitoring.coreos.com": "podmonitors.monitoring.coreos.com\n",
    "secret": "password ray-password ",
    "storageclass": "longview-shared",
}


def deploy(
    folder: Path,
    overlay: str,
    cluster: dict[str, str],
    change: tuple[str, str] = ("", ""),
    runbook: str = "https://wiki.example/runbook",
    program: str = "",
) -> str:
    """Deploy to a cluster that has what `cluster` lists; return the exit code, then everything printed.

    `change` replaces one text of what kustomize built by another. `program` is Python that runs the command
    in a process of its own.
    """
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    # The clone has no origin.
    (folder / "git").write_text("#!/bin/sh\nexit 2\n")
    (folder / "git").chmod(0o755)
    old, new = change
    text = build("local" if overlay == "nowhere" else overlay)
    assert old in text
    (folder / "built").write_text(text.replace(old, new) if old else text)
    for name, content in cluster.items():
        (folder / name).write_text(content)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CLUSTER": str(folder)}
    if program:
        done = subprocess.run(
            [sys.executable, "-c", program, overlay, runbook],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        code, said = done.returncode, done.stdout + done.stderr
    else:
        code, said = run_here(main, overlay, runbook, environment=environment)
    assert (folder / "applied").exists() == (code == 0)
    return f"{code} {said}"


def test_what_kustomize_builds_is_applied(tmp_path: Path, overlay: str) -> None:
    assert deploy(tmp_path, overlay, READY) == "0 applied\n"
    applied = (tmp_path / "applied").read_text().removeprefix("---\n")
    assert applied == build(overlay).replace("docs/runbook.md#", "https://wiki.example/runbook#")
    links = re.findall(r"runbook_url: (\S+)#longview\w+\n", applied)
    assert len(links) == applied.count("alert: Longview")
    assert set(links) == {"https://wiki.example/runbook"}


@pytest.mark.parametrize(
    "origin",
    [
        "https://git.example/lab/longview.git\n",
        "https://token@git.example/lab/longview",
        "git@git.example:lab/longview.git",
        "ssh://git@git.example:7999/lab/longview.git",
    ],
)
def test_the_clones_origin_has_the_runbook(origin: str) -> None:
    assert origins_runbook(origin) == "https://git.example/lab/longview/blob/HEAD/docs/runbook.md"


@pytest.mark.parametrize("origin", ["", "/srv/git/longview.git", "../longview"])
def test_an_origin_that_is_no_web_page_gives_no_link(origin: str) -> None:
    assert origins_runbook(origin) is None


def test_links_that_lead_nowhere_are_told_with_the_remedy(tmp_path: Path) -> None:
    said = deploy(tmp_path, "gpu", READY, runbook="")
    assert said.startswith("0 applied\nlongview: the alerts do not link to the runbook")
    assert "make deploy OVERLAY=gpu RUNBOOK=https://" in said
    assert "runbook_url: docs/runbook.md#" in (tmp_path / "applied").read_text()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("up", ["kubectl version", "the server was refused"]),
        ("ray.io", ["KubeRay's operator is not installed"]),
        ("monitoring.coreos.com", ["Prometheus' operator is not installed"]),
        (
            "secret",
            [
                "Secret longview-redis-production has no password and no ray-password",
                "kubectl create secret generic longview-redis-production --namespace longview --from-literal",
            ],
        ),
        ("storageclass", ["StorageClass longview-shared does not exist"]),
    ],
)
def test_what_the_cluster_lacks_is_reported_with_the_remedy(
    tmp_path: Path, missing: str, words: list[str]
) -> None:
    said = deploy(tmp_path, "production", {name: text for name, text in READY.items() if name != missing})
    assert said.startswith("2 longview: ")
    assert all(word in said for word in words)


def test_a_secret_without_one_of_its_keys_is_refused(tmp_path: Path) -> None:
    assert "has no ray-password; create it with" in deploy(tmp_path, "local", READY | {"secret": "password "})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("count: 16 ", "count: 999 "), "actors.count is 999, but the worker groups have room for 32"),
        (("learners: 1\n", "learners: 9\n"), "learners is 9, but the worker groups have room for 1"),
        (("steps: 8000", "stepz: 8000"), "unknown key learner.stepz; did you mean learner.steps"),
        (
            ("    name: gpu\n", ""),
            "run.yaml has name: None, but the overlay's kustomization.yaml has nameSuffix: -gpu",
        ),
    ],
)
def test_a_run_that_cannot_work_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert words in deploy(tmp_path, "gpu", READY, change)


def there(state: str, suspend: bool = False, labels: dict[str, str] | None = None) -> dict[str, str]:
    """Return the cluster in which the overlay `gpu` was deployed, and its RayJob has reached a state."""
    objects = list(yaml.load_all(build("gpu"), yaml.CSafeLoader))
    job = find(objects, "RayJob") | {"status": {"jobDeploymentStatus": state}}
    job["spec"]["suspend"] = suspend
    job["metadata"]["labels"] |= labels or {}
    # What the API server adds to an object is no difference.
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][0][
        "protocol"
    ] = "TCP"
    config = find(objects, "ConfigMap", config_map_of(objects))
    return READY | {"rayjob": json.dumps(job), "configmap": json.dumps(config)}


def test_a_run_under_way_that_is_deployed_as_it_is_needs_no_word(tmp_path: Path) -> None:
    assert deploy(tmp_path, "gpu", there("Running")) == "0 applied\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("maxReplicas: 8", "maxReplicas: 16"), "workerGroupSpecs.0.maxReplicas: 16 instead of 8"),
        (("steps: 8000", "steps: 9000"), "    run.yaml\n"),
    ],
)
def test_what_a_run_under_way_keeps_is_told_with_the_remedy(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    said = deploy(tmp_path, "gpu", there("Running"), change)
    assert words in said
    assert "make scale OVERLAY=gpu ACTORS=N" in said
    assert "delete rayjob longview-gpu\n" in said


@pytest.mark.parametrize("state", ["Complete", "Failed"])
def test_a_run_that_has_ended_is_not_started_again_and_that_is_told(tmp_path: Path, state: str) -> None:
    said = deploy(tmp_path, "gpu", there(state))
    assert f"is {state}, and deploying does not start it again" in said
    assert said.endswith("make deploy OVERLAY=gpu\n")


@pytest.mark.parametrize(
    ("state", "suspend"), [("Running", True), ("Suspending", True), ("Suspended", True), ("Suspended", False)]
)
def test_a_suspended_run_resumes_with_what_is_deployed(tmp_path: Path, state: str, suspend: bool) -> None:
    cluster = there(state, suspend)
    said = deploy(tmp_path, "gpu", cluster, ("maxReplicas: 8", "maxReplicas: 16"))
    assert "Resuming starts with this:\n    rayClusterSpec.workerGroupSpecs.0.maxReplicas: 16" in said
    assert """patch rayjob longview-gpu --type merge -p '{"spec":{"suspend":false}}'\n""" in said
    assert "delete rayjob" not in said
    (tmp_path / "applied").unlink()
    said = deploy(tmp_path, "gpu", cluster)
    assert "deploying does not resume it.\nTo resume:\n" in said


def test_a_run_in_kueues_queue_is_left_to_kueue(tmp_path: Path) -> None:
    said = deploy(tmp_path, "gpu", there("Suspended", True, {QUEUE: "longview"}))
    assert said.endswith("does not resume it.\nKueue resumes it when the cluster has room.\n")


def test_an_unknown_overlay_is_refused(tmp_path: Path) -> None:
    assert "OVERLAY must be one of gpu, local, production, not 'nowhere'" in deploy(
        tmp_path, "nowhere", READY
    )


LOADED = """
import runpy, sys
try:
    runpy.run_module("k8s.deploy", run_name="__main__")
finally:
    import k8s.scale
    print(*sys.modules)
"""


def test_deploying_needs_only_what_the_makefile_installs_for_it(tmp_path: Path) -> None:
    (needs,) = re.findall(r"^DEPLOYING_NEEDS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    allowed, queue = set[str](), needs.split()
    while queue:
        name = package_of(queue.pop())
        if name not in allowed:
            allowed.add(name)
            queue += [it for it in metadata.requires(name) or () if "extra ==" not in it and installed(it)]
    said = deploy(tmp_path, "gpu", READY, program=LOADED)
    assert said.startswith("0 applied\n")
    loaded = {name.partition(".")[0] for name in said.split()} - sys.stdlib_module_names
    owners = metadata.packages_distributions()
    used = {package_of(owner) for name in loaded for owner in owners.get(name, ())}
    assert "pyyaml" in used
    assert used - allowed - {"longview", "setuptools"} == set()


def package_of(requirement: str) -> str:
    """Return a package's name as indexes write it: `typing_extensions>=4; ...` is typing-extensions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def installed(requirement: str) -> bool:
    """Tell whether a requirement's package is installed: some are needed on other systems only."""
    try:
        metadata.distribution(package_of(requirement))
    except metadata.PackageNotFoundError:
        return False
    return True
