"""Builds the Grafana dashboards in dashboards/*.json from the panels of `panels.py`, for Grafana 9 to 13.

Call it by `longview dashboards build`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from longview.monitoring.panels import DASHBOARDS, RED, RUN, Dashboard, Panel

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER = Path(__file__).parent / "dashboards"
TAG = "longview"

ANNOTATIONS = {
    "Published policies": ("purple", "published policy {{version}}", "policy_version"),
    "Evaluations": ("blue", "evaluated policy {{version}}", "evaluation_version"),
}
"""Marks in every plot, by name: colour, text, and the metric whose changes are marked."""
ANNOTATION_STEP = "1m"


def build(folder: Path = FOLDER) -> list[Path]:
    """Write every dashboard. The same panels always give the same bytes.

    Returns:
        The files written.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for dashboard in DASHBOARDS:
        files.append(folder / f"{dashboard.uid.removeprefix('longview-')}.json")
        files[-1].write_text(dashboard_json(dashboard))
    return files


def dashboard_json(dashboard: Dashboard) -> str:
    """Convert a dashboard to Grafana's classic JSON."""
    from grafana_foundation_sdk.builders import dashboard as builders
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType

    links = builders.DashboardLink("Longview").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    page = (
        builders.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(links.as_dropdown(False).include_vars(True).keep_time(True))
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    steps = "longview_env_steps_total"
    page.with_variable(_variable("task", "Task", f"label_values({steps}, task)", several=True))
    runs = f'label_values({steps}{{task=~"$task"}}, run)'
    page.with_variable(_variable("run", "Run", runs, several=False))
    if any(panel.repeat == "context_length" for panel in dashboard.panels):
        lengths = f"label_values(longview_success_ratio{RUN}, context_length)"
        page.with_variable(_variable("context_length", "T_o", lengths, several=True))
    for number, panel in enumerate(dashboard.panels, start=1):
        page.with_panel(_panel(panel).id(number))
    tree = json.loads(json.dumps(page.build(), cls=JSONEncoder))
    # The SDK's annotations lack the fields of Prometheus'.
    tree["annotations"] = {"list": list(_annotations())}
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def _source() -> "DataSourceRef":
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef("prometheus", "${datasource}")


def _variable(name: str, label: str, query: str, *, several: bool) -> "QueryVariable":
    """Make a choice of label values: one of them, or several of them with all chosen at first."""
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

    variable = (
        QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC if name == "context_length" else VariableSort.ALPHABETICAL_DESC)
        .multi(several)
        .include_all(several)
    )
    if several:
        variable.current(VariableOption(selected=True, text="All", value="$__all"))
    return variable


def _annotations() -> Iterable[dict[str, Any]]:
    """Make the marks in every plot. A value that a metric did not have a step ago is marked once."""
    for name, (color, text, metric) in ANNOTATIONS.items():
        series = f"longview_{metric}{RUN}"
        changed = f'count_values("version", {series} unless {series} == {series} offset {ANNOTATION_STEP})'
        yield _annotation(name, color, text, changed)
    yield _annotation(
        "Alerts", RED, "{{alertname}}", f'ALERTS{{alertname=~"Longview.+", alertstate="firing", {RUN[1:-1]}}}'
    )


def _annotation(name: str, color: str, text: str, expression: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expression,
        "step": ANNOTATION_STEP,
        "titleFormat": text,
        "useValueForTime": False,
    }


def _panel(panel: Panel) -> Any:
    """Make the SDK's panel. The SDK's kinds of panels share methods but no type."""
    made = _KINDS[panel.kind](panel)
    made.title(panel.title).description(panel.description).datasource(_source())
    made.span(panel.width).height(panel.height).unit(panel.unit)
    made.thresholds(_thresholds(panel.thresholds or {}))
    for reference, (legend, expression) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        made.with_target(_query(panel, legend, expression).ref_id(reference))
    if panel.maximum is not None:
        made.min(0).max(panel.maximum)
    if panel.repeat is not None:
        made.repeat(panel.repeat).repeat_direction("h")
    return made


