"""CONTRIBUTING.md, the workflow and the hooks name what exists."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_the_page_names_exists() -> None:
    """A path with `NAME` in it is a file to add: there its folder has to exist, or the one above `NAME/`."""
    named = {*re.findall(r"`([\w./]+/[\w.]*)`", PAGE), *re.findall(r"\]\(([\w./]+)[)#]", PAGE)}
    assert len(named) > 25
    existing = {re.sub(r"(NAME/)?[^/]*NAME.*", "", name) for name in named}
    assert [name for name in sorted(existing) if not (ROOT / name).exists()] == []


def test_every_target_of_make_that_the_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", PAGE)) <= targets


def test_the_workflow_tests_every_version_of_python_that_is_allowed() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    job = workflow["jobs"]["test"]
    versions = [tuple(map(int, version.split("."))) for version in job["strategy"]["matrix"]["python"]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"])
    assert allowed
    assert versions == [(3, minor) for minor in range(int(allowed[1]), int(allowed[2]))]
    assert any(step.get("run", "").startswith("make test ") for step in job["steps"])


def test_templates_and_hooks_are_yaml_with_what_they_need() -> None:
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(file.read_text())
        assert template.keys() >= {"name", "description", "body"}
        assert len({field["id"] for field in template["body"]}) == len(template["body"])
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]
