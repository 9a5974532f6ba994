"""Views of a run in the terminal: a live view, lines where there is no terminal, and tables."""

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
from longview.monitoring.snapshot import Snapshot
from longview.monitoring.success import COUNTS, Counts, Rate, Success, needs_memory
from longview.replay.datasets.source import Account
from longview.replay.stats import StoreStats

PLAIN_SECONDS = 10.0
"""Time between two lines where there is no terminal."""
TROUBLES = {
    "invalid episodes": "longview_invalid_episodes_total",
    "refused actions": "longview_refused_actions_total",
}
"""Counters that are shown only above 0, with their metrics."""

console = Console(highlight=False)


@contextmanager
def watching() -> Iterator[Callable[[RunProgress], None]]:
    """Provide a function that shows progress: live in a terminal, else as a line now and then."""
    if not console.is_terminal:
        yield _Lines().show
        return
    waiting = Text("starting ...")
    with Live(waiting, console=console, refresh_per_second=4, transient=True) as live:
        yield lambda progress: live.update(_live_view(progress))


def success_table(
    success: Success, title: str, chance: float | None, versions: Mapping[int, int] | None = None
) -> Table:
    """Make a table of success by context length, with 95 % Wilson intervals. For a task that needs memory it
    also shows completion and contextual success.

    Args:
        success: counts by context length.
        title: heading of the table.
        chance: success rate of a policy without memory, if known.
        versions: the evaluated version of each context length; shown where they differ.
    """
    names = ("success", "completed", "contextual") if needs_memory(success.values(), chance) else ("success",)
    shown = versions if versions is not None and len(set(versions.values())) > 1 else {}
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
    if shown:
        table.add_column("weights\nof step", justify="right")
    for length, counts in success.items():
        rates = counts.rates
        table.add_row(
            str(length),
            *(_rate(rates[name]) for name in names),
            str(counts.episodes),
            *([f"{shown[length]:,}"] if shown else []),
        )
    return table


def metrics_table(metrics: Snapshot, rate: str = "", more: Mapping[str, str] | None = None) -> Table:
    """Make a table of the hub's numbers.

    Args:
        metrics: the hub's numbers.
        rate: environment steps per second, as a text to show beside their number.
        more: further rows.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (_figures(metrics, rate) | dict(more or {})).items():
        table.add_row(Text(name, style="dim"), value)
    return table


def metrics_success(metrics: Snapshot) -> Success:
    """Read the newest evaluation from the hub's numbers."""
    lengths = sorted(map(int, metrics.by("longview_evaluation_episodes", "context_length")))
    return {
        length: Counts(
            *(int(metrics.total(f"longview_evaluation_{name}", context_length=length)) for name in COUNTS)
        )
        for length in lengths
    }


def error_table(held_out: Mapping[str, Any]) -> Table:
    """Make a table of the action error on held-out episodes by context length.

    Args:
        held_out: `held_out` of summary.json.
    """
    title = f"action error on {held_out['episodes']} held-out episodes, as a share of the action range"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("T_o", "error", "95 % interval"):
        table.add_column(name, justify="right")
    for length, found in held_out["action_error"].items():
        table.add_row(length, f"{found['mean']:.4f}", f"{found['low']:.4f}–{found['high']:.4f}")
    return table


def store_table(stats: StoreStats) -> Table:
    """Make a table of what a store holds, and of what was ever committed to it, by source and outcome."""
    table = Table(title=f"store: {stats.total.bytes / 1e6:,.1f} of {stats.byte_budget / 1e6:,.0f} MB")
    for column in ("source", "outcome", "episodes", "steps", "learnable", "MB"):
        table.add_column(column, justify="left" if column in ("source", "outcome") else "right")
    counts = {(source, "stored now"): count for source, count in stats.stored.items() if count.episodes}
    for (source, outcome), count in (counts | dict(stats.committed)).items():
        numbers = (f"{count.episodes:,}", f"{count.steps:,}", f"{count.learnable:,}")
        table.add_row(source, outcome, *numbers, f"{count.bytes / 1e6:,.2f}")
    if stats.quarantined:
        table.caption = (
            f"{stats.quarantined:,} damaged episodes are in quarantine: see `longview store verify`"
        )
    return table


