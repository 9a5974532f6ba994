"""Redis is killed with -9 under writers; what was acknowledged is there. See benchmarks/durability.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "durability.py"


@pytest.mark.parametrize(
    ("writers", "kills"), [(3, 2), pytest.param(8, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_what_was_acknowledged_is_there(tmp_path: Path, writers: int, kills: int) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--writers", str(writers)]
    subprocess.run([*command, "--json", str(file)], check=True, timeout=1000)
    rows = {row["measure"]: row for row in json.loads(file.read_text())["rows"]}
    for fsync in ("always", "everysec"):
        assert len(rows[f"recovery_{fsync}"]["samples"]) == kills
        assert rows[f"acknowledged_{fsync}"]["value"] > 3 * writers * kills
        assert rows[f"broken_{fsync}"]["value"] == 0
    assert rows["missing_always"]["value"] == 0
    assert rows["lost_seconds_everysec"]["high"] <= 1.0
