"""Write what is made from other files: the Prometheus rules, the list of dashboards, and Ray's dashboard.

They are generated because kustomize takes neither a file from outside its folders nor a pattern of names, and
because Ray's dashboard fits the metrics of the Ray that it comes with.

make generated
"""

import json
from pathlib import Path

import yaml

from longview.monitoring.dashboards import TAG

HERE = Path(__file__).parent
MONITORING = HERE.parent / "monitoring"
RULES, RULES_OBJECT = MONITORING / "rules.yaml", HERE / "shared" / "prometheus-rule.yaml"
RAYS_DASHBOARD = HERE / "shared" / "ray.json"
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


def rays_dashboard() -> str:
    """Return Ray's own dashboard as JSON: nodes, CPUs, GPUs, memory, disks; with Longview's title and tag."""
    from longview.cluster.roles.ray import default_dashboard

    ours = {"title": "Longview: Ray", "uid": "longview-ray", "tags": [TAG]}
    return json.dumps(json.loads(default_dashboard()) | ours, indent=1, sort_keys=True) + "\n"


def _generated(origin: str, manifest: object) -> str:
    text = yaml.safe_dump(manifest, sort_keys=False, width=110)
    return f"# Made from {origin} by `make generated`.\n{text}"


if __name__ == "__main__":
    RULES_OBJECT.write_text(prometheus_rule())
    DASHBOARDS_LIST.write_text(dashboards())
    RAYS_DASHBOARD.write_text(rays_dashboard())
