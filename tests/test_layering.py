"""Who may import whom: the tables of docs/architecture.md, held against every file's imports."""

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
    "learner": ("replay.episode", "monitoring"),
    "cluster": ("replay", "monitoring", "actors", "learner"),
    "k8s": (
        *("cluster.driver.scaling", "cluster.roles.ray", "cluster.run.config"),
        "monitoring.dashboards",
    ),
}
"""Other folders, or modules of theirs, that a folder may import."""
ROOMS: dict[str, tuple[str, ...]] = {
    "replay": (),
    "replay.redis": ("replay",),
    "replay.store": ("replay", "replay.redis"),
    "replay.datasets": ("replay", "replay.store"),
    "actors": (),
    "actors.tasks": ("actors",),
    "learner": (),
    "learner.audit": ("learner",),
    "learner.policies.diffusion": ("learner",),
    "learner.policies.recurrent": ("learner",),
    "monitoring": (),
    "cluster.run": (),
    "cluster.views": ("cluster.run",),
    "cluster.roles": ("cluster.run",),
    "cluster.driver": ("cluster.run", "cluster.views", "cluster.roles"),
    "cluster.serving": (),
    "cluster.commands": (
        *("cluster.run", "cluster.views", "cluster.roles", "cluster.driver"),
        "cluster.serving",
    ),
    "cluster": (
        *("cluster.run", "cluster.views", "cluster.roles", "cluster.driver"),
        *("cluster.serving", "cluster.commands"),
    ),
    "k8s": (),
}
"""Rooms inside a folder, and the rooms of the same folder that each may import besides itself. A file belongs
to the room with the longest name that fits. `replay.store`, one file, is the store whatever keeps it."""
THIRD_PARTY = {
    "replay": {"numpy", "redis", "msgpack", "zstandard", "xxhash", "zarr", "h5py", "pyarrow", "av", "PIL"},
    "monitoring": {
        *("prometheus_client", "matplotlib", "jinja2", "PIL", "av"),
        *("grafana_api", "grafana_foundation_sdk", "rerun", "tensorboard", "wandb"),
    },
    "actors": {"numpy", "gymnasium"},
    "learner": {"numpy", "torch", "safetensors"},
    "cluster": {
        *("fsspec", "msgpack", "numpy", "pydantic", "ray", "rich", "torch", "typer", "websockets", "yaml"),
    },
    "k8s": {"yaml"},
}
SIMULATORS = {"robosuite", "mujoco", "numba", "gym_pusht"}
"""Only below actors/tasks, and only inside functions."""
SIMULATED = {"actors.tasks.osc", "actors.tasks.scenes", "actors.tasks.table"}
"""Modules that import simulators themselves, and are imported like one."""
LAZY = {
    "replay": {"zarr", "h5py", "pyarrow", "av", "PIL"},
    "monitoring": {
        *("matplotlib", "jinja2", "PIL", "av"),
        *("grafana_api", "grafana_foundation_sdk", "rerun", "tensorboard", "wandb"),
    },
    "cluster": {"fsspec", "torch", "longview.learner"},
    "actors": SIMULATORS,
    "learner": {"longview.learner.policies"},
}
"""Only inside functions."""
LIGHT = ("longview.learner.config", "longview.learner.files")
"""Modules of lazy folders that import nothing heavy."""

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module that a file imports, and whether only inside a function or for types."""
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


def below(module: str, names: object) -> bool:
    """Tell whether a module is one of these, or lies below one."""
    assert isinstance(names, tuple | set | dict)
    return any(module == name or module.startswith(f"{name}.") for name in names)


def room_of(module: str) -> str:
    """Return the room that a module, without `longview.`, belongs to."""
    return max((room for room in ROOMS if below(module, (room,))), key=len)


def breaches(path: Path) -> Iterator[str]:
    folder = path.relative_to(ROOT).parts[0]
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    in_tasks = path.parent == ROOT / "actors" / "tasks"
    allowed_here = THIRD_PARTY[folder] | (SIMULATORS if in_tasks else set())
    for module, lazy in imports(path):
        top, _, ours = module.partition(".")
        if top in FOLDERS and top != "k8s":
            yield f"{module} is imported as longview.{module}"
        elif top == "longview":
            other = ours.partition(".")[0]
            if other != folder and not below(ours, PROJECT[folder]):
                yield f"{folder} must not import {module}"
            elif other == folder and room_of(ours) not in (room_of(here), *ROOMS[room_of(here)]):
                yield f"{room_of(here)} must not import {room_of(ours)}, as by {module}"
        elif top not in sys.stdlib_module_names and top not in allowed_here | {folder}:
            yield f"{folder} must not import {module}"
        if ours.rpartition(".")[0] in SIMULATED and not lazy and here not in SIMULATED:
            yield f"{folder} may import {module} only inside a function"
        heavy = below(module, LAZY.get(folder, set())) and not below(module, LIGHT)
        if heavy and not lazy and not below(f"longview.{here}", LAZY[folder]) and here not in SIMULATED:
            yield f"{folder} may import {module} only inside a function"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_tables(path: Path) -> None:
    assert list(breaches(path)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("replay/wrong.py", "import torch"),
        ("replay/wrong.py", "import zarr"),
        ("replay/wrong.py", "from longview.actors.task import Task"),
        ("replay/wrong.py", "from longview.replay.redis import keys"),
        ("replay/redis/wrong.py", "from longview.replay.store import EpisodeStore"),
        ("learner/wrong.py", "from longview.replay.store import EpisodeStore"),
        ("learner/wrong.py", "import ray"),
        ("learner/wrong.py", "from longview.learner.policies.diffusion import noise"),
        ("learner/policies/recurrent/wrong.py", "from longview.learner.policies.diffusion import noise"),
        ("actors/wrong.py", "from longview.learner import policy"),
        ("actors/wrong.py", "import robosuite"),
        ("actors/wrong.py", "from longview.actors.tasks.osc import Arm"),
        ("actors/wrong.py", "from actors.task import Task"),
        ("cluster/run/wrong.py", "from longview.cluster.driver.orders import Orders"),
        ("cluster/views/wrong.py", "from longview.cluster.roles.ray import start"),
        ("cluster/run/wrong.py", "from longview.learner.policy import Policy"),
        ("monitoring/wrong.py", "import matplotlib"),
    ],
)
def test_a_breach_is_found(file: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line + "\n")
    assert list(breaches(tmp_path / file))


def test_configs_and_specs_need_nothing_heavy() -> None:
    script = """
import sys
for name in ("torch", "ray", "robosuite", "mujoco", "gym_pusht", "zarr"):
    sys.modules[name] = None
from longview.cluster.run.config import read_config
from longview.actors.task import load_task, task_names
for kind in ("diffusion", "recurrent"):
    read_config(None, [f"learner.policy.kind={kind}"])
[load_task(name).spec for name in task_names()]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
