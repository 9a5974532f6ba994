"""Builds the Grafana dashboards in dashboards/*.json from the panels of `panels.py`, for Grafana 10 to 13.

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
    # A run has a phase from its start, and tasks and lengths once actors have come.
    page.with_variable(_variable("run", "Run", "label_values(longview_phase, run)"))
    page.with_variable(_variable("task", "Task", f"label_values(longview_env_steps_total{RUN}, task)"))
    if any(panel.repeat for panel in dashboard.panels):
        lengths = f"label_values(longview_success_ratio{RUN}, context_length)"
        page.with_variable(_variable("context_length", "T_o", lengths))
    for number, panel in enumerate(dashboard.panels, start=1):
        if panel.repeat:
            page.with_row(builders.Row("$run").repeat("run").id(number + len(dashboard.panels)))
        page.with_panel(_panel(panel).id(number))
    tree = json.loads(json.dumps(page.build(), cls=JSONEncoder))
    # The SDK's annotations lack the fields of Prometheus'.
    tree["annotations"] = {"list": list(_annotations())}
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def _source() -> "DataSourceRef":
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef("prometheus", "${datasource}")


def _variable(name: str, label: str, query: str) -> "QueryVariable":
    """Make a choice of label values, with all chosen at first. All is also what has no such label yet."""
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

    return (
        QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC if name == "context_length" else VariableSort.ALPHABETICAL_DESC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


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
    made.span(panel.width).height(panel.height)
    made.thresholds(_thresholds(panel.thresholds or {}))
    for reference, (legend, expression) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        made.with_target(_query(panel, legend, expression).ref_id(reference))
    if panel.kind == "curve":  # the context lengths have neither the values' unit nor their range
        for name in panel.queries:
            made.override_by_name(name, _settings({"unit": panel.unit, "min": 0, "max": panel.maximum}))
    else:
        made.unit(panel.unit)
        if panel.maximum is not None:
            made.min(0).max(panel.maximum)
    if panel.repeat is not None:
        made.repeat(panel.repeat).repeat_direction("h")
    elif panel.kind in ("curve", "table"):
        made.title(f"{panel.title}, $run").repeat("run").repeat_direction("v")
    if panel.names is not None:
        made.mappings([_words(panel.names)])
    return made


def _words(names: Mapping[int, str]) -> Any:
    """Make the words that are shown in place of values."""
    from grafana_foundation_sdk.models.dashboard import ValueMap, ValueMappingResult

    return ValueMap(options={str(value): ValueMappingResult(text=word) for value, word in names.items()})


def _query(panel: Panel, legend: str, expression: str) -> "Dataquery":
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    one_run = panel.band or panel.kind in ("curve", "table", "heatmap")
    query = Dataquery().expr(expression).legend_format(legend if one_run else f"{{{{run}}}} {legend}")
    if panel.kind in ("curve", "table"):
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
        .text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.AUTO)
    )


def _legend() -> Any:
    from grafana_foundation_sdk.builders.common import VizLegendOptions
    from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement

    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST)
    return legend.placement(LegendPlacement.BOTTOM).show_legend(True)


def _tooltip() -> Any:
    from grafana_foundation_sdk.builders.common import VizTooltipOptions
    from grafana_foundation_sdk.models.common import SortOrder, TooltipDisplayMode

    return VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)


def _settings(values: Mapping[str, object]) -> list[Any]:
    """Make settings of a single series."""
    from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

    return [DynamicConfigValue(name, value) for name, value in values.items()]


def _banded(made: Any, panel: Panel) -> Any:
    """Fill the area between the two series that are the ends of a panel's interval."""
    if panel.band is not None:
        upper, lower = panel.band
        thin = {"custom.lineWidth": 0, "custom.showPoints": "never"}
        fill = {"custom.fillBelowTo": lower, "custom.fillOpacity": 20}
        made.override_by_name(upper, _settings(thin | fill))
        made.override_by_name(lower, _settings(thin))
    return made


def _lines(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode, StackingMode, VisibilityMode

    stacked = panel.kind == "stack"
    made = (
        timeseries.Panel()
        .legend(_legend())
        .tooltip(_tooltip())
        .show_points(VisibilityMode.NEVER)
        .line_width(1 if stacked else 2)
        .fill_opacity(40 if stacked else 0)
        .axis_soft_min(0)
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if panel.thresholds:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    return _banded(made, panel)


def _by_length(made: Any, panel: Panel) -> Any:
    """Join a panel's queries side by side, with a row for each context length, ascending."""
    from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

    names = dict(zip((f"Value #{letter}" for letter in ascii_uppercase), panel.queries, strict=False))
    numbers = {"conversions": [{"targetField": "context_length", "destinationType": "number"}], "fields": {}}
    columns = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(("context_length", *names))},
        "renameByName": {"context_length": "T_o", **names},
    }
    for kind, options in (
        ("merge", {}),
        ("convertFieldType", numbers),
        ("sortBy", {"fields": {}, "sort": [{"field": "context_length"}]}),
        ("organize", columns),
    ):
        made.with_transformation(DataTransformerConfig(id_val=kind, options=options))
    return made


def _curve(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import trend
    from grafana_foundation_sdk.models.common import VisibilityMode

    made = trend.Panel().x_field("T_o").legend(_legend()).tooltip(_tooltip())
    made.show_points(VisibilityMode.ALWAYS).line_width(2).fill_opacity(0)
    return _banded(_by_length(made, panel), panel)


def _table(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import table

    made = table.Panel().show_header(True)
    made.override_by_regexp("/ (rate|from|to)$/", _settings({"unit": "percentunit"}))
    return _by_length(made, panel)


def _heatmap(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import heatmap

    made = heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(panel.unit))
    return made.show_tooltip().show_y_histogram()


_KINDS = {
    "stat": _stat,
    "lines": _lines,
    "stack": _lines,
    "curve": _curve,
    "table": _table,
    "heatmap": _heatmap,
}
