"""What a person sees of a run: a live view in the terminal, lines where there is no terminal, tables."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from longview.cluster.run.progress import RunProgress
from longview.monitoring.hub import Snapshot
from longview.monitoring.report import COUNTS, Rate, needs_memory, rates
from longview.replay.stats import StoreStats

PHASES = ("collect", "train", "evaluate")
PLAIN_SECONDS = 10.0
TROUBLES = {
    "invalid episodes": "longview_invalid_episodes_total",
    "refused actions": "longview_refused_actions_total",
}
"""Shown once there are any."""

console = Console(highlight=False)


@contextmanager
def watching() -> Iterator[Callable[[RunProgress], None]]:
    """A function that shows progress: live in a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _Lines().show
        return
    waiting = Text("starting Redis and Ray ...")
    with Live(waiting, console=console, refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_live_view(progress))


def success_table(rows: Sequence[Mapping[str, Any]], title: str, chance: float | None) -> Table:
    """Success by context length with 95 % Wilson intervals; of tasks that need memory also how many episodes
    were completed, and the contextual success of those.

    Args:
        rows: each with context_length and `report.COUNTS`; where their `version` differs, it is shown.
        title: stands above.
        chance: success rate of a policy without memory, if known.
    """
    names = ("success", "completed", "contextual") if needs_memory(rows, chance) else ("success",)
    several = len({row.get("version") for row in rows}) > 1
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("T_o", justify="right")
    for name in names:
        table.add_column(f"{name}\n(95 % interval)", justify="right")
    table.add_column("episodes", justify="right")
    if several:
        table.add_column("weights\nof step", justify="right")
    for row in rows:
        shown = rates(row)
        table.add_row(
            str(row["context_length"]),
            *(_rate(shown[name]) for name in names),
            str(row["episodes"]),
            *([f"{row['version']:,}"] if several else []),
        )
    return table


def metrics_table(metrics: Snapshot, rate: str = "", more: Mapping[str, str] | None = None) -> Table:
    """The hub's numbers, as `longview status` shows them, and `more`; `rate` stands beside the environment
    steps."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (_figures(metrics, rate) | dict(more or {})).items():
        table.add_row(Text(name, style="dim"), value)
    return table


def metrics_success(metrics: Snapshot) -> list[dict[str, Any]]:
    """Rows for `success_table` from the hub's numbers."""
    counts = {name: metrics.get(f"longview_evaluation_{name}", {}) for name in COUNTS}
    rows = [
        {"context_length": int(labels[1])} | {name: int(series[labels]) for name, series in counts.items()}
        for labels in set.intersection(*map(set, counts.values()))
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
    if stats.quarantined:
        table.caption = (
            f"{stats.quarantined:,} damaged episodes are in quarantine: see `longview store verify`"
        )
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
        "quarantined": stats.quarantined,
    }


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.1%} ({100 * low:.0f}–{100 * high:.0f})" if rate.of else "-"


def _live_view(progress: RunProgress) -> RenderableType:
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
        parts.append(success_table(rows, "success so far", progress.spec.chance))
    return Panel(
        Group(*parts),
        title=f"longview · {progress.config.task} · {progress.run.name}",
        subtitle=progress.prometheus and f"Prometheus: {progress.prometheus}",
        expand=False,
    )


class _Lines:
    def __init__(self) -> None:
        self._shown_at = -PLAIN_SECONDS
        self._phase = ""

    def show(self, progress: RunProgress) -> None:
        """Print a line if the phase is new or the last line is long ago."""
        now = time.monotonic()
        if progress.phase == self._phase and now - self._shown_at < PLAIN_SECONDS:
            return
        if not self._phase and progress.prometheus is not None:
            print(f"Prometheus: {progress.prometheus}", file=sys.stderr)
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
    } | {name: f"{count:,.0f}" for name, metric in TROUBLES.items() if (count := total(metric))}


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