def _query(panel: Panel, legend: str, expression: str) -> "Dataquery":
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    query = Dataquery().expr(expression).legend_format(legend)
    if panel.kind in ("bars", "table"):
        return query.instant().format(PromQueryFormat.TABLE)
    if panel.kind == "stat":  # over a range it would show the last number of a run that is long dead
        return query.instant().format(PromQueryFormat.TIME_SERIES)
    return query.range().format(
        PromQueryFormat.HEATMAP if panel.kind == "heatmap" else PromQueryFormat.TIME_SERIES
    )


def _thresholds(colors: Mapping[float, str]) -> Any:
    from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
    from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

    steps = [Threshold(None, "green" if colors else "blue")]
    steps += [Threshold(value, color) for value, color in colors.items()]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _stat(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, stat
    from grafana_foundation_sdk.models.common import BigValueColorMode, BigValueGraphMode, BigValueTextMode

    several = len(panel.queries) > 1 or "{{" in next(iter(panel.queries))
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE)
    )


def _legend() -> Any:
    from grafana_foundation_sdk.builders.common import VizLegendOptions
    from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement

    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST)
    return legend.placement(LegendPlacement.BOTTOM).show_legend(True)


def _lines(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models.common import (
        GraphTresholdsStyleMode,
        SortOrder,
        StackingMode,
        TooltipDisplayMode,
        VisibilityMode,
    )
    from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

    stacked = panel.kind == "stack"
    made = (
        timeseries.Panel()
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .show_points(VisibilityMode.NEVER)
        .line_width(1 if stacked else 2)
        .fill_opacity(40 if stacked else 0)
        .axis_soft_min(0)
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if panel.thresholds:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    if panel.band is not None:
        upper, lower = panel.band
        thin = DynamicConfigValue("custom.lineWidth", 0)
        filled = {"custom.fillBelowTo": lower, "custom.fillOpacity": 20}
        made.override_by_name(upper, [thin, *(DynamicConfigValue(*item) for item in filled.items())])
        made.override_by_name(lower, [thin])
    return made


def _by_length(made: Any, panel: Panel) -> Any:
    """Join a panel's queries side by side, with a row for each context length, ascending."""
    from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

    names = dict(zip((f"Value #{letter}" for letter in ascii_uppercase), panel.queries, strict=False))
    numbers, texts = (
        {"conversions": [{"targetField": "context_length", "destinationType": kind}], "fields": {}}
        for kind in ("number", "string")
    )
    columns = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(("context_length", *names))},
        "renameByName": {"context_length": "T_o", **names},
    }
    # Numbers are sorted rightly; texts are not drawn as a measure.
    for kind, options in (
        ("merge", {}),
        ("convertFieldType", numbers),
        ("sortBy", {"fields": {}, "sort": [{"field": "context_length"}]}),
        ("convertFieldType", texts),
        ("organize", columns),
    ):
        made.with_transformation(DataTransformerConfig(id_val=kind, options=options))
    return made


def _bars(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import barchart
    from grafana_foundation_sdk.models.common import VisibilityMode, VizOrientation

    made = barchart.Panel().x_field("T_o").orientation(VizOrientation.VERTICAL).group_width(0.8)
    return _by_length(made.show_value(VisibilityMode.AUTO).fill_opacity(70).legend(_legend()), panel)


def _table(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import table
    from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

    made = table.Panel().show_header(True)
    made.override_by_regexp("rate|from|to", [DynamicConfigValue("unit", "percentunit")])
    return _by_length(made, panel)


def _heatmap(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import heatmap

    return heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(panel.unit))


_KINDS = {
    "stat": _stat,
    "lines": _lines,
    "stack": _lines,
    "bars": _bars,
    "table": _table,
    "heatmap": _heatmap,
}
