"""Tests that README.md and docs/*.md name only files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    *("actors", "benchmarks", "cluster", "docs", "examples", "k8s"),
    *("learner", "monitoring", "replay", "tests"),
)
"""Folders in which a path can begin. `longview/` is left out: names of gymnasium tasks begin with it."""


def links(text: str) -> list[tuple[str, str]]:
    """Return path and heading of every relative link; either may be empty."""
    return re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(text: str) -> list[str]:
    """Return every path of the repository in code: between backticks, or in a block that they fence."""
    code = re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)
    return re.findall(rf"(?<![\w/.~-])(?:{'|'.join(FOLDERS)})/[\w./<>*-]*", "\n".join(code))


def exists(path: str) -> bool:
    """Tell whether the repository has a path, in which `<name>` stands for any name."""
    pattern = re.sub(r"<[^>]*>", "*", path).rstrip("/.")
    return any(ROOT.glob(pattern))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for path, heading in links(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in anchors(target.read_text()), f"{path}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_code_exists(page: Path) -> None:
    assert [path for path in paths(page.read_text()) if not exists(path)] == []


def test_paths_are_found_and_told_from_other_words() -> None:
    text = """
Run `python benchmarks/store.py --json FILE`, see [the store](store.md#sizing) and [arXiv](https://arxiv.org/abs/1).
`k8s/overlays/<overlay>/run.yaml`, `~/docs/own.md`, `rollout/success`, but not actors/learners in prose.
```sh
longview launch cluster/run/presets/lift.yaml
```
"""
    assert links(text) == [("store.md", "sizing")]
    assert paths(text) == [
        "benchmarks/store.py",
        "k8s/overlays/<overlay>/run.yaml",
        "cluster/run/presets/lift.yaml",
    ]
    assert exists("k8s/overlays/<overlay>/run.yaml")
    assert not exists("k8s/overlays/<overlay>/run.yml")
    assert anchors("## Watching a run\n### What costs money, and when?") == {
        "watching-a-run",
        "what-costs-money-and-when",
    }
