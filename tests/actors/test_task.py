"""Tasks by name: installed ones, and those of a module anywhere."""

import sys
from pathlib import Path

import pytest

from longview.actors.task import SimulatorError, UnknownTask, load_task, make_simulator, task_file
from longview.actors.tasks import counting
from longview.cluster.run.config import preset_file

TASK = """
from longview.actors.tasks.counting import spec, task as inner

expert = None


def make(render_mode=None):
    raise RuntimeError("no licence\\nfound")


class inside:
    task = inner
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, which is not on the Python path."""
    name = f"task_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def test_a_module_in_the_working_folder_is_a_task(module: str) -> None:
    assert load_task(f"{module}:").spec == counting.spec


def test_an_attribute_of_it_is_a_task(module: str) -> None:
    assert load_task(f"{module}:inside.task") is counting.task


def test_the_working_folder_hides_no_installed_package(module: str, tmp_path: Path) -> None:
    (tmp_path / "gymnasium.py").write_text("raise AssertionError('of the working folder')")
    load_task(f"{module}:")
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (
            "",
            "absent:task",
            "task absent:task cannot be loaded: ModuleNotFoundError: No module named 'absent'$",
        ),
        ("", "{module}:task", "AttributeError: module '{module}' has no attribute 'task'$"),
        ("x = 1 / 0", "{module}:", r"ZeroDivisionError: division by zero \({module}.py:1\)$"),
        ("spec = (", "{module}:", "SyntaxError: '\\(' was never closed"),
        ("expert = None", "{module}:", "{module}: is no task: it has no spec and no make$"),
        ("", ":task", "ValueError: Empty module name"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(
    module: str, tmp_path: Path, source: str, name: str, message: str
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(UnknownTask, match=message.format(module=module)) as caught:
        load_task(name.format(module=module))
    assert "\n" not in str(caught.value)


def test_any_exception_of_make_names_task_and_cause(module: str) -> None:
    message = rf"^task counting: its simulator cannot be made: RuntimeError: no licence \({module}.py:8\)$"
    with pytest.raises(SimulatorError, match=message):
        make_simulator(load_task(f"{module}:"))


def test_a_missing_simulator_names_task_and_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(
        SimulatorError, match=r"^task push_t: its simulator .* ModuleNotFoundError: .*gym_pusht"
    ):
        make_simulator(load_task("push_t"))


def test_a_preset_lies_beside_the_module(module: str, tmp_path: Path) -> None:
    assert preset_file(f"{module}:") is None
    preset = tmp_path / f"{module}.yaml"
    preset.write_text("seed: 3\n")
    assert preset_file(f"{module}:") == preset
    assert preset_file("absent:task") is preset_file("absent") is None


def test_the_file_of_a_task_is_found_without_running_it(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("1 / 0")
    assert task_file(f"{module}:task") == tmp_path / f"{module}.py"


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("return_point", {-1, 1}),
        ("grasp_and_return", {-1, 1}),
        ("push_and_return", set(range(5))),
        ("count_scoops", {0}),
    ],
)
def test_an_oracle_is_told_what_has_to_be_remembered(name: str, answers: set[int]) -> None:
    plain, told = load_task(name), load_task(name, oracle=True)
    assert told.spec.observation.keys() - plain.spec.observation.keys() == {"answer"}
    env, found = told.make(), set()
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        assert observation["answer"].shape == (1,)
        found.add(int(observation["answer"][0]))
    assert len(found) >= 2 or len(answers) == 1
    assert found <= answers
    env.close()


@pytest.mark.parametrize("name", ["lift", "counting"])
def test_a_task_without_memory_has_no_oracle(name: str) -> None:
    with pytest.raises(ValueError, match=f"task {name} has nothing to remember"):
        load_task(name, oracle=True)
