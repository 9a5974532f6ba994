"""Deploy an overlay to the cluster that kubectl points at, after checking that it can work.

make deploy OVERLAY=local
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from textwrap import shorten
from typing import Any

import yaml

from k8s.check import SECRET_KEYS, config_map_of, job_of, problems, run_config, secret_of
from k8s.kubectl import NAMESPACE, OVERLAYS, built, kubectl, live, refuse
from k8s.pods import Object

RUNBOOK = "docs/runbook.md"
"""Path of the runbook in the repository; the alerts in monitoring/rules.yaml link to it."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a run that Kueue suspends and resumes."""
OPERATORS = {"ray.io": "KubeRay's operator", "monitoring.coreos.com": "Prometheus' operator"}


def main(overlay: str, runbook: str = "") -> None:
    """Check the overlay and the cluster, then apply the overlay.

    Args:
        overlay: name of a folder in overlays/.
        runbook: address of the page that alerts link to; by default the runbook of the clone's origin.

    Raises:
        SystemExit: with code 2, after printing what is wrong and what to do about it.
    """
    page = runbook or origins_runbook(_origin())
    text = linked(built(overlay), page)
    objects: list[Object] = list(yaml.safe_load_all(text))
    if found := problems(objects):
        refuse(found)
    kubectl("version")  # exits with kubectl's own message if the cluster does not answer
    if found := list(_missing(objects)):
        refuse(found)
    stays = list(unchanged(objects, overlay))
    # What `make scale` has changed is the overlay's again.
    print(kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=text), end="")
    print(*stays, sep="\n", end="\n" if stays else "")
    if page is None:
        print(
            "longview: the alerts do not link to the runbook, because this clone has no `origin` on the web. "
            f"To link them: make deploy OVERLAY={overlay} RUNBOOK=https://ADDRESS/OF/runbook.md",
            file=sys.stderr,
        )


def unchanged(objects: list[Object], overlay: str) -> Iterator[str]:
    """Say what applying these objects does not change about the run that is there, and what to do about it.

    A suspended run is told from one under way: what it resumes with is what was applied.

    Args:
        objects: what is to be applied.
        overlay: name of the overlay, for the commands.
    """
    job = job_of(objects)
    name = job["metadata"]["name"]
    there = live("rayjob", name)
    if there is None:
        return
    anew = (
        f"    kubectl -n {NAMESPACE} delete rayjob {name}\n"
        f"    kubectl -n {NAMESPACE} wait raycluster -l ray.io/originated-from-cr-name={name} --for=delete "
        f"--timeout=10m\n    make deploy OVERLAY={overlay}"
    )
    state = there.get("status", {}).get("jobDeploymentStatus", "")
    if state in ("Complete", "Failed"):
        yield f"RayJob {name} is {state}, and deploying does not start it again. To start it:\n{anew}"
        return
    changes = list(differences(there["spec"], job["spec"]))
    if (live("configmap", config_map_of(objects)) or {}).get("data") != {"run.yaml": run_config(objects)}:
        changes.append("run.yaml")
    if there["spec"].get("suspend") or state in ("Suspending", "Suspended"):
        yield "The run is suspended, and deploying does not resume it."
        if changes:
            yield "Resuming starts with this:"
        yield from (f"    {change}" for change in changes)
        if QUEUE in there["metadata"].get("labels", {}):
            yield "Kueue resumes it when the cluster has room."
        else:
            patch = """'{"spec":{"suspend":false}}'"""
            yield f"To resume:\n    kubectl -n {NAMESPACE} patch rayjob {name} --type merge -p {patch}"
        return
    if changes:
        yield "The run is under way and keeps what it began with. A further attempt would have:"
        yield from (f"    {change}" for change in changes)
        yield f"For another number of actors now: make scale OVERLAY={overlay} ACTORS=N"
        yield f"For all of it now (the run saves first, and resumes):\n{anew}"


def differences(there: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Name where an object in the cluster differs from the wanted one, apart from what the cluster added."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        for key, value in wanted.items():
            yield from differences(there.get(key), value, f"{path}.{key}".lstrip("."))
    elif isinstance(wanted, list) and isinstance(there, list):
        for index, (old, new) in enumerate(zip_longest(there, wanted)):
            yield from differences(old, new, f"{path}.{index}")
    elif there != wanted:
        new, old = (shorten(json.dumps(value), 60) for value in (wanted, there))
        yield f"{path}: {new} instead of {old}"


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
        if not kubectl("api-resources", "--api-group", group, "--output", "name").strip():
            yield (
                f"{OPERATORS[group]} is not installed (the cluster does not know {group}): "
                "docs/kubernetes.md says how to install it"
            )
    secret, template = secret_of(objects), "{{range $key, $value := .data}}{{$key}} {{end}}"
    found = kubectl(
        *("get", "secret", secret, "--namespace", NAMESPACE, "--ignore-not-found"),
        *("--output", f"go-template={template}"),
    )
    if absent := SECRET_KEYS - set(found.split()):
        made = " ".join(f'--from-literal={key}="$(openssl rand -hex 24)"' for key in sorted(SECRET_KEYS))
        yield (
            f"Secret {secret} has no {' and no '.join(sorted(absent))}; create it with\n"
            f"    kubectl apply --filename k8s/shared/namespace.yaml\n"
            f"    kubectl create secret generic {secret} --namespace {NAMESPACE} {made}"
        )
    for claim in (it for it in objects if it["kind"] == "PersistentVolumeClaim"):
        name = claim["spec"].get("storageClassName")
        if name and not kubectl("get", "storageclass", name, "--ignore-not-found"):
            yield f"StorageClass {name} does not exist: docs/kubernetes.md says how to create it"


if __name__ == "__main__":
    main(*sys.argv[1:])
