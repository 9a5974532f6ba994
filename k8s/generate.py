"""Writes what the manifests have from elsewhere: alerts and rules, and the list of dashboards.

kustomize takes no file from outside its folders, and no pattern of files.

make manifests
"""

from pathlib import Path

import yaml

HERE = Path(__file__).parent
MONITORING = HERE.parent / "monitoring"
RULES, RULES_OBJECT = MONITORING / "rules.yaml", HERE / "base" / "prometheus-rule.yaml"
DASHBOARDS = MONITORING / "dashboards"
DASHBOARDS_LIST = DASHBOARDS / "kustomization.yaml"


def prometheus_rule() -> str:
    """The object for Prometheus' operator that holds monitoring/rules.yaml."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "longview", "labels": {"release": "prometheus"}},
        "spec": yaml.safe_load(RULES.read_text()),
    }
    return _generated("monitoring/rules.yaml", manifest)


def dashboards() -> str:
    """Makes each of monitoring/dashboards/*.json a ConfigMap for the sidecar of Grafana's chart."""
    manifest = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {"disableNameSuffixHash": True, "labels": {"grafana_dashboard": "1"}},
        "configMapGenerator": [
            {"name": f"longview-dashboard-{file.stem.replace('_', '-')}", "files": [file.name]}
            for file in sorted(DASHBOARDS.glob("*.json"))
        ],
    }
    return _generated("the dashboards in this folder", manifest)


def _generated(origin: str, manifest: object) -> str:
    text = yaml.safe_dump(manifest, sort_keys=False, width=110)
    return f"# Made from {origin} by `make manifests`.\n{text}"


if __name__ == "__main__":
    RULES_OBJECT.write_text(prometheus_rule())
    DASHBOARDS_LIST.write_text(dashboards())
