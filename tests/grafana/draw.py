"""Draw the dashboards with Grafana's own components, in a browser without a screen.

    python -m tests.grafana.draw --prometheus http://localhost:9090 --run NAME --context-length 8 FOLDER

writes FOLDER/overview.png and so on, with what that Prometheus has of the run at this moment. It needs npm,
node and chromium.
"""

import argparse
import html
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.grafana.answers import View, boards, frames

GRAFANA = "13.2.3"
"""Version of the newest Grafana that the dashboards are made for."""
PACKAGES = (
    f"@grafana/data@{GRAFANA}", f"@grafana/ui@{GRAFANA}", "@fontsource/inter@5", "react@19", "react-dom@19",
    "esbuild@0.25",
)  # fmt: skip
WIDTH, ROW = 1600, 38
"""Pixels of a dashboard's width, and of a row of its grid."""


def install(folder: Path) -> Path:
    """Install PACKAGES from npm into a folder, and return its `node_modules`."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "node_modules"


def bundle(packages: Path, folder: Path) -> None:
    """Write draw.js and draw.css into a folder: draw.jsx with all it imports.

    Args:
        packages: npm's folder `node_modules` with PACKAGES.
        folder: where the files are written.

    Raises:
        subprocess.CalledProcessError: with esbuild's messages in `stderr`.
    """
    command = [
        packages / ".bin" / "esbuild", Path(__file__).with_name("draw.jsx"), "--bundle", "--format=iife",
        *(f"--loader:.{kind}=dataurl" for kind in ("ttf", "woff", "woff2")), "--log-level=error",
        '--define:process.env.NODE_ENV="production"', f"--outfile={folder / 'draw.js'}",
    ]  # fmt: skip
    environment = os.environ | {"NODE_PATH": str(packages)}
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def draw(board: Any, view: View, folder: Path, picture: Path) -> list[dict[str, str]]:
    """Draw a dashboard, and return what its panels say of themselves; see draw.jsx.

    Args:
        board: the dashboard.
        view: what is looked at.
        folder: with what `bundle` wrote; a page is written there.
        picture: a PNG to write.

    Returns:
        For each panel but rows: "title", "type", "text", "ink" (pixels that its plots have drawn), and
        "error" or "empty" where there is nothing to see.
    """
    names = {"$run": view.run, "$context_length": view.context_length}
    asked = [
        {
            "panel": panel | {"title": re.sub(r"\$\w+", lambda it: names[it[0]], panel["title"])},
            "frames": frames(view, panel),
            "range": [1000 * (view.end - view.seconds), 1000 * view.end],
        }
        for panel in board["panels"]
    ]
    page, data = folder / f"{picture.stem}.html", json.dumps(asked).replace("</", "<\\/")
    page.write_text(
        '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="draw.css">'
        '<body style="background: #111217; margin: 8px"><div id="page"></div>'
        f"<script>window.panels = {data}; window.size = {{ width: {WIDTH}, row: {ROW} }}</script>"
        '<script src="draw.js"></script>'
    )
    height = 16 + ROW * max(it["gridPos"]["y"] + it["gridPos"]["h"] for it in board["panels"])
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--allow-file-access-from-files", f"--user-data-dir={profile}", "--virtual-time-budget=8000",
            f"--window-size={WIDTH + 16},{height}",
        ]  # fmt: skip
        command += [f"--screenshot={picture}", "--dump-dom", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (found,) = re.findall(r'<pre id="panels"[^>]*>(.*?)</pre>', shown.stdout, re.DOTALL)
    panels: list[dict[str, str]] = json.loads(html.unescape(found))
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--run", required=True)
    parser.add_argument("--context-length", required=True, metavar="T_o", help="of panels that show one")
    parser.add_argument("--minutes", type=float, default=15, help="length of the time that is drawn")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    view = View(options.prometheus, options.run, options.context_length, time.time(), 60 * options.minutes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle(install(folder), folder)
        for title, board in boards().items():
            picture = options.folder.resolve() / f"{title}.png"
            draw(board, view, folder, picture)
            print(picture)


if __name__ == "__main__":
    main()
