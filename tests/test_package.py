"""The package that users install: its public names, its extras, its wheel, and one name for every module."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import longview
from longview.actors.task import load_task
from longview.cluster.commands.common import EXTRAS
from tests.conftest import COMMON_IMPORTS, Forks

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(link.name for link in (ROOT / "longview").iterdir() if link.is_symlink())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "ray", "redis", "robosuite", "mujoco", "gym_pusht")


def python(script: str, *arguments: Any, executable: Path = Path(sys.executable)) -> tuple[int, str]:
    """Run a script in a new process: its exit code and all that it prints."""
    done = subprocess.run(
        [executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


# ---- public names


def test_importing_longview_loads_nothing_heavy() -> None:
    code, output = python("import sys, longview; dir(longview); print(*sys.modules)")
    assert code == 0, output
    assert not {*HEAVY, "numpy", "gymnasium"} & set(output.split())


@pytest.mark.parametrize("name", longview.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(longview, name) is not None
    assert name in dir(longview)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'longview' has no attribute 'Polcy'"):
        longview.Polcy  # type: ignore[attr-defined]  # noqa: B018


def test_images_have_the_tags_of_this_version() -> None:
    files = [ROOT / "docs" / "kubernetes.md", *(file for file in (ROOT / "k8s").rglob("*") if file.is_file())]
    tags = {
        (tag, str(file.relative_to(ROOT)))
        for file in files
        if "__pycache__" not in file.parts
        for tag in re.findall(r"longview:(\d[\w.]*)-c(?:pu|uda)", file.read_text())
    }
    assert {file for _, file in tags} >= {"docs/kubernetes.md", "k8s/Dockerfile", "k8s/base/run.yaml"}
    assert {tag for tag, _ in tags} == {longview.__version__}, tags


# ---- with the base alone


WITHOUT_EXTRAS = f"""
import sys
for name in {list(EXTRAS)}:
    sys.modules[name] = None
"""
"""Makes a process in which every module that only extras bring is absent."""

WITHOUT_PYDANTIC = """
import sys
sys.modules["pydantic"] = None
sys.argv[0] = "longview"
from longview.cluster.cli import main
main()
"""

ACT = """
import sys
import numpy as np
import longview

