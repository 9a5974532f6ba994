"""Deploy an overlay to the cluster that kubectl points at, after checking that it can work.

make deploy OVERLAY=local
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

from k8s.check import SECRETS, problems
from k8s.pods import Object

OVERLAYS = Path(__file__).parent / "overlays"
NAMESPACE = "longview"
RUNBOOK = "docs/runbook.md"
"""Path of the runbook in the repository; the alerts in monitoring/rules.yaml link to it."""
OPERATORS = {"ray.io": "KubeRay's operator", "monitoring.coreos.com": "Prometheus' operator"}


def main(overlay: str, runbook: str = "") -> None:
    """Check the overlay and the cluster, then apply the overlay.

    Args:
        overlay: name of a folder in overlays/.
        runbook: address of the page that alerts link to; by default the runbook of the clone's origin.

    Raises:
        SystemExit: with code 2, after printing what is wrong and what to do about it.
    """
    known = sorted(folder.name for folder in OVERLAYS.iterdir())
    if overlay not in known:
        _refuse([f"OVERLAY must be one of {', '.join(known)}, not {overlay!r}"])
    text = linked(_kubectl("kustomize", str(OVERLAYS / overlay)), runbook or origins_runbook(_origin()))
    objects: list[Object] = list(yaml.safe_load_all(text))
    if found := problems(objects):
        _refuse(found)
    _kubectl("version")  # exits with kubectl's own message if the cluster does not answer
    if found := list(_missing(objects)):
        _refuse(found)
    print(_kubectl("apply", "--server-side", "--filename", "-", stdin=text), end="")


def linked(manifests: str, runbook: str | None) -> str:
    """Make the alerts' links to the runbook absolute, if its address is known."""
    return re.sub(rf"\b{RUNBOOK}(?=#)", runbook, manifests) if runbook else manifests


def origins_runbook(origin: str) -> str | None:
    """Make the runbook's web address from that of a Git repository; None if that is on no other machine."""
    found = re.fullmatch(
        r"(?:https://|ssh://)?(?:[^@/]+@)?(\w[\w.-]+)(?::\d+/|[:/])([\w./~-]+?)(?:\.git)?/?", origin.strip()
    )
    return f"https://{found[1]}/{found[2]}/blob/HEAD/{RUNBOOK}" if found else None


def _origin() -> str:
    """Return the address that this repository was cloned from; empty if it was not."""
    asked = ["git", "-C", str(OVERLAYS), "remote", "get-url", "origin"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _missing(objects: list[Object]) -> Iterator[str]:
    """Report what the cluster needs for these objects and does not have."""
    for group in sorted({it["apiVersion"].split("/")[0] for it in objects} & OPERATORS.keys()):
        if not _kubectl("api-resources", "--api-group", group, "--output", "name").strip():
            yield (
                f"{OPERATORS[group]} is not installed (the cluster does not know {group}): "
                "docs/kubernetes.md says how to install it"
            )
    for name, keys in SECRETS.items():
        template = "{{range $key, $value := .data}}{{$key}} {{end}}"
        found = _kubectl(
            *("get", "secret", name, "--namespace", NAMESPACE, "--ignore-not-found"),
            *("--output", f"go-template={template}"),
        )
        if absent := keys - set(found.split()):
            made = " ".join(f'--from-literal={key}="$(openssl rand -hex 24)"' for key in sorted(keys))
            yield (
                f"Secret {name} has no {' and no '.join(sorted(absent))}; create it with\n"
                f"    kubectl apply --filename k8s/base/namespace.yaml\n"
                f"    kubectl create secret generic {name} --namespace {NAMESPACE} {made}"
            )
    for claim in (it for it in objects if it["kind"] == "PersistentVolumeClaim"):
        name = claim["spec"].get("storageClassName")
        if name and not _kubectl("get", "storageclass", name, "--ignore-not-found"):
            yield f"StorageClass {name} does not exist: docs/kubernetes.md says how to create it"


def _kubectl(*arguments: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        _refuse(["kubectl was not found: install version 1.27 or newer"])
    if done.returncode:
        _refuse([f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"])
    return done.stdout


def _refuse(reasons: list[str]) -> NoReturn:
    for reason in reasons:
        print(f"deploy: {reason}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
