"""Tests that acknowledged episodes survive kill -9 of Redis; benchmarks/durability.py does the killing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "durability.py"


@pytest.mark.parametrize(
    ("writers", "kills"), [(3, 2), pytest.param(8, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_what_was_acknowledged_is_there(tmp_path: Path, writers: int, kills: int) -> None:
    rows = measured(tmp_path, "--kills", kills, "--cuts", 0, "--writers", writers)
    check(rows, "killed", writers * kills)
    assert rows["missing_killed_always"]["value"] == 0
    assert rows["lost_seconds_killed_everysec"]["high"] <= 1.0


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not list(Path("/dev").glob("loop*")):
        pytest.skip("only root may make a file system whose power can be cut, on a loop device")
    rows = measured(tmp_path, "--kills", 0, "--cuts", 20)
    check(rows, "cut", 8 * 20)
    assert rows["missing_cut_always"]["value"] == 0
    # Redis itself may sync a second late when the disk is still busy with the sync before.
    assert rows["lost_seconds_cut_everysec"]["high"] <= 2.0


def measured(folder: Path, *options: object) -> dict[str, Any]:
    file = folder / "found.json"
    subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options), "--json", str(file)], check=True, timeout=1000
    )
    return {row["measure"]: row for row in json.loads(file.read_text())["rows"]}


def check(rows: dict[str, Any], end: str, episodes: int) -> None:
    for fsync in ("always", "everysec"):
        assert rows[f"acknowledged_{end}_{fsync}"]["value"] > 3 * episodes
        assert rows[f"broken_{end}_{fsync}"]["value"] == 0
