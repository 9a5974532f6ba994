"""Who may import whom: the table of docs/architecture.md, held against every file's imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "cluster", "k8s", "learner", "monitoring", "replay")

PROJECT = {
    "replay": (),
    "monitoring": (),
    "actors": ("replay", "monitoring"),
    "learner": ("longview.replay.episode", "monitoring"),
    "cluster": ("replay", "monitoring", "actors", "learner"),
    "k8s": ("longview.cluster.run.config",),
}
THIRD_PARTY = {
    "replay": {"numpy", "redis", "msgpack", "zstandard", "xxhash", "zarr", "h5py", "pyarrow", "av", "PIL"},
    "monitoring": {
        *("prometheus_client", "matplotlib", "jinja2", "PIL", "av"),
        *("grafana_api", "grafana_foundation_sdk"),
    },
    "actors": {"numpy", "gymnasium"},
    "learner": {"numpy", "torch", "safetensors"},
    "cluster": {"numpy", "pydantic", "ray", "rich", "torch", "typer", "yaml"},
    "k8s": {"yaml"},
}
SIMULATORS = {"robosuite", "mujoco", "numba", "gym_pusht"}
"""Only below actors/tasks, and only inside functions."""
SIMULATED = {"longview.actors.tasks.osc", "longview.actors.tasks.table"}
"""Modules that import simulators themselves, and are imported like one."""
LAZY = {
    "replay": {"zarr", "h5py", "pyarrow", "av", "PIL"},
    "monitoring": {"matplotlib", "jinja2", "PIL", "av", "grafana_api", "grafana_foundation_sdk"},
    "cluster": {"torch", "learner"},
    "actors": SIMULATORS,
}
"""Only inside functions."""

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether only when a function is called (or types are checked)."""
    tree = ast.parse(path.read_text())
    inside = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}", lazy
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "__import__"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value), lazy


def breaches(path: Path) -> Iterator[str]:
    folder = path.relative_to(ROOT).parts[0]
    in_tasks = path.parent == ROOT / "actors" / "tasks"
    simulated = ".".join(path.relative_to(ROOT).with_suffix("").parts) in SIMULATED
    for module, lazy in imports(path):
        top = module.partition(".")[0]
        allowed_here = THIRD_PARTY[folder] | (SIMULATORS if in_tasks else set())
        if top in FOLDERS and top != folder:
            if not any(module == name or module.startswith(f"{name}.") for name in PROJECT[folder]):
                yield f"{folder} must not import {module}"
        elif top != folder and top not in sys.stdlib_module_names and top not in allowed_here:
            yield f"{folder} must not import {module}"
        if module.rpartition(".")[0] in SIMULATED and not lazy and not simulated:
            yield f"{folder} may import {module} only inside a function"
        if (
            top in LAZY.get(folder, set())
            and not lazy
            and not simulated
            and module != "longview.learner.config.LearnerConfig"
        ):
            yield f"{folder} may import {module} only inside a function"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    assert list(breaches(path)) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("replay", "import torch"),
        ("replay", "import zarr"),
        ("replay", "from longview.actors.task import Task"),
        ("learner", "from longview.replay.store import EpisodeStore"),
        ("learner", "import ray"),
        ("actors", "from learner import policy"),
        ("actors", "import robosuite"),
        ("actors", "from longview.actors.tasks.osc import Arm"),
        ("monitoring", "import matplotlib"),
    ],
)
def test_a_breach_is_found(folder: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "wrong.py").write_text(line + "\n")
    assert list(breaches(tmp_path / folder / "wrong.py"))


def test_configs_and_specs_need_nothing_heavy() -> None:
    script = """
import sys
for name in ("torch", "ray", "robosuite", "mujoco", "gym_pusht", "zarr"):
    sys.modules[name] = None
from longview.cluster.run.config import read_config
from longview.actors.task import load_task, task_names
read_config(None)
[load_task(name).spec for name in task_names()]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
