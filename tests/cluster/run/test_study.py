"""Tests of study files: what is refused, and which cells are planned."""

import datetime
import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.cluster.commands.study import _show_plan
from longview.cluster.run.config import ConfigError
from longview.cluster.run.folder import RunError, append_row
from longview.cluster.run.study import (
    STUDIES,
    Cell,
    asked_by,
    demonstrations_of,
    estimated_core_hours,
    finished,
    plan,
    read_study,
    results_of,
    threads_of,
)
from longview.monitoring.study_report import write_study_report

ROOT = Path(__file__).parents[3]

TREE: dict[str, Any] = {
    "settings": {"evaluation.context_lengths": [1, 8, 64], "learner.steps": 200},
    "axes": {"task": ["return_point"], "data_scale": [0.5, 1]},
    "methods": {
        "each": {"trained": "each", "settings": {"learner.curriculum.kind": "fixed"}},
        "together": {},
    },
    "control": "together",
    "seeds": [0, 1],
    "looks": [50, 200],
}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(TREE, sort_keys=False))
    return file


def planned(file: Path, *overrides: str) -> list[Cell]:
    return plan(read_study(str(file), overrides)[0])


def test_a_grid_has_a_cell_for_each_place_method_and_seed(study_file: Path) -> None:
    cells = planned(study_file)
    assert Counter(cell.method for cell in cells) == {"each": 12, "together": 4, "together (again)": 4}
    assert [cell.seed for cell in cells] == [0] * 10 + [1] * 10
    first = cells[0]
    assert first.facts == {"task": "return_point", "data_scale": 0.5, "method": "each", "T_o": 1, "seed": 0}
    assert (first.lengths, first.config.learner.policy.context_length) == ((1,), 1)
    assert first.config.actors.demonstrations == 25
    assert first.config.learner.publish_every == 500, "settings of the task's own preset are kept"
    together, again = cells[3:5]
    assert (together.length, together.lengths) == (None, (1, 8, 64))
    assert (together.config.learner.seed, again.config.learner.seed) == (None, 1_000_000)
    assert together.config.seed == again.config.seed == 0
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_data_scale_counts_in_the_n_of_the_task_not_in_the_demonstrations_of_its_demo() -> None:
    """The demo of square has 200 demonstrations, the task's N is 50."""
    counts = {
        cell.place["data_scale"]: cell.config.actors.demonstrations
        for cell in plan(read_study("paper", ["axes.task=[square]", "seeds=[0]"])[0])
    }
    assert counts == {0.5: 25, 1: 50, 2: 100}


def test_cells_of_one_seed_share_demonstrations_of_the_largest_data_scale(study_file: Path) -> None:
    cells = planned(study_file)
    shared = demonstrations_of(cells)
    assert {shared[cell.settings].name for cell in cells if cell.seed == 0} == {
        shared[cells[0].settings].name
    }
    assert len({each.name for each in shared.values()}) == 2
    # Of the larger scale, and those to validate on.
    assert shared[cells[0].settings].config.actors.demonstrations == 50 + 8


def test_a_list_of_places_replaces_the_grid(study_file: Path) -> None:
    places = [{"learner.policy.size": "tiny"}, {"learner.policy.size": "small", "learner.steps": 300}]
    tree = {key: value for key, value in TREE.items() if key != "axes"} | {"places": places}
    study_file.write_text(yaml.safe_dump(tree))
    cells = planned(study_file, "seeds=[3]", "control=null")
    assert [(cell.config.learner.policy.size, cell.config.learner.steps) for cell in cells] == [
        *4 * [("tiny", 200)],
        *4 * [("small", 300)],
    ]
    results = results_of(read_study(str(study_file))[0], cells, {})
    assert {cell.place for cell in results.cells} == {"size tiny", "size small, steps 300"}


