"""Grafana's own components draw every panel of every dashboard, in a browser without a screen."""

import shutil
from pathlib import Path

import pytest

from longview.monitoring.panels import KUBERNETES
from tests.grafana.answers import LENGTHS, boards, looked_at
from tests.grafana.draw import bundle, draw

QUIET = {panel.title for panel in KUBERNETES} | {"Alerts"}
"""Panels that have nothing to show without a cluster, or while all is well."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_grafana_draws_every_panel(packages: Path, prometheus: str, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("not installed (Debian: apt install chromium)")
    bundle(packages, tmp_path)
    for name, board in boards().items():
        picture = tmp_path / f"{name}.png"
        panels = draw(board, looked_at(prometheus), tmp_path, picture)
        assert picture.stat().st_size > 20_000
        assert len(panels) == len([it for it in board["panels"] if it["type"] != "row"])
        for panel in panels:
            if panel["title"] in QUIET or panel["type"] == "heatmap":
                continue
            assert not {"error", "empty"} & set(panel), (name, panel)
            if panel["type"] in ("timeseries", "trend"):
                assert int(panel["ink"]) > 1000, (name, panel)
            if panel["type"] == "table":
                assert all(length in panel["text"] for length in LENGTHS), (name, panel)
                assert "50%30%70%" in panel["text"], (name, panel)  # a rate and its interval
            if panel["type"] == "stat":
                assert any(it.isdigit() for it in panel["text"]), (name, panel)
