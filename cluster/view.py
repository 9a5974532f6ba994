"""What a person sees of a run: a live view in the terminal, lines where there is no terminal, tables."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.progress import Progress
from monitoring.hub import Snapshot
from monitoring.report import wilson_interval
from replay.stats import StoreStats

PHASES = ("collect", "train", "evaluate")
PLAIN_SECONDS = 10.0

console = Console(highlight=False)


@contextmanager
def watching() -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress: live in a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _Lines().show
        return
    waiting = Text("starting Redis and Ray ...")
    with Live(waiting, console=console, refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_live_view(progress))


def success_table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Success by context length with 95 % Wilson intervals.

    Args:
        rows: each with context_length, successes and episodes; where their `version` differs, it is shown.
        title: stands above.
    """
    rows = list(rows)
    several = len({row.get("version") for row in rows}) > 1
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("T_o", justify="right")
    table.add_column("success", justify="right")
    table.add_column("95 % interval", justify="center")
    table.add_column("episodes", justify="right")
    table.add_column("", width=20)
    if several:
        table.add_column("weights", justify="right")
    for row in rows:
        successes, episodes = row["successes"], row["episodes"]
        low, high = wilson_interval(successes, episodes)
        table.add_row(
            str(row["context_length"]),
            f"{successes / episodes:.1%}" if episodes else "-",
            f"{low:.1%} .. {high:.1%}" if episodes else "-",
            str(episodes),
            ProgressBar(total=max(1, episodes), completed=successes, width=20),
            *([f"step {row['version']:,}"] if several else []),
        )
    return table


def metrics_table(metrics: Snapshot, rate: str = "") -> Table:
    """The hub's numbers, as `longview status` shows them; `rate` stands beside the environment steps."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _figures(metrics, rate).items():
        table.add_row(Text(name, style="dim"), value)
    return table


def metrics_success(metrics: Snapshot) -> list[dict[str, Any]]:
    """Rows for `success_table` from the hub's numbers."""
    successes = metrics.get("longview_evaluation_successes", {})
    episodes = metrics.get("longview_evaluation_episodes", {})
    rows = [
        {"context_length": int(length), "successes": int(value), "episodes": int(episodes[task, length])}
        for (task, length), value in successes.items()
        if (task, length) in episodes
    ]
    return sorted(rows, key=lambda row: row["context_length"])


def store_table(stats: StoreStats) -> Table:
    """What is stored, and what was ever committed, by source and outcome."""
    table = Table(title=f"store: {stats.total.bytes / 1e6:,.1f} of {stats.byte_budget / 1e6:,.0f} MB")
    for column in ("source", "outcome", "episodes", "steps", "MB"):
        table.add_column(column, justify="left" if column in ("source", "outcome") else "right")
    counts = {(source, "stored now"): count for source, count in stats.stored.items() if count.episodes}
    for (source, outcome), count in (counts | dict(stats.committed)).items():
        table.add_row(source, outcome, f"{count.episodes:,}", f"{count.steps:,}", f"{count.bytes / 1e6:,.2f}")
    return table


def plain_stats(stats: StoreStats) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "stored": {source: asdict(count) for source, count in stats.stored.items()},
        "committed": [
            {"source": source, "outcome": outcome, **asdict(count)}
            for (source, outcome), count in stats.committed.items()
        ],
        "byte_budget": stats.byte_budget,
    }


def _live_view(progress: Progress) -> RenderableType:
    done, wanted = progress.done()
    steps = Text()
    for phase in PHASES:
        here = phase == progress.phase
        past = phase in progress.seconds and not here
        steps.append(
            f"{'✓' if past else '●' if here else '○'} {phase}  ", style="bold cyan" if here else "dim"
        )
    steps.append(f"  {_clock(progress.elapsed())} since the start")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, wanted), completed=done, width=32),
        f"{done:,}/{wanted:,}",
        f"phase ends in {_clock(progress.time_left())}",
    )
    rows = progress.latest_success()
    rate = f"{progress.steps_per_second():,.0f} steps/s"
    parts: list[RenderableType] = [steps, bar, metrics_table(progress.metrics, rate)]
    if rows:
        parts.append(success_table(rows, "success so far"))
    return Panel(
        Group(*parts), title=f"longview · {progress.config.task} · {progress.run.name}", expand=False
    )


class _Lines:
    def __init__(self) -> None:
        self._shown_at = -PLAIN_SECONDS
        self._phase = ""

    def show(self, progress: Progress) -> None:
        """Print a line if the phase is new or the last line is long ago."""
        now = time.monotonic()
        if progress.phase == self._phase and now - self._shown_at < PLAIN_SECONDS:
            return
        self._shown_at, self._phase = now, progress.phase
        done, wanted = progress.done()
        rate = f"{progress.steps_per_second():,.0f}/s"
        figures = ", ".join(f"{name} {value}" for name, value in _figures(progress.metrics, rate).items())
        success = " ".join(
            f"T_o={row['context_length']}:{row['successes']}/{row['episodes']}"
            for row in progress.latest_success()
        )
        print(
            f"[{_clock(progress.elapsed())}] {progress.phase} {done}/{wanted} | {figures} | {success}",
            file=sys.stderr,
            flush=True,
        )


def _figures(metrics: Snapshot, rate: str) -> dict[str, str]:
    def total(name: str) -> float:
        return sum(metrics.get(name, {}).values())

    by_source: dict[str, float] = {}
    for (_, source, _), count in metrics.get("longview_episodes_total", {}).items():
        by_source[source] = by_source.get(source, 0) + count
    losses = metrics.get("longview_loss", {})
    return {
        "environment steps": f"{total('longview_env_steps_total'):,.0f}" + (f", {rate}" if rate else ""),
        "episodes": ", ".join(f"{count:,.0f} {source}" for source, count in sorted(by_source.items())) or "0",
        "training step": f"{total('longview_learner_step'):,.0f}",
        "loss": f"{sum(losses.values()) / len(losses):.4f}" if losses else "-",
        "policy version": f"{total('longview_policy_version'):,.0f}",
        "staleness": f"{total('longview_staleness_max'):,.0f}",
        "store": f"{total('longview_store_episodes'):,.0f} episodes, "
        f"{total('longview_store_bytes') / 1e6:,.1f} MB",
        "restarts": f"{total('longview_actor_restarts_total'):,.0f}",
    }


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
