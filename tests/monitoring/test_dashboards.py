"""Dashboards' files follow from monitoring/panels.py, and the panels fit the catalogue and the rules.
tests/cluster/test_prometheus.py asks every query of a real Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.monitoring import dashboards
from longview.monitoring.dashboards import FOLDER, build
from longview.monitoring.metrics import CATALOGUE
from longview.monitoring.panels import DASHBOARDS, HEARD, OVERVIEW, SUCCESS_BY_CONTEXT, Dashboard, Panel

RULES = yaml.safe_load((FOLDER.parent / "rules.yaml").read_text())["groups"][0]["rules"]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
NAME = r"longview[_:][a-z_:0-9]+"
PANELS = [(board.uid, panel) for board in DASHBOARDS for panel in board.panels]


def base(name: str) -> str:
    """Strip a part's suffix from a histogram's name."""
    return name if name in CATALOGUE else re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_files_are_current(tmp_path: Path) -> None:
    made = {file.name: file.read_text() for file in build(tmp_path)}
    kept = {file.name: file.read_text() for file in FOLDER.glob("*.json")}
    assert made == kept, "run `make generated`"


def test_each_names_only_what_exists() -> None:
    for file in FOLDER.glob("*.json"):
        text = file.read_text().replace("longview-", "")
        for name in set(re.findall(NAME, text)):
            assert name in RECORDED or base(name) in CATALOGUE, f"{file.name}: {name}"


def test_everything_that_is_measured_is_shown() -> None:
    expressions = " ".join(expression for _, panel in PANELS for expression in panel.queries.values())
    named = set(re.findall(NAME, expressions))
    for recorded in list(named & RECORDED.keys()):
        named |= set(re.findall(NAME, RECORDED[recorded]))
    named |= set(re.findall(NAME, " ".join(RECORDED[name] for name in named & RECORDED.keys())))
    assert CATALOGUE.keys() - set(map(base, named)) == set()
    assert RECORDED.keys() - named == set()


@pytest.mark.parametrize(("uid", "panel"), PANELS, ids=lambda value: getattr(value, "title", value))
def test_every_panel_says_what_it_shows(uid: str, panel: Panel) -> None:
    assert panel.description.endswith((".", "?"))
    assert panel.unit
    assert all('run=~"$run"' in expression for expression in panel.queries.values())
    if panel.band:
        assert set(panel.band) <= panel.queries.keys()
    if panel.maximum is not None:
        assert panel.unit == "percentunit"


def test_numbers_are_of_this_moment() -> None:
    for board in DASHBOARDS:
        tree = json.loads(dashboards.dashboard_json(board))
        (heard,) = (panel for panel in tree["panels"] if panel["title"] == HEARD.title)
        assert heard["gridPos"]["y"] == 0, "they say when they were last heard"
        stats = [target for panel in tree["panels"] if panel["type"] == "stat" for target in panel["targets"]]
        assert all(target["instant"] and not target.get("range") for target in stats)


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.title)
def test_panels_fill_their_rows_and_have_their_own_names(board: Any) -> None:
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)
    tree = json.loads(dashboards.dashboard_json(board))
    rows: dict[int, int] = {}
    for panel in tree["panels"]:
        place = panel["gridPos"]
        assert rows.get(place["y"], 0) == place["x"]
        rows[place["y"]] = place["x"] + place["w"]
    assert set(rows.values()) == {24}
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"])


def test_the_overview_fits_one_screen() -> None:
    tree = json.loads(dashboards.dashboard_json(OVERVIEW))
    # Grafana's unit of height is 30 pixels and a gap of 8; a screen of 1,080 has about 900 left for panels.
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in tree["panels"]) * 38 <= 900


def test_a_person_can_choose_and_move_on() -> None:
    for board in DASHBOARDS:
        tree = json.loads(dashboards.dashboard_json(board))
        names = [variable["name"] for variable in tree["templating"]["list"]]
        assert names[:3] == ["datasource", "run", "task"]
        (link,) = tree["links"]
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
        assert set(link["tags"]) <= set(tree["tags"])
        assert [mark["name"] for mark in tree["annotations"]["list"]] == [*dashboards.ANNOTATIONS, "Alerts"]
        sources = {panel["datasource"]["uid"] for panel in tree["panels"] if panel["type"] != "row"}
        assert sources == {"${datasource}"}


def test_several_runs_can_be_chosen_also_before_their_actors_have_come() -> None:
    for board in DASHBOARDS:
        tree = json.loads(dashboards.dashboard_json(board))
        run, task = (
            variable for variable in tree["templating"]["list"] if variable["name"] in ("run", "task")
        )
        assert run["query"]["query"] == "label_values(longview_phase, run)"
        for variable in (run, task):
            assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
        for panel in tree["panels"]:
            if panel["type"] in ("trend", "table"):
                assert panel["repeat"] == "run", "it joins series by their context length"
            elif panel["type"] in ("timeseries", "stat") and "repeat" not in panel:
                assert all(target["legendFormat"].startswith("{{run}}") for target in panel["targets"])


def overrides(panel: Any, name: str) -> dict[str, Any]:
    """Return what a panel sets for one of its series."""
    found = [it["properties"] for it in panel["fieldConfig"]["overrides"] if it["matcher"]["options"] == name]
    return {it["id"]: it["value"] for properties in found for it in properties}


def test_intervals_are_bands_and_distributions_say_their_numbers() -> None:
    seen = set()
    for board in DASHBOARDS:
        for panel, made in zip(board.panels, panels_of(board), strict=True):
            seen.add(panel.kind)
            if any(query.endswith("_upper") for query in " ".join(panel.queries.values()).split("{")):
                assert panel.band or panel.kind == "table", panel.title
            if panel.band:
                upper, lower = panel.band
                assert overrides(made, upper)["custom.fillBelowTo"] == lower
            if panel.kind == "curve":
                assert made["type"] == "trend"
                assert made["options"]["xField"] == "T_o"
                assert "unit" not in made["fieldConfig"]["defaults"], "a context length is no share"
                assert all(overrides(made, name)["unit"] == panel.unit for name in panel.queries)
            if panel.kind == "heatmap":
                assert made["options"]["tooltip"]["show"]
    assert {"curve", "heatmap", "lines"} <= seen


def panels_of(board: Dashboard) -> list[Any]:
    """Return a dashboard's panels as Grafana gets them."""
    panels = json.loads(dashboards.dashboard_json(board))["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def test_what_is_repeated_is_so_for_each_run() -> None:
    tree = json.loads(dashboards.dashboard_json(SUCCESS_BY_CONTEXT))
    row, panel = tree["panels"][-2:]
    assert (row["type"], row["repeat"]) == ("row", "run")
    assert (panel["repeat"], panel["repeatDirection"]) == ("context_length", "h")


def test_each_fits_a_config_map() -> None:
    assert len(list(FOLDER.glob("*.json"))) == len(DASHBOARDS)
    assert all(file.stat().st_size < 1_000_000 for file in FOLDER.glob("*.json"))