def plain_stats(stats: StoreStats) -> dict[str, Any]:
    """Convert the numbers of `store_table` to plain types, for JSON."""
    return {
        "stored": {source: asdict(count) for source, count in stats.stored.items()},
        "committed": [
            {"source": source, "outcome": outcome, **asdict(count)}
            for (source, outcome), count in stats.committed.items()
        ],
        "byte_budget": stats.byte_budget,
        "quarantined": stats.quarantined,
    }


def show_account(account: Account, notes: Sequence[str]) -> None:
    """Print what became of each part of a data set."""
    taken = {
        name: f"{said}, off by up to {account.rounded[name]:.1g}" if name in account.rounded else said
        for name, said in account.taken.items()
    }
    lists = {
        "taken:": [f"{name} from {said}" for name, said in taken.items()],
        "left out by rule:": [f"{place}: {rule}" for place, rule in account.left_out.items()],
        f"could not be read, left out {len(account.bad)}:": account.bad,
        "notes:": notes,
    }
    for title, lines in lists.items():
        for line in [title, *(f"  {line}" for line in lines)] if lines else ():
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.1%} ({100 * low:.0f}–{100 * high:.0f})" if rate.of else "-"


def _live_view(progress: RunProgress) -> RenderableType:
    done, wanted = progress.done()
    steps = Text()
    for phase in progress.phases:
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
    latest = progress.latest_success()
    rate = f"{progress.steps_per_second():,.0f} steps/s"
    parts: list[RenderableType] = [steps, bar, metrics_table(progress.metrics, rate)]
    if latest:
        success = {found.context_length: found.counts for found in latest}
        versions = {found.context_length: found.version for found in latest}
        parts.append(success_table(success, "success so far", progress.spec.chance, versions))
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
            f"T_o={found.context_length}:{found.counts.successes}/{found.counts.episodes}"
            for found in progress.latest_success()
        )
        print(
            f"[{_clock(progress.elapsed())}] {progress.phase} {done}/{wanted} | {figures} | {success}",
            file=sys.stderr,
            flush=True,
        )


def _figures(metrics: Snapshot, rate: str) -> dict[str, str]:
    total = metrics.total
    episodes = metrics.by("longview_episodes_total", "source")
    losses = metrics.by("longview_loss", "context_length").values()
    troubles = {trouble: total(name) for trouble, name in TROUBLES.items()}
    acting = {
        "environment steps": f"{total('longview_env_steps_total'):,.0f}" + (f", {rate}" if rate else "")
    }
    acting["episodes"] = (
        ", ".join(f"{count:,.0f} {source}" for source, count in sorted(episodes.items())) or "0"
    )
    learning = {
        "training step": f"{total('longview_learner_step'):,.0f}",
        "loss": f"{sum(losses) / len(losses):.4f}" if losses else "-",
        "policy version": f"{total('longview_policy_version'):,.0f}",
    }
    errors = metrics.by("longview_action_error_ratio", "context_length")
    held_out = {"held-out action error": _by_length(errors)} if errors else {}
    others = {
        "staleness": f"{total('longview_staleness_max'):,.0f}",
        "store": f"{total('longview_store_episodes'):,.0f} episodes, "
        f"{total('longview_store_bytes') / 1e6:,.1f} MB",
        "restarts": f"{total('longview_actor_restarts_total'):,.0f}",
    }
    if not metrics.get("longview_actors_target"):  # a run without actors
        acting, others = {}, {"store": others["store"]}
    found = {trouble: f"{count:,.0f}" for trouble, count in troubles.items() if count}
    return acting | learning | held_out | others | found


def _by_length(errors: Mapping[str, float]) -> str:
    """Write errors by context length on one line."""
    lengths = sorted(errors, key=int)
    return "  ".join(f"T_o={length}: {errors[length]:.3f}" for length in lengths)


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
