"""`longview check-task`: what is wrong with a task, if anything."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from longview.actors.checks import Finding, check_task
from longview.actors.task import load_task
from longview.cluster.commands.common import FAILED
from longview.cluster.run.config import ConfigError, environment_of
from longview.cluster.views.terminal import console

COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def show_checks(name: str, settings: Sequence[str], *, as_json: bool) -> int:
    """Check a task, print what was found, and return the exit code: 0 if nothing is wrong.

    Args:
        name: name of the task.
        settings: `environment.KEY=VALUE`, for an environment of a package.
        as_json: print JSON.

    Raises:
        ConfigError: there is no such task, or it has no such settings.
    """
    if others := [setting for setting in settings if not setting.startswith("environment.")]:
        raise ConfigError(f"check-task takes settings environment.KEY=VALUE only, not {', '.join(others)}")
    try:
        task = load_task(name, environment=environment_of(settings))
    except ValueError as error:  # UnknownTask is one
        raise ConfigError(str(error)) from None
    if as_json:
        findings = list(check_task(task))
        print(json.dumps({"task": name, "checks": [asdict(finding) for finding in findings]}))
    else:
        with console.status(f"checking {name}"):
            findings = list(check_task(task))
        console.print(_table(name, findings))
        for finding in findings:
            if finding.advice:
                console.print(f"{finding.check}: {finding.advice}", soft_wrap=True, markup=False)
    return FAILED if any(finding.verdict == "wrong" for finding in findings) else 0


def _table(name: str, findings: list[Finding]) -> Table:
    table = Table("check", "", "found", title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table.add_row(finding.check, f"[{colour}]{finding.verdict}[/]", Text(finding.found))
    return table