def test_the_hash_follows_from_settings_that_change_results(study_file: Path) -> None:
    def settings(*overrides: str) -> list[str]:
        return [cell.settings for cell in planned(study_file, "seeds=[0]", *overrides)]

    assert settings("actors.count=1", "replay.url=redis://elsewhere", "looks=[10]") == settings()
    assert not set(settings("learner.steps=300")) & set(settings())
    places = [settings(f"demonstrations={path}") for path in ("/here/a.hdf5", "there/a.hdf5", "/here/b.hdf5")]
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"learner.policy.widht": [1]}}, "learner.policy.widht; did you mean learner.policy.width"),
        ({"axes": {"tsak": ["lift"]}}, "unknown key tsak; did you mean task?"),
        ({"axis": {}}, "unknown key axis; did you mean axes?"),
        ({"methods": {"a": {"learner.steps": 3}}}, "methods.a: unknown key learner.steps"),
        ({"methods": {"a": {"trained": "some"}}}, "methods.a.trained"),
        ({"methods": {"a": {"settings": {"learners": 0}}}, "control": None}, "methods.a: learners"),
        ({"methods": {}}, "methods must name at least one method"),
        ({"methods": {"a": {}, "b": {}}, "control": None}, "two cells have the same settings"),
        ({"baseline": "nothing"}, "baseline must be one of each, together, not 'nothing'"),
        ({"settings": {"learner": {"steps": 3}}}, "settings: learner is a section"),
        ({"settings": {"evaluation.final_episodes": 9}}, "follows from the study's own key looks"),
        ({"settings": {"evaluation.episodes": 9}}, "settings: evaluation.episodes has no effect: cells are"),
        (
            {"axes": {"learner.policy.context_length": [8, 16]}},
            "axes: learner.policy.context_length has no effect: it follows from evaluation.context_lengths",
        ),
        ({"looks": [50, 50]}, "looks must ascend"),
        ({"looks": [49, 100, 491]}, "the first of looks [49, 100, 491] must be at least a tenth of the last"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"places": [{}]}, "axes and places exclude each other"),
        ({"methods": ["a", "b"]}, "methods must be names and what belongs to each, not ['a', 'b']"),
        ({"settings": ["a"]}, "settings must be names"),
        ({"axes": {"data_scale": []}}, "axes.data_scale must be a list of at least one value, not []"),
        ({"axes": {"data_scale": 2}}, "axes.data_scale must be a list of at least one value, not 2"),
        ({"axes": {"data_scale": ["x"]}}, "data_scale=x: data_scale must be a number above 0, not 'x'"),
        ({"axes": {"data_scale": [-1]}}, "data_scale must be a number above 0, not -1"),
        ({"axes": {"data_scale": [0]}}, "data_scale must be a number above 0, not 0"),
        (
            {"settings": {"learner.start_from": datetime.date(2026, 1, 2)}},
            "settings.learner.start_from: YAML reads 2026-01-02 as a date: write it in quotes",
        ),
        ({"axes": {}, "places": [{"seed": 7}]}, "places.0: seed follows from the study's own key seeds"),
        ({"axes": {}, "places": [{}, {"evaluation.final_episodes": 9}]}, "places.1: evaluation.final_epi"),
        ({"axes": {}, "places": [{"learner": {"steps": 3}}]}, "places.0: learner is a section"),
        ({"axes": {}, "places": [{"learner.steps": 3}]}, "learner.steps has no effect: every place"),
        ({"axes": {"learner.steps": [3]}}, "settings: learner.steps has no effect: every place gives"),
        (
            {"methods": {"a": {"settings": {"learner.steps": 3}}}, "control": None},
            "settings: learner.steps has no effect: every method gives its own",
        ),
        ({"methods": {"a": {"settings": {"task": "lift"}}}, "control": None}, "task is no setting of a"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(
    study_file: Path, changes: dict[str, Any], message: str
) -> None:
    study_file.write_text(yaml.safe_dump(TREE | changes))
    with pytest.raises(ConfigError) as raised:
        planned(study_file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=together", "expected a list of names, as in methods=[each, together], not 'together'"),
        ("methods=[tgether]", "unknown key methods.tgether; did you mean methods.together?"),
        ("methods=[each]", "control must be one of each, not 'together'"),
        ("axes.data_scale=[]", "axes.data_scale must be a list of at least one value, not []"),
        ("seeds=[2026-01-02]", "seeds.0: YAML reads 2026-01-02 as a date"),
        ("seed=3", "settings: seed follows from the study's own key seeds"),
        ("learner.curriculum={kind: fixed}", "learner.curriculum is a section"),
    ],
)
def test_a_wrong_override_is_refused(study_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_study(str(study_file), [override])
    assert message in str(raised.value)


def test_methods_are_chosen_by_name(study_file: Path) -> None:
    assert {cell.method for cell in planned(study_file, "methods=[together]", "seeds=[0]")} == {
        "together",
        "together (again)",
    }
    both, _ = read_study(str(study_file), ["methods=[together, each]"])
    assert both.reference == "each", "the file's order stays"


def test_an_override_sets_a_key_of_the_study_an_axis_or_a_setting(study_file: Path) -> None:
    study, _ = read_study(
        str(study_file), ["seeds=[7]", "axes.data_scale=[2]", "learner.steps=9", "at_once=3"]
    )
    assert (study.seeds, study.axes["data_scale"], study.at_once) == ((7,), (2,), 3)
    assert study.settings["learner.steps"] == 9
    for override, message in (("axes.seed=[1]", "unknown key axes.seed"), ("task=lift", "task is an axis")):
        with pytest.raises(ConfigError, match=message):
            read_study(str(study_file), [override])
    with pytest.raises(
        ConfigError, match="no study nothing: give a YAML file, or one of paper, quick, remedies"
    ):
        read_study("nothing")


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDIES.glob("*.yaml")))
def test_every_shipped_study_has_a_plan(name: str) -> None:
    few = ["axes.data_scale=[1]", "axes.learner.policy.architecture=[unet_cross]"] if name == "paper" else []
    study, file = read_study(name, [*few, "seeds=[0]"])
    cells = plan(study)
    assert file == Path(f"{name}.jsonl")
    assert {cell.method for cell in cells} >= study.methods.keys()
    assert study.control in study.methods


