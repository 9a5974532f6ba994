"""The commands of `longview study`: run the cells of a study, and report what they have found."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from longview.cluster.commands.common import FAILED, INTERRUPTED, Address, Settings, explained, group
from longview.cluster.roles.auth import choose_ray_auth

if TYPE_CHECKING:
    from longview.cluster.driver.study import Tally, Tell
    from longview.cluster.run.study import Cell, Study

app = group("Compare methods over context lengths, data and tasks: many runs, one report.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A YAML file, or `quick`, `remedies` or `paper`; see docs/study.md."
    ),
]
Cells = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Finished cells, a line each; by default NAME.jsonl beside the study."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the report; by default runs/NAME.")
]


@app.command()
@explained
def run(
    study: Name,
    settings: Settings = None,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and the core-hours to expect, and end.")
    ] = False,
    cells: Cells = None,
    out: Out = None,
) -> None:
    """Run the cells of a study that have not finished, and write its report.

    A study that was stopped or killed goes on where it was, and runs no cell twice.

    Examples:

        longview study run quick

        longview study run paper --dry-run

        longview study run remedies 'axes.task=[return_point]' 'seeds=[0]' learner.steps=2000

        longview study run my_study.yaml --address auto replay.url=redis://store:6379
    """
    from longview.cluster.run.preflight import refuse_unsimulated, refuse_untrainable
    from longview.cluster.run.study import finished, plan, read_study

    wanted, file = read_study(study, settings or [])
    file, planned = cells or file, plan(wanted)
    finished(file)  # refuses other files
    for cell in planned:
        refuse_untrainable(cell.config)
    if dry_run:
        _show_plan(wanted, planned, file, address)
        return
    if address is None:
        for config in {cell.config.task: cell.config for cell in planned}.values():
            refuse_unsimulated(config)
    choose_ray_auth(address)
    # Ray reads its authentication when it is imported.
    from longview.cluster.driver.study import run_study

    code = 0
    try:
        with _watching() as tell:
            failed = run_study(wanted, planned, file, address, tell)
        for cell, wrong in failed.items():
            typer.echo(f"longview: failed: {cell}: {wrong}", err=True)
            code = FAILED
    except KeyboardInterrupt:
        typer.echo("stopped: the same command goes on with it", err=True)
        code = INTERRUPTED
    _report(wanted, planned, file, out)
    raise typer.Exit(code)


@app.command()
@explained
def report(study: Name, settings: Settings = None, cells: Cells = None, out: Out = None) -> None:
    """Report what the finished cells of a study have found: report.html, CSV, LaTeX and Markdown.

    Examples:

        longview study report quick

        longview study report docs/method/return_point.yaml --out report
    """
    from longview.cluster.run.folder import RunError
    from longview.cluster.run.study import finished, plan, read_study

    wanted, file = read_study(study, settings or [])
    file, planned = cells or file, plan(wanted)
    if not finished(file).keys() & {cell.settings for cell in planned}:
        raise RunError(
            f"{file} has no finished cell of study {wanted.name}: name the file that has some by --cells, "
            "or run the study"
        )
    _report(wanted, planned, file, out)


def _report(study: "Study", planned: Sequence["Cell"], file: Path, out: Path | None) -> None:
    """Write the report of a study, and print where its files are."""
    from longview.cluster.run.study import finished, results_of
    from longview.cluster.views.terminal import console
    from longview.monitoring.study import plan_warning
    from longview.monitoring.study_report import write_study_report

    rows = finished(file)
    results = results_of(study, planned, rows)
    for written in write_study_report(results, out or _folder(study)):
        console.print(str(written), soft_wrap=True)
    if warning := plan_warning(results):
        console.print(warning, soft_wrap=True, markup=False)
    if strangers := len(rows.keys() - {cell.settings for cell in planned}):
        console.print(
            f"{strangers} cells in {file} have other settings than the study, and are left out",
            soft_wrap=True,
        )


def _folder(study: "Study") -> Path:
    from longview.cluster.run.folder import ROOT

    return ROOT / study.name


def _show_plan(study: "Study", planned: Sequence["Cell"], file: Path, address: str | None) -> None:
    """Print the cells of a study, and the core-hours to expect until the last look. They follow from those
    that the study has measured, if there are any: all estimates are corrected by the same factor."""
    from longview.cluster.run.study import (
        asked_by,
        core_hours,
        estimated_core_hours,
        finished,
        results_of,
        this_machine,
        trained_alike,
    )
    from longview.cluster.views.terminal import console
    from longview.monitoring.study import unfinished

    results = results_of(study, planned, finished(file))
    cores = [asked_by(cell.config, this_machine(), address)["CPU"] for cell in planned]
    alike, states = trained_alike(planned), list[str]()
    measured, so_far, left = list[float](), list[float](), list[float]()
    for cell, cpus, found, lengths in zip(planned, cores, results.cells, unfinished(results), strict=True):
        begun, done = found.row is not None, sum(map(found.rolled_out, found.lengths))
        lacking = sum(study.looks[-1] - found.rolled_out(length) for length in lengths)
        states.append(("begun" if begun else "") if lengths else "finished")
        measured.append(core_hours(found.row) if found.row is not None else 0.0)
        taken = cell.settings in alike
        so_far.append(estimated_core_hours(cell, done, cpus, trained=taken) if begun else 0.0)
        left.append(estimated_core_hours(cell, lacking, cpus, trained=begun or taken) if lengths else 0.0)
    factor = sum(measured) / sum(so_far) if any(so_far) else 1.0
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    facts = list(dict.fromkeys(axis for cell in planned for axis in cell.facts))
    # What all cells have in common tells none from another, and takes width from what does.
    axes = [axis for axis in facts if len({str(cell.facts.get(axis)) for cell in planned}) > 1]
    for axis in axes:
        table.add_column(axis.rpartition(".")[2])
    for column in ("CPUs", "core-hours", "left", ""):
        table.add_column(column, justify="right")
    for cell, cpus, spent, rest, state in zip(planned, cores, measured, left, states, strict=True):
        values = (cell.facts.get(axis) for axis in axes)
        shown = ("" if value is None else str(value) for value in values)
        table.add_row(*shown, f"{cpus:g}", f"{spent:.2f}", f"{factor * rest:.2f}", state)
    console.print(table)
    how = "as those so far have" if any(so_far) else "a rough estimate, for networks of size tiny on CPUs"
    console.print(
        f"{study.name}: {len(planned)} cells, {states.count('finished')} finished and "
        f"{states.count('begun')} begun; until the last look they take about {factor * sum(left):.1f} "
        f"core-hours more ({how}), less where an earlier look decides",
        soft_wrap=True,
    )


@contextmanager
def _watching() -> "Iterator[Tell]":
    """Provide a function that shows the progress of a study: a bar in a terminal, elsewhere lines."""
    from longview.cluster.views.terminal import console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
    )
    last: list[Any] = [None]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", news="")

        def tell(tally: "Tally") -> None:
            ended = tally.done + tally.failed
            news = f"{len(tally.running)} running, {tally.left} waiting"
            news += f", {tally.failed} failed" if tally.failed else ""
            if tally.seconds_left is not None:
                news += f", about {tally.seconds_left / 60:.0f} min left of it"
            if later := tally.seconds_later:
                news += f", then at most about {later / 60:.0f} min"
            what = f"{tally.what} of {tally.look}"
            total = ended + len(tally.running) + tally.left
            bar.update(shown, description=what, completed=ended, total=total, news=news)
            state = what, ended, tally.running
            if bar.disable and state != last[0]:
                console.print(f"{what}: {ended} of {total} done, {news}", soft_wrap=True)
            last[0] = state

        yield tell
