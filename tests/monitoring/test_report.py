import base64
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longview.monitoring.film import write_sheet, write_video
from longview.monitoring.report import completion_plot, learning_plot, success_plot, write_report
from longview.monitoring.success import Counts, Evaluation, read_success

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def summary() -> dict[str, Any]:
    history = [
        Evaluation(version, length, 100).plus(
            {"success": successes, "wrong": completed - successes, "failure": 100 - completed}, 9000
        )
        for length, successes, completed in ((1, 50, 97), (8, 61, 98), (64, 97, 98))
        for version in (6000, 12000)
    ]
    return {
        "run": "night <1>",
        "task": "return_point",
        "seed": 17,
        "chance": 0.5,
        "success": {"return_point": {str(found.context_length): asdict(found.counts) for found in history}},
        "policy_version": 12000,
        "history": [found.to_dict() for found in history],
        "phases": {"collect": 30.0, "train": 3690.0},
        "environment_steps": 744000,
        "config": {"seed": 17, "learner": {"horizon": 16, "curriculum": {"kind": "progressive"}}},
        "status": "finished",
    }


def test_the_report_is_one_file_that_holds_everything(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = write_report(tmp_path, summary).read_text()
    assert "night &lt;1&gt;" in page
    assert "night <1>" not in page
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "64 97% 92% – 99% 97 / 100" in text
    assert "1 50% 40% – 60% 50 / 100" in text
    assert text.index("8 61%") < text.index("64 97%")
    assert "1 97% 92% – 99% 97 / 100 8" in text
    assert "1 52% 42% – 61% 50 / 97 8" in text
    for expected in (
        "return_point · finished · policy version 12,000 · seed 17",
        "train 1:01:30",
        "in all 1:02:00",
        "744,000 simulated steps, 200 per second",
        "learner.curriculum.kind=progressive",
    ):
        assert expected in text
    embedded = [base64.b64decode(png) for png in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert embedded == [
        (tmp_path / name).read_bytes()
        for name in ("success-return_point.png", "completion-return_point.png", "learning.png")
    ]
    assert all(png.startswith(PNG) for png in embedded)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.fixture
def series() -> list[dict[str, Any]]:
    return [
        {
            "seconds": 5.0 * row,
            "steps_per_second": 900.0 + 10 * row,
            "windows_per_second": 2000.0 - row,
            "training_step": 50 * row,
            "staleness": 500.0 * (row % 3) if row % 2 else None,
            "loss": {"1": 1 / row, "64": 0.5 / row} if row > 3 else {},
            "validation_loss": {"64": 0.6 / row} if row > 20 else {},
        }
        for row in range(1, 200)
    ]


def test_how_it_went_and_what_it_looked_like_is_shown(
    tmp_path: Path, summary: dict[str, Any], series: list[dict[str, Any]]
) -> None:
    film = [np.full((64, 64, 3), shade, np.uint8) for shade in range(0, 250, 10)]
    write_video(tmp_path / "episodes.mp4", [film], hz=10)
    write_sheet(tmp_path / "episodes.png", [film], hz=10)
    page = write_report(tmp_path, summary, series).read_text()
    for heading in ("Episodes", "Loss by context length", "Throughput", "Staleness"):
        assert f"<h2>{heading}</h2>" in page
    assert base64.b64encode((tmp_path / "episodes.mp4").read_bytes()).decode() in page
    assert page.count("<img") == 7
    assert not re.search(r'(src|href)="(?!data:)', page)

    drawn = (tmp_path / "throughput.png").read_bytes(), (tmp_path / "loss.png").read_bytes()
    for row in series:
        row |= {"steps_per_second": 2 * row["steps_per_second"], "loss": {"1": 1.0}}
    write_report(tmp_path, summary, series)
    assert (tmp_path / "throughput.png").read_bytes() != drawn[0]
    assert (tmp_path / "loss.png").read_bytes() != drawn[1]


def test_what_a_short_run_has_not_measured_is_left_out(
    tmp_path: Path, summary: dict[str, Any], series: list[dict[str, Any]]
) -> None:
    page = write_report(tmp_path, summary, series[:1]).read_text()
    for heading in ("Episodes", "Loss by context length", "Throughput"):
        assert f"<h2>{heading}</h2>" not in page
    page = write_report(tmp_path, summary, [row | {"staleness": None} for row in series]).read_text()
    assert "<h2>Staleness</h2>" not in page
    assert "<h2>Throughput</h2>" in page


MEASURE = """
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const found = {
    width: root.clientWidth,
    needed: Math.max(...[...page.querySelectorAll("h1, h2, p, table, img, pre, td")].map(
      one => one.closest(".wide") ? 0 : one.getBoundingClientRect().right)),
    pictures: page.images.length,
    broken: [...page.images].filter(one => !one.complete || one.naturalWidth === 0).length,
    smallest: Math.min(...[...page.querySelectorAll("p, td, th, pre")].map(
      one => parseFloat(getComputedStyle(one).fontSize))),
    bars: [...page.querySelectorAll("td.bar")].filter(one => one.offsetWidth > 0).length,
  };
  document.body.innerHTML = "<pre id='found'>" + JSON.stringify(found) + "</pre>";
});
</script>
"""


def browse(folder: Path, page: Path, *options: str) -> str:
    """Open a page in a headless Chromium, and return its output."""
    program = shutil.which("chromium")
    assert program
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=10000", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser (Debian: apt install chromium)")
def test_a_browser_shows_it_on_a_desk_on_a_phone_and_in_print(
    tmp_path: Path, summary: dict[str, Any], series: list[dict[str, Any]]
) -> None:
    film = [np.full((64, 64, 3), shade, np.uint8) for shade in range(0, 250, 10)]
    write_sheet(tmp_path / "episodes.png", [film], hz=10)
    summary["run"] = "return_point-20260101-120000-with-quite-a-long-name-that-has-no-blanks-in-it"
    report = write_report(tmp_path, summary, series)
    frame = tmp_path / "frame.html"
    for width in (360, 1200):
        frame.write_text(
            f'<body><iframe id="page" src="{report.as_uri()}" width="{width}" height="900"></iframe>{MEASURE}'
        )
        dom = browse(tmp_path, frame, "--dump-dom")
        (text,) = re.findall(r'<pre id="found">(.*?)</pre>', dom)
        found = json.loads(text)
        assert found["width"] >= width - 20
        assert found["needed"] <= found["width"], "nothing is cut off, or to be scrolled to sideways"
        assert (found["pictures"], found["broken"]) == (7, 0)
        assert found["smallest"] >= 12
        assert (found["bars"] > 0) == (width > 600)
    browse(tmp_path, report, f"--print-to-pdf={tmp_path}/report.pdf")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= 7


def test_a_run_that_stopped_before_its_first_evaluation_has_a_report(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    summary |= {"success": {}, "history": [], "phases": {}, "status": "interrupted", "environment_steps": 0}
    page = write_report(tmp_path, summary).read_text()
    assert "Nothing has been evaluated." in page
    assert "<img" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_a_context_length_without_episodes_is_shown_as_such(tmp_path: Path, summary: dict[str, Any]) -> None:
    nothing = asdict(Counts(0, 0, 0))
    summary["success"]["return_point"]["32"] = nothing
    summary["history"].append(Evaluation(6000, 32, 0).to_dict())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", write_report(tmp_path, summary).read_text()))
    assert text.count("32 – – 0 ") == 3
    summary["success"]["return_point"] = {"1": nothing}
    summary["history"] = []
    assert "<img" not in write_report(tmp_path, summary).read_text()


def test_plots_are_pngs_and_differ_with_their_data(tmp_path: Path, summary: dict[str, Any]) -> None:
    success = read_success(summary["success"]["return_point"])
    pictures = []
    for chance in (None, 0.5):
        success_plot(success, chance, tmp_path / "plot.png")
        pictures.append((tmp_path / "plot.png").read_bytes())
    completion_plot(success, 0.5, tmp_path / "plot.png")
    pictures.append((tmp_path / "plot.png").read_bytes())
    learning_plot([Evaluation.from_dict(line) for line in summary["history"]], tmp_path / "plot.png")
    pictures.append((tmp_path / "plot.png").read_bytes())
    assert all(picture.startswith(PNG) for picture in pictures)
    assert len(set(pictures)) == 4


def test_completion_is_left_out_where_it_is_success(tmp_path: Path, summary: dict[str, Any]) -> None:
    for row in summary["success"]["return_point"].values():
        row["completed"] = row["successes"]
    assert "Contextual" in write_report(tmp_path, summary).read_text()
    page = write_report(tmp_path, summary | {"chance": None}).read_text()
    assert "Contextual" not in page
    assert page.count("<img") == 2
