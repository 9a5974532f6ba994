"""Write the manifests that are made from other files: the Prometheus rules and the list of dashboards.

They are generated because kustomize takes neither a file from outside its folders nor a pattern of names.

make generated
"""

from pathlib import Path

import yaml

HERE = Path(__file__).parent
MONITORING = HERE.parent / "monitoring"
RULES, RULES_OBJECT = MONITORING / "rules.yaml", HERE / "base" / "prometheus-rule.yaml"
DASHBOARDS = MONITORING / "dashboards"
DASHBOARDS_LIST = DASHBOARDS / "kustomization.yaml"


def prometheus_rule() -> str:
    """Return monitoring/rules.yaml as the text of a PrometheusRule, which Prometheus' operator loads."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "longview", "labels": {"release": "prometheus"}},
        "spec": yaml.safe_load(RULES.read_text()),
    }
    return _generated("monitoring/rules.yaml", manifest)


def dashboards() -> str:
    """Return a kustomization that makes each of monitoring/dashboards/*.json a ConfigMap.

    The sidecar of Grafana's Helm chart finds them by their label.
    """
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
    return f"# Made from {origin} by `make generated`.\n{text}"


if __name__ == "__main__":
    RULES_OBJECT.write_text(prometheus_rule())
    DASHBOARDS_LIST.write_text(dashboards())