policy = longview.load_policy(sys.argv[1])
session = longview.PolicySession(policy, slots=1)
frame = {key: np.zeros((1, *array.shape), array.dtype) for key, array in policy.spec.observation.items()}
nothing = np.empty((0, *policy.spec.action.shape), np.float32)
rngs = [np.random.default_rng(0)]
(actions,) = session.act([0], [frame], [nothing], np.array([True]), policy.horizon.context, rngs)
print("acts:", actions.shape)
"""


@pytest.fixture(scope="module")
def base() -> Iterator[Forks]:
    """A process without extras, which forks to run commands."""
    with closing(Forks(COMMON_IMPORTS, WITHOUT_EXTRAS)) as forks:
        yield forks


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """An untrained policy."""
    from longview.learner.config import policy_config
    from longview.learner.policy import policy_to_bytes

    path = tmp_path / "policy.safetensors"
    path.write_bytes(policy_to_bytes(policy_config().make(load_task("return_point").spec)))
    return path


def test_without_extras_a_policy_acts(policy_file: Path) -> None:
    assert python(WITHOUT_EXTRAS + ACT, policy_file) == (0, "acts: (8, 2)\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Usage: longview"),
        (["store", "--help"], "Usage: longview store"),
        (["config", "return_point"], "context_length"),
    ],
)
def test_without_extras_the_command_line_explains_itself(
    base: Forks, arguments: list[str], said: str, tmp_path: Path
) -> None:
    code, output = base.run(tmp_path, arguments)
    assert code == 0, output
    assert said in output


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["demo", "--task", "counting"], "ray", "cluster"),
        (["demo", "--task", "lift"], "mujoco", "sim"),
        (["demo", "--task", "push_t", "demonstrations=."], "gym_pusht", "sim"),
        (["dashboards", "build"], "grafana_foundation_sdk", "monitoring"),
        (["serve", "runs/lift"], "websockets", "serve"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    base: Forks, arguments: list[str], module: str, extra: str, tmp_path: Path
) -> None:
    said = f"longview: this needs {module}: pip install 'longview[{extra}]'\n"
    assert base.run(tmp_path, arguments) == (2, said)


def test_a_module_that_no_extra_brings_keeps_its_traceback() -> None:
    code, output = python(WITHOUT_PYDANTIC, "demo", "--task", "counting")
    assert code == 1
    assert "Traceback" in output


def test_the_extra_of_every_requirement_is_known() -> None:
    """`numpy` is left out: the base brings it, and an extra only bounds its version."""
    names = {"pillow": "PIL", "rerun-sdk": "rerun"}
    wanted = {
        (names.get(name, name.replace("-", "_")), extra)
        for extra in sorted(set(EXTRAS.values()))
        for name in (re.split(r"[^\w-]", line)[0] for line in PROJECT["optional-dependencies"][extra])
    }
    modules = {module for module, _ in wanted} - {"numpy"}
    assert modules <= EXTRAS.keys()
    assert {(module, EXTRAS[module]) for module in modules} <= wanted


def test_the_page_of_dependencies_lists_each_under_its_extra() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    sections = {section.split("`")[1]: section for section in page.split("\n## ")[2:]}
    sections["base"] = page.split("\n## ")[1]
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all"}
    assert sections.keys() == {"base", *extras}
    for extra, lines in {"base": PROJECT["dependencies"], **extras}.items():
        for line in lines:
            name = re.split(r"[^\w-]", line)[0]
            assert re.search(rf"^\| [^|]*\b{name}\b", sections[extra], re.MULTILINE), f"{extra}: {name}"


# ---- what is built


def files_of_the_package() -> set[str]:
    files = (
        Path(path) / name for path, _, names in os.walk(ROOT / "longview", followlinks=True) for name in names
    )
    return {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of a clean copy of the repository, and a wheel made from that sdist.

    The copy is clean because a build/ that was left behind puts its own names into a wheel.
    """
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            copy = folder / "copy" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy, follow_symlinks=False)
    sdist = folder / build("sdist", folder / "copy", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, folder / build("wheel", unpacked, folder)


def build(what: str, source: Path, out: Path) -> str:
    """Build with setuptools, as pip does: the name of the file."""
    script = (
        "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"build_{what}", out],
        cwd=source,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()[-1]


def test_a_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with ZipFile(built[1]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert set(names) == files_of_the_package()
    assert {name.partition("/")[0] for name in names} == {"longview"}


def test_an_sdist_holds_the_package_and_what_builds_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert files_of_the_package() <= names
    assert {name.partition("/")[0] for name in names if name.endswith(".py")} == {"longview"}


def test_a_wheel_has_version_commands_and_entry_points(built: tuple[Path, Path]) -> None:
    with ZipFile(built[1]) as wheel:
        info = f"longview-{longview.__version__}.dist-info"
        lines = wheel.read(f"{info}/entry_points.txt").decode().split("\n")
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    for group, entries in groups.items():
        assert f"[{group}]" in lines
        assert {f"{name} = {place}" for name, place in entries.items()} <= set(lines)


@pytest.mark.slow
def test_the_base_alone_in_an_environment_of_its_own(
    built: tuple[Path, Path], policy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "venv"], check=True)
    bin = tmp_path / "venv" / "bin"
    install = [bin / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, built[1]], check=True)
    search = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"
    _, found = python(search, *EXTRAS, executable=bin / "python")
    assert set(found.split()) <= {"jinja2"}, "the base brings what only extras should"  # torch brings jinja2
    assert python(ACT, policy_file, executable=bin / "python") == (0, "acts: (8, 2)\n")
    for arguments, code, said in (
        (["--help"], 0, "Usage: longview"),
        (["config", "return_point"], 0, "context_length"),
        (["demo", "--task", "lift"], 2, "longview: this needs mujoco: pip install 'longview[sim]'"),
    ):
        done = subprocess.run([bin / "longview", *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n") <= 1) == (code, True), done.stderr
        assert said in done.stdout + done.stderr


# ---- one name each


BARE = "|".join(FOLDERS)
BARE_NAMES = re.compile(
    rf"""(?mx)
    (?: ^ | ; | ["'] ) \s* (?: from \s+ (?:{BARE}) [\w.]* \s+ import \b | import \s+ (?:{BARE}) \b )
    | (?: import_module | __import__ | importorskip | find_spec | run_module | setattr | delattr )
      \( \s* f?["'] (?:{BARE}) [."']
    | sys\.modules \[ \s* f?["'] (?:{BARE}) [."']
    | -m ["',\s]+ (?:{BARE}) [.\s"']
    """
)
"""Ways in which code, strings of code and commands name a module, with a folder as its package."""


def text_files() -> list[str]:
    """List the repository's text files, but the test that holds breaches of this rule as examples."""
    listed = subprocess.run(
        ["git", "grep", "-I", "--untracked", "--name-only", "-e", ""],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).exists() and name != "tests/test_layering.py"]


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    found = {
        f"{name}: {match[0].strip()}"
        for name in text_files()
        for match in BARE_NAMES.finditer((ROOT / name).read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        "import {0}",
        "import {0}.task as task",
        "    from {0}.task import Task",
        "from {0} import (",
        'script = "import {0}.config"',
        "import sys; from {0} import task",
        'import_module("{0}.task")',
        'monkeypatch.setattr("{0}.task.load_task", None)',
        'sys.modules["{0}"]',
        '[sys.executable, "-m", "{0}.cli"]',
        "python -m {0}.cli",
    ],
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_bare_name_is_found(line: str, folder: str) -> None:
    assert BARE_NAMES.search(line.format(folder))
    assert not BARE_NAMES.search(line.format(f"longview.{folder}"))


def test_every_module_is_importable_and_no_file_is_loaded_twice() -> None:
    names = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_the_package()
        if name.endswith(".py")
    )
    script = """
import importlib, sys
from collections import defaultdict
from pathlib import Path

from longview.cluster.roles.auth import choose_ray_auth

choose_ray_auth(None)
for name in sys.argv[1:]:
    importlib.import_module(name)
by_file = defaultdict(set)
for name, module in list(sys.modules.items()):
    if file := getattr(module, "__file__", None):
        by_file[Path(file).resolve()].add(name)
root = Path(sys.modules["longview"].__file__).resolve().parents[1]
folders = [root / name for name in ("longview", "actors", "cluster", "learner", "monitoring", "replay")]
ours = {file: names for file, names in by_file.items() if any(map(file.is_relative_to, folders))}
print(len(ours), *[names for names in ours.values() if len(names) > 1])
"""
    code, output = python(script, *names)
    assert code == 0, output
    assert output.splitlines()[-1] == str(len(names))
