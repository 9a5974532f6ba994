"""Shows a run under way in another terminal: `longview status --watch`."""

import time
from collections import deque

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longview.cluster.run.config import ConfigError, RunConfig, task_of
from longview.cluster.run.folder import Run
from longview.cluster.views.terminal import console, metrics_success, metrics_table, success_table
from longview.monitoring.snapshot import Snapshot, rate, read_metrics

LOOK_SECONDS = 1.0
"""Time between two looks at the hub."""
LOOKS = 10
"""Looks between whose first and last the rates are computed."""

Looks = deque[tuple[float, Snapshot]]
"""The last snapshots with their times, oldest first."""


def watch(run: Run) -> None:
    """Show a run until it ends.

    Raises:
        ConfigError: the output is no terminal.
        KeyboardInterrupt: by Ctrl-C, which ends the view and not the run.
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
    """Add what the hub serves now, and return a line about the hub itself."""
    state = run.state()
    try:
        looks.append((time.monotonic(), read_metrics(state["metrics"])))
    except KeyError:
        return "starting ..."
    except OSError:
        return "the metrics are away; the run goes on without them"
    return f"Prometheus: {state['prometheus']}" if state.get("prometheus") else ""


def view(run: Run, config: RunConfig, looks: Looks, chance: float | None, news: str) -> RenderableType:
    """Make the view of a run, 80 columns wide.

    Args:
        run: the run.
        config: the run's config.
        looks: the last looks, oldest first.
        chance: success rate of a policy without memory, if known.
        news: a line to show below, from `look`.
    """
    parts: list[RenderableType] = []
    if looks:
        _, metrics = looks[-1]
        step = int(metrics.total("longview_learner_step"))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=config.learner.steps, completed=step, width=32),
            f"trained {step:,} of {config.learner.steps:,} steps",
        )
        steps = f"{rate(looks, 'longview_env_steps_total'):,.0f}/s"
        parts += [bar, metrics_table(metrics, steps, _pace(looks))]
        if success := metrics_success(metrics):
            parts.append(success_table(success, "newest evaluated weights", chance))
    return Panel(
        Group(*parts) if parts else Text("no metrics yet", style="dim"),
        title=f"longview · {config.task} · {run.name}",
        subtitle=news or None,
        expand=False,
    )


def _pace(looks: Looks) -> dict[str, str]:
    """Make the rows about what actors and learner did in the last seconds."""
    _, metrics = looks[-1]
    seconds = "longview_actor_seconds_total"
    spent = {part: rate(looks, seconds, part=part) for part in metrics.by(seconds, "part")}
    shares = [f"{busy / sum(spent.values()):.0%} {part}" for part, busy in spent.items() if busy > 0]
    waits = rate(looks, "longview_learner_data_wait_seconds_total")
    there, wanted = metrics.total("longview_actors"), metrics.total("longview_actors_target")
    return {
        "trained windows": f"{rate(looks, 'longview_samples_trained_total'):,.0f}/s",
        "learner waits": f"{min(1.0, waits):.0%} of its time",
        "actors": f"{there:,.0f} of {wanted:,.0f}",
        "what they do": ", ".join(shares) or "-",
    }
