"""Entries of docs/runbook.md. Their commands run up to the cluster; our own command line reads its calls."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from longview.cluster.cli import app
from tests.k8s.conftest import ROOT, build, find
from tests.k8s.test_guide import KUBECTL, MAKE, NOTED
from tests.monitoring.test_rules import ALERTS

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PROGRAMS = "in_head|in_redis|kubectl|longview|make|py-spy"
CODE = re.compile(rf"```sh\n(?P<block>.*?)```|`(?P<inline>(?:{PROGRAMS})\s[^`]+)`", re.DOTALL)

POD = r"app\.kubernetes\.io/component=([\w-]+)|longview-redis-RUN-\d"
"""How a command names pods: those of a component, or one of Redis' StatefulSet."""

# Programs of the head's pod that the runbook calls besides `longview` and `ray`.
IN_EVERY_IMAGE = {"tail", "ls", "df", "du"}


def commands(text: str) -> list[str]:
    """Return the shell commands of a text in their order: each block, and each command between backticks."""
    return [
        re.sub(r"^ +", "", found["block"], flags=re.MULTILINE) if found["block"] else found["inline"]
        for found in CODE.finditer(text)
    ]


def entry(name: str) -> str:
    """Return what the runbook says about an alert."""
    return RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def calls(program: str) -> list[list[str]]:
    """Return the arguments of each call of a program, directly or in the head's pod."""
    lines = [line for code in commands(RUNBOOK) for line in code.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(rf"(in_head )?{program} ", line)]
    return [found[found.index(program) + 1 :] for found in words]


def parse(arguments: list[str]) -> None:
    """Let the command line's own parser read a command, which is not executed.

    Raises:
        Exception: there is no such command, or it does not take these arguments.
    """
    command: Any = typer.main.get_command(app)
    left = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    command.make_context(command.name, left)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_in_the_runbook(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    for part in ("**Meaning.**", "**Likely causes.**", "**What to do.**"):
        assert part in entry(name)
    assert commands(entry(name).partition("**What to do.**")[2]), "it has no command"


def test_the_runbook_has_no_other_alerts() -> None:
    assert re.findall(r"^## (Longview\w+)$", RUNBOOK, re.MULTILINE) == list(ALERTS)


def test_every_command_runs_up_to_the_cluster(tmp_path: Path) -> None:
    kubectl, make = shutil.which("kubectl"), shutil.which("make")
    if kubectl is None or make is None:
        pytest.skip("kubectl or make is not installed")
    programs = {"kubectl": KUBECTL, "make": MAKE} | dict.fromkeys(("longview", "py-spy"), NOTED)
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    faults = tmp_path / "faults"
    for file in (faults, tmp_path / "constraints.txt"):
        file.touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "FAULTS": str(faults)}
    environment |= {"REAL": kubectl, "REAL_MAKE": make, "REPOSITORY": str(ROOT)}
    (functions,) = (code for code in commands(RUNBOOK) if "in_head() {" in code and "in_redis() {" in code)
    done = subprocess.run(
        ["bash", "-euc", "\n".join([functions, *commands(RUNBOOK)])],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, faults.read_text()) == (0, ""), done.stderr


def test_every_call_of_longview_is_one() -> None:
    found = calls("longview")
    assert {"status", "scale", "evaluate", "launch"} <= {arguments[0] for arguments in found}
    for arguments in found:
        parse(arguments)


@pytest.mark.parametrize(
    "wrong",
    ["stats RUN", "store list --run RUN", "store forget", "scale actors=2 RUN 4", "evaluate --context 8"],
)
def test_what_is_wrong_in_a_call_of_longview_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"stats|No such option|Missing parameter|extra argument"):
        parse(shlex.split(wrong))


def test_programs_in_the_head_are_there() -> None:
    programs = set(re.findall(r"\bin_head ([\w-]+)", "\n".join(commands(RUNBOOK))))
    assert programs - {"longview", "ray"} == programs & IN_EVERY_IMAGE


def containers(component: str) -> set[str]:
    """Return the names of the containers in the pods of a component, as they are deployed."""
    objects = list(yaml.load_all(build("production"), yaml.CSafeLoader))
    job, redis = find(objects, "RayJob")["spec"], find(objects, "StatefulSet")["spec"]
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [job["submitterPodTemplate"], redis["template"], *(group["template"] for group in groups)]
    (pod,) = (it for it in pods if it["metadata"]["labels"]["app.kubernetes.io/component"] == component)
    names = {container["name"] for container in pod["spec"]["containers"]}
    # KubeRay adds the autoscaler to the head.
    return names | {"autoscaler"} if component == "head" and cluster["enableInTreeAutoscaling"] else names


def test_every_container_is_one_of_its_pod() -> None:
    seen = set()
    for code in commands(RUNBOOK):
        pods = [(found.start(), found[1] or "redis") for found in re.finditer(POD, code)]
        for found in re.finditer(r"\s-c ([\w-]+)", code):
            component = [name for start, name in pods if start < found.start()][-1]
            assert found[1] in containers(component), code
            seen.add((component, found[1]))
        assert all(containers(component) for _, component in pods)
    assert {
        ("head", "ray-head"),
        ("head", "autoscaler"),
        ("redis", "redis"),
        ("learner", "ray-worker"),
    } <= seen


def test_pods_with_several_containers_are_asked_for_one() -> None:
    for code in commands(RUNBOOK):
        for line in code.replace("\\\n", " ").splitlines():
            if re.search(r"kubectl .*\b(?:exec|logs)\b", line) and (found := re.search(POD, line)):
                assert " -c " in line or len(containers(found[1] or "redis")) == 1, line
