"""`longview status --watch`: a run under way, seen from another terminal."""

import time
from collections import deque
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longview.cluster.run.config import ConfigError, RunConfig, task_of
from longview.cluster.run.folder import Run
from longview.cluster.views.terminal import console, metrics_success, metrics_table, success_table
from longview.monitoring.hub import Snapshot, read_metrics

LOOK_SECONDS = 1.0
LOOKS = 10
"""Rates are those between the first and the last of so many looks."""

Looks = deque[tuple[float, Snapshot]]
"""What the hub served, and when."""


def watch(run: Run) -> None:
    """Show how a run is doing until it ends.

    Raises:
        ConfigError: there is no terminal.
        KeyboardInterrupt: by Ctrl-C, which ends the watching and not the run.
    """
    if not console.is_terminal:
        raise ConfigError("--watch needs a terminal; `longview status --json` is for scripts")
    config, looks = run.config, Looks(maxlen=LOOKS)
    chance = task_of(config).spec.chance
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while run.under_way():
            news = look(run, looks)
            live.update(view(run, config, looks, chance, news))
            time.sleep(LOOK_SECONDS)


def look(run: Run, looks: Looks) -> str:
    """Add what the hub serves now; returns what a person should know of the hub itself."""
    state = run.state()
    try:
        looks.append((time.monotonic(), read_metrics(state["metrics"])))
    except KeyError:
        return "starting ..."
    except OSError:
        return "the metrics are away; the run goes on without them"
    return f"Prometheus: {state['prometheus']}" if state.get("prometheus") else ""


def view(run: Run, config: RunConfig, looks: Looks, chance: float | None, news: str) -> RenderableType:
    """All of it, 80 columns wide.

    Args:
        run: whose.
        config: its config.
        looks: the last ones, oldest first.
        chance: success rate of a policy without memory, if known.
        news: stands below.
    """
    parts: list[RenderableType] = []
    if looks:
        metrics, step = looks[-1][1], int(_total(looks[-1][1], "learner_step"))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=config.learner.steps, completed=step, width=32),
            f"trained {step:,} of {config.learner.steps:,} steps",
        )
        steps = f"{_rate(looks, 'env_steps_total'):,.0f}/s"
        parts += [bar, metrics_table(metrics, steps, _pace(looks))]
        if rows := metrics_success(metrics):
            parts.append(success_table(rows, "newest evaluated weights", chance))
    return Panel(
        Group(*parts) if parts else Text("no metrics yet", style="dim"),
        title=f"longview · {config.task} · {run.name}",
        subtitle=news or None,
        expand=False,
    )


def _pace(looks: Looks) -> dict[str, str]:
    """What the actors and the learner have been at for the last seconds."""
    metrics = looks[-1][1]
    spent = {
        part: _rate(looks, "actor_seconds_total", part)
        for (part,) in metrics.get("longview_actor_seconds_total", {})
    }
    shares = [f"{seconds / sum(spent.values()):.0%} {part}" for part, seconds in spent.items() if seconds > 0]
    return {
        "trained windows": f"{_rate(looks, 'samples_trained_total'):,.0f}/s",
        "learner waits": f"{min(1.0, _rate(looks, 'learner_data_wait_seconds_total')):.0%} of its time",
        "actors": f"{_total(metrics, 'actors'):,.0f} of {_total(metrics, 'actors_target'):,.0f}",
        "what they do": ", ".join(shares) or "-",
    }


def _total(metrics: Snapshot, name: str, *labels: str) -> float:
    series = metrics.get(f"longview_{name}", {})
    return series.get(labels, 0.0) if labels else sum(series.values())


def _rate(looks: Looks, name: str, *labels: str) -> float:
    """Of a counter, per second; what a hub that was away has lost is not counted."""
    grown = sum(
        max(0.0, _total(after, name, *labels) - _total(before, name, *labels))
        for (_, before), (_, after) in pairwise(looks)
    )
    return grown / (looks[-1][0] - looks[0][0]) if len(looks) > 1 else 0.0
