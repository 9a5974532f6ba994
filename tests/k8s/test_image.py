"""Tests of the Dockerfile: every path it copies reaches Docker, and its base image is pinned."""

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.k8s.conftest import ROOT

DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")]


def copied() -> set[str]:
    """Return the paths of the repository that the Dockerfile copies."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return {path for line in lines for path in line.split()}


def let_through(path: str) -> bool:
    """Tell whether .dockerignore lets a path through: the last line that matches decides."""
    allowed = True
    for line in IGNORED:
        pattern = line.lstrip("!").removeprefix("**/")
        parents = [str(it) for it in (Path(path), *Path(path).parents)]
        if any(fnmatch.fnmatch(it, pattern) or fnmatch.fnmatch(Path(it).name, pattern) for it in parents):
            allowed = line.startswith("!")
    return allowed


def test_what_is_copied_exists_and_reaches_docker() -> None:
    assert {"pyproject.toml", "constraints.txt", "cluster", "k8s/drain.sh"} <= copied()
    assert [path for path in copied() if not (ROOT / path).exists() or not let_through(path)] == []


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "runs/a/config.yaml", "tests/conftest.py"]
)
def test_nothing_else_reaches_docker(path: str) -> None:
    assert not let_through(path)
    assert not let_through("cluster/__pycache__/cli.cpython-311.pyc")


def test_every_package_is_copied() -> None:
    folders = {link.name for link in (ROOT / "longview").iterdir() if link.is_symlink()}
    assert {"longview", *folders} <= copied()


def test_it_installs_what_longview_all_needs() -> None:
    (script,) = re.findall(r"python -c '(import tomllib.*?)'", DOCKERFILE, re.DOTALL)
    listed = subprocess.run(
        [sys.executable, "-c", script.replace("\\\n", "")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    names = re.search(r"\[(.*)\]", everything)
    assert names
    wanted = [*project["dependencies"], *(it for name in names[1].split(",") for it in extras[name])]
    assert sorted(listed) == sorted(wanted)


def test_the_cuda_variant_is_pinned_and_can_compile() -> None:
    pins = (ROOT / "k8s" / "constraints-cuda.txt").read_text().splitlines()
    names = {re.fullmatch(r"([\w-]+)==[\w.]+", pin)[1] for pin in pins}  # type: ignore[index]
    assert {"nvidia-cuda-runtime", "nvidia-nccl-cu13", "triton"} <= names
    ours = (ROOT / "constraints.txt").read_text()
    assert not names & set(re.findall(r"^([\w-]+)==", ours, re.MULTILINE)), "each is pinned once"
    (install,) = re.findall(r"^    cuda\) (.*) ;;", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"--constraint (\S+)", install) == ["constraints.txt", "constraints-cuda.txt"]
    # `learner.compile` asks for g++.
    (chosen,) = re.findall(r"^ +(\$\(test .*\)) \\$", DOCKERFILE, re.MULTILINE)
    for variant, packages in {"cpu": "", "cuda": "g++"}.items():
        said = subprocess.run(
            ["sh", "-c", f"echo {chosen}"], env={"TORCH": variant}, capture_output=True, text=True, check=True
        ).stdout
        assert said.strip() == packages


@pytest.mark.slow
def test_the_cuda_variant_resolves_to_what_is_pinned(tmp_path: Path) -> None:
    """The wheels take gigabytes, so uv looks up what pip would install, which downloads none of them."""
    (install,) = re.findall(r"^    cuda\) pip (install .*) ;;", DOCKERFILE, re.MULTILINE)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    asked = shlex.split(install.replace("constraints-cuda", "k8s/constraints-cuda"))
    command = [python, "-m", "uv", "pip", *asked, "--dry-run", "--no-cache", "--python", python]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    pins = pinned("k8s/constraints-cuda.txt")
    installed = set(re.findall(r"^ \+ (\S+)$", found.stderr, re.MULTILINE))
    assert pins <= installed
    assert {it.split("==")[0] for it in installed - pins - pinned("constraints.txt")} <= {"setuptools"}


def pinned(file: str) -> set[str]:
    """Return a file's pins, with names as uv writes them."""
    return {line.lower().replace("_", "-") for line in (ROOT / file).read_text().splitlines()}


def test_the_base_is_pinned_and_every_stage_starts_from_it() -> None:
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base[1])
    assert {line.split()[1] for line in re.findall(r"^FROM .*$", DOCKERFILE, re.MULTILINE)} == {"${BASE}"}


def test_it_runs_as_the_user_that_the_manifests_name() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "runAsUser: 10001" in (ROOT / "k8s" / "base" / "run.yaml").read_text()


@pytest.mark.parametrize("script", ["drain.sh", "base/start-redis.sh", "install-kustomize.sh"])
def test_scripts_parse_and_fail_without_arguments(script: str) -> None:
    file = ROOT / "k8s" / script
    shell = file.read_text().splitlines()[0].removeprefix("#!").split()
    subprocess.run([*shell, "-n", file], check=True)
    without = subprocess.run([*shell, file], capture_output=True, check=False)
    assert without.returncode != 0
