"""Change the number of a run's actors: first the room for them in its Ray cluster, then the run itself.

make scale OVERLAY=gpu ACTORS=32
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator

import yaml

from k8s.check import fits, job_of, need_of_actor, run_config
from k8s.kubectl import NAMESPACE, built, kubectl, live, refuse
from k8s.pods import Object
from longview.cluster.driver.scaling import parse
from longview.cluster.run.config import ConfigError


def main(overlay: str, actors: str) -> None:
    """Scale the run of an overlay, and wait until its actors are there.

    The new maximum also goes into the RayJob: a further attempt makes its Ray cluster from that.

    Args:
        overlay: name of a folder in overlays/.
        actors: wanted number of actors.

    Raises:
        SystemExit: with code 2, after printing why nothing is changed; else as `longview scale` exits.
    """
    try:
        wanted = parse(f"actors={actors}")
    except ConfigError as error:
        refuse([f"ACTORS: {error}"])
    objects = list(yaml.safe_load_all(built(overlay)))
    config = yaml.safe_load(run_config(objects))
    name = job_of(objects)["metadata"]["name"]
    job = live("rayjob", name)
    # A suspended run, and one whose cluster is still to come, have an empty name here, which kubectl refuses.
    there = job.get("status", {}).get("rayClusterName") if job else None
    cluster = live("raycluster", there) if there else None
    if job is None or cluster is None:
        refuse([f"RayJob {name} has no Ray cluster now: set actors.count in run.yaml, and `make deploy`"])
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        refuse(
            [
                "the Ray cluster has no autoscaler, so it keeps its size: change actors.count in run.yaml "
                f"and the sizes in groups.yaml, delete RayJob {name}, and `make deploy`"
            ]
        )
    here = ("--namespace", NAMESPACE)
    selector = f"ray.io/cluster={there},ray.io/node-type=head"
    head = kubectl("get", "pods", *here, "--selector", selector, "--output", "name").strip()
    if not head:
        refuse([f"Ray cluster {there} has no head now: try again when it is back"])
    # Both are made before the first is sent, so that a refusal changes nothing.
    patches = [
        (
            kind,
            item["metadata"]["name"],
            list(room(spec["workerGroupSpecs"], need_of_actor(config), wanted, at)),
        )
        for kind, item, spec, at in (
            ("rayjob", job, job["spec"]["rayClusterSpec"], "/spec/rayClusterSpec"),
            ("raycluster", cluster, cluster["spec"], "/spec"),
        )
    ]
    for kind, item, patch in patches:
        if patch:
            change = ("--type", "json", "--patch", json.dumps(patch))
            print(kubectl("patch", kind, item, *here, *change), end="")
    scale = ["longview", "scale", f"actors={wanted}", config["name"]]
    command = ["kubectl", "exec", *here, head, "--container", "ray-head", "--", *scale]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def room(groups: list[Object], actor: dict[str, float], wanted: int, path: str) -> Iterator[Object]:
    """Make a JSON patch that raises the maximum of a worker group; empty if the groups have room.

    A maximum is never lowered, since Ray's autoscaler gives back what is idle.

    Args:
        groups: worker groups of a Ray cluster.
        actor: what an actor takes, by name of the resource.
        wanted: number of actors.
        path: place of the cluster's spec in the object to patch.

    Raises:
        SystemExit: with code 2, no group can hold an actor.
    """
    places = [fits(group, actor) for group in groups]
    missing = wanted - sum(place * group["maxReplicas"] for place, group in zip(places, groups, strict=True))
    if missing <= 0:
        return
    if not any(places):
        refuse(["no worker group of this Ray cluster can hold an actor"])
    index = next(index for index, place in enumerate(places) if place)
    group, at = groups[index], f"{path}/workerGroupSpecs/{index}"
    yield {"op": "test", "path": f"{at}/groupName", "value": group["groupName"]}
    more = group["maxReplicas"] + math.ceil(missing / places[index])
    yield {"op": "replace", "path": f"{at}/maxReplicas", "value": more}


if __name__ == "__main__":
    main(*sys.argv[1:])
