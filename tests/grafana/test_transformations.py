"""Grafana's own transformations, from npm, make the fields that the dashboards' panels name."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from longview.monitoring.panels import KUBERNETES
from tests.grafana.answers import boards, frames, looked_at


def named(panel: Any) -> set[str]:
    """Return the fields that a panel's options name."""
    settings = [it for override in panel["fieldConfig"]["overrides"] for it in override["properties"]]
    below = {it["value"] for it in settings if it["id"] == "custom.fillBelowTo"}
    return below | {panel["options"][it] for it in ("xField",) if it in panel.get("options", {})}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_panel_gets_the_fields_that_it_names(packages: Path, prometheus: str) -> None:
    panels = [(name, it) for name, board in boards().items() for it in board["panels"] if it["type"] != "row"]
    view = looked_at(prometheus)
    asked = [
        {
            "transformations": panel.get("transformations", []),
            "matchers": [it["matcher"] for it in panel["fieldConfig"]["overrides"]],
            "frames": frames(view, panel),
        }
        for _, panel in panels
    ]
    done = subprocess.run(
        ["node", Path(__file__).with_name("transform.cjs")],
        env=os.environ | {"NODE_PATH": str(packages)},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    without = set()
    for (name, panel), question, shown in zip(panels, asked, json.loads(done.stdout), strict=True):
        if not question["frames"]:
            without.add(panel["title"])
            continue
        assert named(panel) <= set(shown["names"]), (name, panel["title"], shown["names"])
        assert 0 not in shown["matched"], (name, panel["title"], shown)
        if panel["type"] in ("trend", "table"):
            assert shown["names"][0] == "T_o"
            assert not any(it.startswith(("Value", "Time")) for it in shown["names"]), (
                panel["title"],
                shown["names"],
            )
    quiet = {panel.title for panel in KUBERNETES} | {"Alerts"}
    assert not without - quiet
