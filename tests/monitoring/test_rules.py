"""Prometheus' config, rules and alerts, checked by promtool and against the catalogue."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.cluster.driver.reports import SCRAPE_SECONDS
from longview.monitoring.metrics import CATALOGUE
from longview.monitoring.panels import ALERTS as ALERTS_PANEL

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", MONITORING / "prometheus.yml"),
        ("check", "rules", MONITORING / "rules.yaml"),
        ("test", "rules", Path(__file__).with_name("rules_test.yaml")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments: tuple[Any, ...]) -> None:
    run_promtool(*arguments)


def run_promtool(*arguments: Any) -> None:
    """Call promtool, which must find no fault; skip the test without it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool (Debian: apt install prometheus)")
    checked = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_read_metrics_that_exist() -> None:
    for rule in RULES:
        for name in re.findall(r"\blongview_\w+", rule["expr"]):
            found = CATALOGUE.get(name) or CATALOGUE[name.removesuffix("_bucket")]
            assert (found.kind == "histogram") == name.endswith("_bucket"), name
        assert set(re.findall(r"\blongview:[\w:]+", rule["expr"])) <= RECORDED


IN_EACH = "namespace", "run"
GROUPING = re.compile(r"\b(by|on|without|ignoring)\s*\(([^)]*)\)")
OPERATOR = 'on () controller_runtime_max_concurrent_reconciles{controller="rayjob"}'
"""Joins any run with what is known of KubeRay's operator, of which a cluster has one."""


def mixes_runs(expression: str) -> list[str]:
    """Return the parts of an expression that lose the namespace or run of series, or compare across them."""
    # Texts may hold parentheses.
    expression = re.sub(r'"[^"]*"', '""', expression.replace(OPERATOR, "on (namespace, run)"))
    faults = [
        found[0]
        for found in GROUPING.finditer(expression)
        if found[1] in ("without", "ignoring") or not set(IN_EACH) <= set(re.findall(r"\w+", found[2]))
    ]
    aggregations = "sum|min|max|avg|group|count|count_values|stddev|stdvar|quantile|topk|bottomk"
    faults += re.findall(rf"\b(?:{aggregations})\s*\(", expression)
    # `scalar` and `absent` lose all labels.
    return faults + re.findall(r"\b(?:scalar|vector|absent(?:_over_time)?)\s*\(", expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_keeps_namespaces_and_runs_apart(rule: dict[str, Any]) -> None:
    assert mixes_runs(rule["expr"]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(rate(longview_errors_total[10m]))",
        "sum by (namespace, role) (longview_actors)",
        "sum by (namespace, run_id) (longview_actors)",
        "sum by (run) (longview_actors)",
        "sum without (instance) (longview_actors)",
        "longview_actors / on (namespace) longview_actors_target",
        "longview_actors / ignoring (run) longview_actors_target",
        "longview_actors and on () longview_actors_target",
        "longview_actors > scalar(longview_actors_target)",
        "topk(1, longview_actors)",
    ],
)
def test_rules_that_mix_runs_are_found(wrong: str) -> None:
    assert mixes_runs(wrong)


def test_every_rule_is_tested() -> None:
    tests = yaml.safe_load(Path(__file__).with_name("rules_test.yaml").read_text())["tests"]
    queried = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", ()))
    assert {name for name in RECORDED if name not in queried} == set()
    cases = [case for test in tests for case in test["alert_rule_test"]]
    outcomes = {(case["alertname"], bool(case["exp_alerts"])) for case in cases}
    assert outcomes == {(name, fires) for name in ALERTS for fires in (True, False)}


def test_the_last_numbers_are_scraped() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert config["global"]["scrape_interval"] == f"{SCRAPE_SECONDS:g}s"
    on_kubernetes = yaml.safe_load_all((ROOT / "k8s" / "base" / "monitoring.yaml").read_text())
    (hub, *_) = next(on_kubernetes)["spec"]["podMetricsEndpoints"]
    assert (hub["port"], hub["interval"]) == ("hub", f"{SCRAPE_SECONDS:g}s")


@pytest.mark.parametrize(
    ("chosen", "minutes", "alerts"), [("r", 10, 0), ("r", 20, 1), (".*", 20, 1), ("s", 20, 0)]
)
def test_the_overview_counts_the_alerts_of_the_chosen_runs(
    chosen: str, minutes: int, alerts: int, tmp_path: Path
) -> None:
    # From minute 15 on, LongviewHubAway fires for run r.
    test = {
        "interval": "15s",
        "input_series": [
            {"series": 'longview_phase{namespace="n", run="r"}', "values": "2x20 stale _x200"},
            {"series": 'longview_phase{namespace="n", run="s"}', "values": "1x200"},
        ],
        "promql_expr_test": [
            {
                "expr": ALERTS_PANEL.queries["alerts"].replace("$run", chosen),
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": alerts}],
            }
        ],
    }
    tests = {"rule_files": [str(MONITORING / "rules.yaml")], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    run_promtool("test", "rules", tmp_path / "tests.yaml")
