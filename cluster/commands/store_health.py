"""Verification of a store, and its findings for people and scripts: `longview store verify`."""

import json
from dataclasses import asdict

import typer
from rich.progress import Progress
from rich.table import Table

from longview.cluster.run.folder import any_store
from longview.cluster.views.terminal import console
from longview.replay.redis.verify import Verdict

SHOWN = 100
"""Most findings that the table shows; JSON has all."""


def verify_store(run: str | None, url: str | None, repair: bool, drop: bool, as_json: bool) -> bool:
    """Verify a store, print the findings, and return whether the store is sound now.

    Args:
        run: name of the run, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own.
        repair: set damaged episodes aside, and put the rest right.
        drop: remove what has been set aside for good.
        as_json: print JSON.

    Raises:
        RunError: the run does not exist.
        StoreError: Redis cannot be reached.
    """
    with any_store(run, url) as store, Progress(console=console, transient=True, disable=as_json) as bars:
        bar = bars.add_task("verifying")
        verdict = store.verify(
            repair, drop, lambda done, total: bars.update(bar, completed=done, total=total)
        )
    if as_json:
        typer.echo(json.dumps(asdict(verdict) | {"sound": verdict.sound}))
    else:
        _show(verdict)
    return verdict.sound


def _show(verdict: Verdict) -> None:
    if verdict.findings:
        table = Table(title=f"{len(verdict.findings):,} findings", title_justify="left")
        for column in ("kind", "what", "why", "repaired"):
            table.add_column(column, overflow="fold")
        for found in verdict.findings[:SHOWN]:
            table.add_row(found.kind, found.what, found.why, "yes" if found.repaired else "no")
        console.print(table)
    if len(verdict.findings) > SHOWN:
        console.print(f"and {len(verdict.findings) - SHOWN:,} more; --json shows all")
    for id, why in sorted(verdict.quarantined.items())[:SHOWN]:
        console.print(f"in quarantine: {why if id in why else f'{id}: {why}'}", soft_wrap=True)
    console.print(
        f"{verdict.episodes:,} episodes are whole: {verdict.steps:,} steps, {verdict.bytes / 1e6:,.1f} MB; "
        f"{len(verdict.quarantined):,} in quarantine"
    )
    if not verdict.sound:
        console.print("something is wrong: --repair sets damaged episodes aside and puts the rest right")
