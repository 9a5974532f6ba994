"""Tests of a study's results and report, made from lines of finished cells."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longview.monitoring.study import (
    Comparison,
    Results,
    StudyCell,
    comparisons,
    control,
    pairs_at,
    plan_of,
    plan_warning,
    points,
    undecided,
    unfinished,
    verdicts,
    wanted,
)
from longview.monitoring.study_report import Table, _draw, _style, as_latex, write_study_report
from longview.monitoring.success import wilson_interval

LOOKS = (50, 100, 200)


def row(minutes: float = 3.0, **endings: str) -> dict[str, Any]:
    """Make a line of a finished cell; `endings` by T_o, such as `T8="ssw"`."""
    by_length = {name.removeprefix("T"): outcomes for name, outcomes in endings.items()}
    return {
        "success": {
            length: {
                "successes": outcomes.count("s"),
                "completed": outcomes.count("s") + outcomes.count("w"),
                "episodes": len(outcomes) - outcomes.count("i"),
            }
            for length, outcomes in by_length.items()
        },
        "endings": by_length,
        "training_steps": 1500,
        "minutes": {"train": 2.0, "evaluate": minutes - 2.0},
        "cores": 2.0,
    }


def cell(method: str, lengths: tuple[int, ...], found: dict[str, Any] | None, **more: Any) -> StudyCell:
    return StudyCell(more.get("place", ""), method, more.get("seed", 0), lengths, found)


def results(*cells: StudyCell, again: str = "joint (again)") -> Results:
    return Results("mine", cells, "long", "joint", again, LOOKS)


@pytest.fixture
def found() -> Results:
    """At T_o 64 `long` is better than `joint` after the first look; at T_o 8 both guess to the end."""
    guess = "sw" * 100
    return results(
        cell("long", (64,), row(T64="s" * 50)),
        cell("short", (8,), row(T8=guess)),
        cell("joint", (8, 64), row(T8=guess, T64="s" * 10 + "w" * 40)),
        cell("joint (again)", (8, 64), row(T8="s" * 120 + "w" * 80, T64="s" * 12 + "w" * 38)),
    )


def test_methods_are_compared_where_they_share_a_length_or_at_the_longest_of_each(found: Results) -> None:
    assert comparisons(found) == [
        Comparison("", "short", 8, "long", 64),
        Comparison("", "joint", 64, "long", 64),
    ]


def test_a_decided_point_is_evaluated_no_further(found: Results) -> None:
    verdict = verdicts(found)[Comparison("", "joint", 64, "long", 64)]
    assert (verdict.look, verdict.decided, verdict.pairs.lost) == (0, True, 40)
    # `short` at its T_o against `long` at 64 is decided as well; T_o 8 of `joint` is in no comparison.
    assert undecided(found) == {("", "joint", 8), ("", "joint (again)", 8)}
    half = results(*(each for each in found.cells if each.method != "joint"))
    assert undecided(half) == set()


def test_a_cell_has_finished_when_no_look_wants_more_of_it(found: Results) -> None:
    assert unfinished(found) == [(), (), (), ()]
    same = row(T8="sw" * 25)
    open_ = results(cell("long", (8,), same), cell("joint", (8,), same), cell("joint", (8,), None, seed=1))
    assert [each.row is not None for each in open_.cells] == [True, True, False]
    assert (wanted(open_, 0), wanted(open_, 1)) == ([(), (), (8,)], [(8,), (8,), (8,)])
    assert unfinished(open_) == [(8,), (8,), (8,)], "the next look wants more of all"


def test_a_row_of_another_plan_is_warned_of(found: Results, tmp_path: Path) -> None:
    assert plan_warning(found) is None, "rows of earlier versions tell no plan"
    plans = [plan_of(found), {"looks": [50], "comparisons": 2}]
    mixed = replace(
        found, cells=[*found.cells[:3], replace(found.cells[3], row=row(T8="s") | {"plans": plans})]
    )
    warning = plan_warning(mixed)
    assert warning is not None
    assert "(looks [50]) than the present one (looks [50, 100, 200])" in warning
    one_seed = [
        replace(each, row=each.row | {"plans": [plans[0] | {"seeds": [0, 1]}]})
        for each in found.cells
        if each.row
    ]
    assert "(seeds [0, 1]) than the present one (seeds [0])" in str(
        plan_warning(replace(found, cells=one_seed))
    )
    texts = {file.name: file.read_text() for file in write_study_report(mixed, tmp_path)}
    assert all("may exceed 5" in texts[name] for name in ("report.html", "tables.md", "tables.tex"))
    same = [replace(each, row=each.row | {"plans": plans[:1]}) for each in found.cells if each.row]
    assert plan_warning(replace(found, cells=same)) is None


def test_resumed_cells_are_marked_beside_their_cost(found: Results, tmp_path: Path) -> None:
    cells = [replace(each, row=each.row | {"resumed": True}) for each in found.cells if each.row]
    texts = {
        file.name: file.read_text() for file in write_study_report(replace(found, cells=cells), tmp_path)
    }
    assert "| joint | 1 (1 resumed) | 1,500 | > 2.0 | 3.0 | 0.10 |" in texts["tables.md"]
    assert "joint,1,1,1500" in texts["cost.csv"]


def test_the_control_arm_goes_on_as_long_as_its_method() -> None:
    same = row(T8="sw" * 25)
    found = results(cell("long", (8,), same), cell("joint", (8,), same), cell("joint (again)", (8,), same))
    assert undecided(found) == {("", name, 8) for name in ("long", "joint", "joint (again)")}


def test_a_point_that_stopped_early_has_the_interval_of_its_look(found: Results) -> None:
    by_key = {(point.method, point.length): point for point in points(found)}
    early, late = by_key["long", 64], by_key["joint", 8]
    assert early.level == pytest.approx(1 - 8.86e-5, rel=1e-3)
    assert early.interval == wilson_interval(50, 50, early.level)
    assert early.interval[0] < wilson_interval(50, 50)[0]
    assert 0.95 <= late.level < 0.96


def test_pairs_are_those_of_the_same_episode_and_wait_for_every_seed() -> None:
    ours = [row(T8="ssiw"), row(T8="sfff")]
    cells = [
        cell("long", (8,), row(T8="wsss"), seed=0),
        cell("long", (8,), row(T8="sfsf"), seed=1),
        *(cell("joint", (8,), each, seed=seed) for seed, each in enumerate(ours)),
    ]
    comparison = Comparison("", "joint", 8, "long", 8)
    pairs = pairs_at(results(*cells), comparison, 4)
    assert pairs is not None
    # The third episode of seed 0 is invalid, so it is no pair.
    assert (pairs.gained, pairs.lost, pairs.of) == (1, 2, 7)
    assert pairs_at(results(*cells), comparison, 5) is None
    waiting = results(*cells[:3], cell("joint", (8,), None, seed=1))
    assert pairs_at(waiting, comparison, 4) is None


def test_the_control_shows_what_a_training_seed_changes(found: Results) -> None:
    pairs = control(found)
    assert pairs[Comparison("", "joint (again)", 8, "joint", 8)].of == 200
    assert pairs[Comparison("", "joint (again)", 64, "joint", 64)].difference == pytest.approx(0.04)


def test_the_report_is_written_in_every_format(found: Results, tmp_path: Path) -> None:
    waiting = results(*found.cells, cell("joint", (8, 64), None, place="scale <2>"))
    written = write_study_report(waiting, tmp_path / "report")
    assert all(file.exists() for file in written)
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", written[0].read_text()))
    for expected in (
        "4 of 5 cells have finished",
        "long 100.0 % (76–100) 2.0",
        "joint 64 long 64 50 −80.0 0 40 &lt; 0.0001 1 4.0 worse",
        "Noise of training",
        "Memory, apart from skill",
        "joint 50.0 % (43–57) of 200 20.0 % (11–33) of 50",
        "joint 1 1,500 2.0 3.0 0.10",
    ):
        assert expected in page, expected
    assert "data:image/png;base64," in written[0].read_text()
    assert "http" not in page
    by_name = {file.name: file.read_text() for file in written}
    assert (
        "| joint | 64 | long | 64 | 50 | −80.0 | 0 | 40 | < 0.0001 | 1 | 4.0 | worse |"
        in by_name["tables.md"]
    )
    assert (
        "joint & 64 & long & 64 & 50 & $-$80.0 & 0 & 40 & $<$ 0.0001 & 1 & 4.0 & worse"
        in by_name["tables.tex"]
    )
    rows = list(csv.DictReader(by_name["success.csv"].splitlines()))
    assert [(each["method"], each["T_o"], each["successes"], each["episodes"]) for each in rows][:2] == [
        ("long", "64", "50", "50"),
        ("short", "8", "100", "200"),
    ]


def test_several_seeds_are_told_apart(tmp_path: Path) -> None:
    cells = [cell("long", (8,), row(T8="s" * 40 + "f" * 10), seed=seed) for seed in (0, 1)]
    cells += [cell("joint", (8,), None, seed=0), cell("joint", (8,), row(T8="f" * 50), seed=1)]
    files = {file.name: file.read_text() for file in write_study_report(results(*cells), tmp_path)}
    assert "|  | seed 0 | seed 1 |" in files["tables.md"]
    assert "| long | 40 of 50 | 40 of 50 |\n| joint |  | 0 of 50 |" in files["tables.md"]
    cells = [cell("each", (at,), row(**{f"T{at}": "s" * at}), seed=0) for at in (8, 64)]
    cells += [cell("each", (8,), row(T8="f" * 50), seed=1), cell("each", (64,), None, seed=1)]
    files = {file.name: file.read_text() for file in write_study_report(results(*cells), tmp_path)}
    assert "| each | 64 of 64 |  |" in files["tables.md"], "none at the longest T_o"


def test_only_where_memory_can_go_wrong_is_told_what_was_remembered(found: Results, tmp_path: Path) -> None:
    clumsy = results(
        cell("long", (8,), row(T8="s" * 30 + "f" * 20)),
        cell("long", (8,), row(T8="f" * 50), place="side"),
        cell("joint", (8,), row(T8="s" * 9 + "w" * 3 + "f" * 38), place="side"),
    )
    (tables,) = (file for file in write_study_report(clumsy, tmp_path) if file.name == "tables.md")
    section = tables.read_text().partition("### Memory")[2].partition("###")[0]
    assert "| side, long | none completed |\n| side, joint | 75.0 % (47–91) of 12 |" in section
    assert "| long" not in section


def test_a_study_without_a_finished_cell_has_a_report(tmp_path: Path) -> None:
    nothing = results(cell("long", (8,), None), cell("joint", (8,), None))
    page = write_study_report(nothing, tmp_path)[0].read_text()
    assert "Nothing has been evaluated." in page
    assert undecided(nothing) == {("", "long", 8), ("", "joint", 8)}


def test_every_arm_has_a_style_of_its_own_and_a_single_length_a_row(tmp_path: Path) -> None:
    styles = [_style(index) for index in range(40)]
    assert len({(each["color"], each["marker"], each["linestyle"]) for each in styles}) == 40
    single = [cell(f"remedy {index}", (64,), row(T64="sf" * 25)) for index in range(16)]
    several = [cell(f"curve {index}", (1, 8, 64), row(T1="f", T8="s", T64="s")) for index in range(6)]
    here = {each.method: [each] for each in points(results(*several, *single)) if each.length == 64}
    lines = {each.method: [p for p in points(results(each)) if p.method == each.method] for each in several}
    file = tmp_path / "plot.png"
    figure = _draw(here | lines, list(here | lines), file)
    curves, rows = figure.axes
    assert len(rows.get_yticklabels()) == 16
    width, height = figure.get_size_inches() * figure.dpi
    for box in (curves.get_legend().get_window_extent(), rows.get_tightbbox()):
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("a@b", "a@b"),
        ("a\\b", "a\\textbackslash{}b"),
        ("x^2~y", "x\\textasciicircum{}2\\textasciitilde{}y"),
        ("T_o 8 & my_name {1}", "$T_o$ 8 \\& my\\_name \\{1\\}"),
    ],
)
def test_names_stay_what_they_are_in_latex(name: str, latex: str) -> None:
    assert f"\n{latex} \\\\\n" in as_latex(Table("", "", ["x"], [[name]]))
