"""The commands of `longview store`: one short function each."""

import json
from pathlib import Path
from typing import Annotated

import typer

from longview.cluster.commands.common import (
    FAILED,
    AsJson,
    Drop,
    Filter,
    Hz,
    Keys,
    Map,
    Outcome,
    RunName,
    SkipBad,
    Source,
    Task,
    Url,
    explained,
    group,
)

app = group("Look into the episode store, and exchange episodes with others.")


@app.command()
@explained
def stats(
    run: RunName = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Count what is in a run's episode store, by source and outcome.

    Examples:

        longview store stats

        longview store stats my_run --url redis://store:6379 --json
    """
    from longview.cluster.run.folder import any_store
    from longview.cluster.views.terminal import console, plain_stats, store_table

    with any_store(run, url) as store:
        counts = store.stats()
    if as_json:
        typer.echo(json.dumps(plain_stats(counts)))
    else:
        console.print(store_table(counts))


@app.command()
@explained
def verify(
    run: RunName = None,
    url: Url = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set damaged episodes aside; put indices, totals and expiry right."),
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove for good what has been set aside, now or before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything in a run's episode store, byte for byte; exit with 1 if something stays wrong.

    The run may be under way. A damaged episode that is set aside is neither read nor drawn any more; its id
    may be used again.

    Examples:

        longview store verify

        longview store verify my_run --repair

        longview store verify my_run --url redis://store:6379 --json
    """
    from longview.cluster.commands.store_health import verify_store

    if not verify_store(run, url, repair, drop, as_json):
        raise typer.Exit(FAILED)


@app.command()
@explained
def migrate(run: RunName = None, url: Url = None) -> None:
    """Bring a run of Longview 0.1, its config and its store, over to the format of this version.

    The run must not be under way, and nothing else may use its store. If it is interrupted, run it again.

    Examples:

        longview store migrate my_run

        longview store migrate lab --url redis://store:6379
    """
    from longview.cluster.commands.migrate import migrate_store

    migrate_store(run, url)


@app.command("list")
@explained
def list_(
    run: RunName = None,
    url: Url = None,
    source: Source = None,
    task: Task = None,
    outcome: Outcome = None,
    as_json: AsJson = False,
) -> None:
    """List the episodes of a run's store.

    Examples:

        longview store list

        longview store list my_run --source demo --outcome failure

        longview store list my_run --json
    """
    from longview.cluster.commands.transfer import list_episodes

    chosen = {"source": source, "task": task, "outcome": outcome}
    list_episodes(run, url, chosen, as_json=as_json)


@app.command("import")
@explained
def import_(
    path: Annotated[
        Path, typer.Argument(help="robomimic's HDF5 file, a LeRobotDataset, or a zarr replay buffer.")
    ],
    task: Annotated[str, typer.Option(help="Task of the episodes; a new name makes a new task.")],
    run: RunName = None,
    url: Url = None,
    filter: Filter = None,
    hz: Hz = None,
    keys: Keys = None,
    drop: Drop = None,
    map: Map = None,
    resize: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Resize all pictures, such as to `96x96`.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Add a data set's episodes to the store of a run, which may be new. No episode is ever added twice.

    The summary lists every array of the data set: taken, left out by a rule, or not readable.

    Examples:

        longview store import pusht_cchi_v7_replay.zarr --task push_t my_run

        longview store import lift/ph/low_dim.hdf5 --task lift lift_ph --filter train

        longview store import aloha_mobile_cabinet --task cabinet demos --url redis://store:6379 --skip-bad

        longview store import kitchen --task kitchen lab --url redis://store:6379 --drop depth --resize 96x96
    """
    from longview.cluster.commands.transfer import choice_of, import_path
    from longview.cluster.run.config import ConfigError
    from longview.replay.names import check_name

    try:
        check_name(task, "--task")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    choice = choice_of(keys, drop or (), map or (), resize, skip_bad)
    import_path(path, task, run, url, filter, hz, choice, as_json)


@app.command()
@explained
def export(
    path: Annotated[Path, typer.Argument(help="The file or folder to make.")],
    run: RunName = None,
    format: Annotated[str, typer.Option(help="`robomimic` or `lerobot`.")] = "lerobot",
    url: Url = None,
    source: Source = None,
    task: Task = None,
    outcome: Outcome = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="lerobot: pictures as PNG rather than as video.")
    ] = False,
) -> None:
    """Write a run's episodes as a data set that other tools read.

    Examples:

        longview store export demos.hdf5 my_run --format robomimic --source demo

        longview store export my_dataset my_run --format lerobot --outcome success
    """
    from longview.cluster.commands.transfer import export_path

    chosen = {"source": source, "task": task, "outcome": outcome}
    export_path(path, format, run, url, chosen, lossless)


@app.command()
@explained
def forget(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task whose name shall be free again.")],
    run: RunName = None,
    url: Url = None,
    with_episodes: Annotated[
        bool, typer.Option("--with-episodes", help="Delete the task's episodes for good, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before episodes are deleted.")] = False,
) -> None:
    """Remove what a store knows of a task, so that data of another shape may be imported under its name.

    Examples:

        longview store forget pick my_run

        longview store forget pick my_run --with-episodes --yes
    """
    from longview.cluster.commands.transfer import forget_task

    forget_task(task, run, url, with_episodes, confirm=lambda what: yes or typer.confirm(what))
