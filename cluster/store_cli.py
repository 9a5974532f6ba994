"""`longview store`: one short function a command."""

import json
from typing import Annotated

import typer

from cluster.command import AsJson, RunName, explained, group

app = group("Look into the episode store.")


@app.command()
@explained
def stats(
    run: RunName = None,
    url: Annotated[str | None, typer.Option(help="The store's Redis; by default the run's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count what is in a run's episode store, by source and outcome.

    Examples:

        longview store stats

        longview store stats my_run --url redis://store:6379 --json
    """
    from cluster.runs import open_run, open_store
    from cluster.view import console, plain_stats, store_table

    with open_store(open_run(run), url) as store:
        counts = store.stats()
    if as_json:
        typer.echo(json.dumps(plain_stats(counts)))
    else:
        console.print(store_table(counts))
