"""What `make deploy` and `make scale` ask kubectl, and how they refuse."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from k8s.pods import Object

OVERLAYS = Path(__file__).parent / "overlays"
SHARED = Path(__file__).parent / "shared"
"""What all runs of the namespace have in common."""
NAMESPACE = "longview"


def built(overlay: str) -> str:
    """Return the manifests of a run, and of what all runs of the namespace share, as YAML.

    Args:
        overlay: name of a folder in overlays/.

    Raises:
        SystemExit: with code 2, no overlay has this name, or kustomize refuses it.
    """
    known = sorted(folder.name for folder in OVERLAYS.iterdir())
    if overlay not in known:
        refuse([f"OVERLAY must be one of {', '.join(known)}, not {overlay!r}"])
    return f"{kubectl('kustomize', str(SHARED))}---\n{kubectl('kustomize', str(OVERLAYS / overlay))}"


def live(kind: str, name: str) -> Object | None:
    """Return an object as the cluster has it; None if the cluster has no such object.

    Raises:
        SystemExit: with code 2, after printing kubectl's message, if it fails otherwise.
    """
    found = kubectl("get", kind, name, "--namespace", NAMESPACE, "--ignore-not-found", "--output", "json")
    return json.loads(found) if found.strip() else None


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it prints.

    Raises:
        SystemExit: with code 2, after printing kubectl's message, if it is missing or fails.
    """
    try:
        done = subprocess.run(
            ["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        refuse(["kubectl was not found: install version 1.27 or newer"])
    if done.returncode:
        refuse([f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"])
    return done.stdout


def refuse(reasons: Iterable[str]) -> NoReturn:
    """Print why nothing is done, and exit with code 2."""
    for reason in reasons:
        print(f"longview: {reason}", file=sys.stderr)
    raise SystemExit(2)
