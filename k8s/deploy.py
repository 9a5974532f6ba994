"""Deploy an overlay to the cluster that kubectl points at, after checking that it can work.

make deploy OVERLAY=local
"""

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
OPERATORS = {"ray.io": "KubeRay's operator", "monitoring.coreos.com": "Prometheus' operator"}


def main(overlay: str) -> None:
    """Check the overlay and the cluster, then apply the overlay.

    Raises:
        SystemExit: with code 2, after printing what is wrong and what to do about it.
    """
    known = sorted(folder.name for folder in OVERLAYS.iterdir())
    if overlay not in known:
        _refuse([f"OVERLAY must be one of {', '.join(known)}, not {overlay!r}"])
    text = _kubectl("kustomize", str(OVERLAYS / overlay))
    objects: list[Object] = list(yaml.safe_load_all(text))
    if found := problems(objects):
        _refuse(found)
    _kubectl("version")  # exits with kubectl's own message if the cluster does not answer
    if found := list(_missing(objects)):
        _refuse(found)
    print(_kubectl("apply", "--server-side", "--filename", "-", stdin=text), end="")


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