@pytest.mark.parametrize(
    "file",
    [file for folder in ("method", "study") for file in sorted((ROOT / "docs" / folder).glob("*.yaml"))],
    ids=lambda file: file.stem,
)
def test_the_tables_of_the_docs_follow_from_their_cells(file: Path) -> None:
    study, cells = read_study(str(file))
    assert {cell.settings for cell in plan(study)} == finished(cells).keys(), "the settings have changed"


def reports_of(section: str) -> list[list[str]]:
    """Return the arguments of the commands in a section that write the report of cells beside the page."""
    commands = re.findall(r"^longview study report (.*)$", section.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(command) for command in commands if "docs/study/" in command]


def tables_in(text: str) -> list[list[str]]:
    """Return the lines of each Markdown table."""
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)]


SECTIONS = [
    pytest.param(section, id=section.partition("\n")[0])
    for section in (ROOT / "docs" / "study.md").read_text().split("\n## ")
    if reports_of(section)
]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tables_of_a_section_are_those_that_its_commands_write(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    written = []
    for number, (name, *rest) in enumerate(reports_of(section)):
        overrides = [argument for argument in rest if "=" in argument]
        given = rest[rest.index("--cells") + 1] if "--cells" in rest else None
        study, beside = read_study(name, overrides)
        cells, rows = plan(study), finished(Path(given or beside))
        assert {cell.settings for cell in cells} <= rows.keys(), "the settings have changed"
        write_study_report(results_of(study, cells, rows), tmp_path / str(number))
        written += tables_in((tmp_path / str(number) / "tables.md").read_text())
    shown = [table for table in tables_in(section) if table[0] in {table[0] for table in written}]
    assert shown
    for table in shown:
        assert table in written


def test_a_last_line_that_was_cut_off_is_not_a_finished_cell(study_file: Path, tmp_path: Path) -> None:
    cells, file = planned(study_file), tmp_path / "cells.jsonl"
    rows = [
        {"settings": cell.settings, "success": {"1": {"successes": 1, "completed": 1, "episodes": 1}}}
        for cell in cells[:2]
    ]
    append_row(file, rows[0], sync=True)
    with file.open("a") as cut:
        cut.write(json.dumps(rows[1])[:-9])
    assert finished(file) == {cells[0].settings: rows[0]}
    append_row(file, rows[1], sync=True)
    assert finished(file) == {cells[0].settings: rows[0], cells[1].settings: rows[1]}
    results = results_of(read_study(str(study_file))[0], cells, finished(file))
    assert [cell.row is not None for cell in results.cells[:3]] == [True, True, False]
    assert results.cells[0].place == "data_scale 0.5", "the only task is not named"


def test_a_file_of_other_lines_is_refused(study_file: Path, tmp_path: Path) -> None:
    append_row(file := tmp_path / "evaluations.jsonl", {"version": 3})
    with pytest.raises(RunError, match=r"evaluations\.jsonl has lines that are no finished cells of a study"):
        finished(file)


def test_a_cell_takes_the_cpus_of_its_roles_but_no_more_than_there_are(study_file: Path) -> None:
    cell = planned(study_file)[0]
    for cpus, takes in ((1.0, 1.0), (2.0, 2.0), (64.0, 2.0)):
        assert asked_by(cell.config, {"CPU": cpus}, None) == {"CPU": takes}, "training first, then two actors"
    collecting = planned(study_file, "collect.kind=takeover")[0]
    for cpus, takes in ((2.0, 2.0), (64.0, 3.0)):
        assert asked_by(collecting.config, {"CPU": cpus}, None) == {"CPU": takes}, "all roles at a time"
        assert threads_of(collecting.config, {"CPU": takes}, None) == 1
    assert [threads_of(cell.config, {"CPU": cpus}, None) for cpus in (1.0, 2.0)] == [1, 2]
    assert threads_of(cell.config, {"CPU": 3.0}, "auto") == 1, "a rank reserves one CPU"
    assert asked_by(cell.config, {"CPU": 64.0, "GPU": 8.0}, "auto") == {"CPU": 3.0, "GPU": 1.0}
    assert 0 < estimated_core_hours(cell, 50, 2.0) < estimated_core_hours(cell, 200, 2.0) < 0.2
    assert estimated_core_hours(cell, 50, 2.0, trained=True) < estimated_core_hours(cell, 50, 2.0)


def test_a_dry_run_counts_what_later_looks_may_want(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _ = read_study(str(study_file), ["seeds=[0]", "axes.data_scale=[1]"])
    cells, file = plan(study), tmp_path / "cells.jsonl"

    def write(episodes: int) -> None:
        for cell in cells:
            counts = {"successes": 0, "completed": 0, "episodes": episodes}
            row = {"settings": cell.settings, "success": {str(at): counts for at in cell.lengths}}
            row["endings"] = {str(at): "f" * episodes for at in cell.lengths}
            append_row(file, row | {"minutes": {"train": 1.0}, "cores": 2.0})

    def said() -> str:
        _show_plan(study, cells, file, None)
        return capsys.readouterr().out.splitlines()[-1]

    assert f"{len(cells)} cells, 0 finished and 0 begun; until the last look they take about 0." in said()
    with_control, *_ = read_study("remedies", ["methods=[naive long, reversed history]", "seeds=[0]"])
    _show_plan(with_control, plan(with_control), file, None)
    left = re.findall(r"(reversed|naive long).* 0\.00 +(0\.\d\d)", capsys.readouterr().out)
    assert {name: float(hours) for name, hours in left}["reversed"] < float(dict(left)["naive long"])
    write(50)
    assert f"0 finished and {len(cells)} begun" in (begun := said())
    assert " 0.0 core-hours more" not in begun
    write(200)
    assert f"{len(cells)} finished and 0 begun; until the last look they take about 0.0" in said()
