"""Results of a run: summary.json, report.html and tables in the terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from longview.cluster.run.config import public_config, task_of
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import IMPORT, Run, naming, read_rows, write_atomically
from longview.cluster.run.progress import RunProgress
from longview.cluster.views.terminal import (
    console,
    error_table,
    metrics_success,
    metrics_table,
    success_table,
)
from longview.learner.files import START
from longview.monitoring.report import write_report
from longview.monitoring.snapshot import Snapshot, read_metrics
from longview.monitoring.success import read_success


def summarize(progress: RunProgress, status: str) -> dict[str, Any]:
    """Make the content of summary.json; docs/runs.md explains its keys."""
    newest = progress.newest_round()
    success = {str(found.context_length): asdict(found.counts) for found in newest}
    committed = progress.stats.committed if progress.stats is not None else {}
    collected = sum(count.steps for count in committed.values())
    # An evaluation that was extended holds the steps of the one before.
    evaluated = {(found.version, found.context_length): found.steps for found in progress.history}
    return {
        "run": progress.run.name,
        "status": status,
        "task": progress.spec.name,
        "chance": progress.spec.chance,
        "seed": progress.config.seed,
        "success": {progress.spec.name: success},
        "held_out": progress.held_out,
        "data_sets": _data_sets(progress.run),
        "start": _start(progress.run),
        "policy_version": newest[0].version if newest else progress.version,
        "environment_steps": collected + sum(evaluated.values()),
        "episodes": [
            {
                "source": source,
                "outcome": outcome,
                "episodes": count.episodes,
                "steps": count.steps,
                "learnable": count.learnable,
            }
            for (source, outcome), count in committed.items()
        ],
        "expert_steps": progress.expert_steps,
        "actor_seconds": {
            part: round(spent, 1)
            for part, spent in progress.metrics.by("longview_actor_seconds_total", "part").items()
        },
        "restarts": {role: causes.total() - causes["worn"] for role, causes in progress.restarts.items()},
        "phases": {phase: round(seconds, 2) for phase, seconds in progress.seconds.items()},
        "history": [found.to_dict() for found in progress.history],
        "config": public_config(progress.config),
    }


def _data_sets(run: Run) -> list[dict[str, Any]]:
    """Read what became of each part of the data sets that a run has imported."""
    file = run.path / IMPORT
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"data_sets": []}
    return list(found["data_sets"])


def _start(run: Run) -> dict[str, Any] | None:
    """Read what a run took from the policy that it began from; None if it began from none."""
    file = run.checkpoints / START
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def write(run: Run, summary: dict[str, Any]) -> None:
    """Write summary.json, and the report once something has been evaluated or measured."""
    write_atomically(run.path / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if summary["history"] or summary["held_out"]:
        with naming(run.path / "report.html"):
            write_report(run.path, summary, read_rows(run.series))


@contextmanager
def concluding(progress: RunProgress) -> Iterator[None]:
    """Write the summary when the context ends. The status tells how it ended: `finished`, `interrupted` or
    `failed`."""
    status = "failed"

    def conclude() -> None:
        progress.enter(status)
        write(progress.run, summarize(progress, status))

    with ending(conclude):
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise


def show(run: Run, summary: dict[str, Any]) -> None:
    """Print how a run ended, and where its files are."""
    success = read_success(summary["success"][summary["task"]])
    if success:
        title = f"{summary['task']}: success with one set of weights, of step {summary['policy_version']:,}"
        console.print(success_table(success, title, summary["chance"]))
    newest = [row for row in summary["history"] if row["version"] == summary["policy_version"]]
    if any(row["successes"] < row.get("best_reward", 0) * row["episodes"] - 0.5 for row in newest):
        rewards = (f"T_o {row['context_length']}: {row['best_reward']:.3f}" for row in newest)
        console.print(f"largest reward of an episode, on average: {', '.join(rewards)}")
    if held_out := summary.get("held_out"):
        console.print(error_table(held_out))
    seconds, steps = sum(summary["phases"].values()), summary["environment_steps"]
    recorded = bool(summary["config"].get("data", {}).get("spec"))
    console.print(
        f"{summary['status']} after {seconds / 60:.1f} min, seed {summary['seed']}, "
        f"{steps:,} {'recorded' if recorded else 'environment'} steps"
    )
    files = ["summary.json", *(["report.html"] if (run.path / "report.html").exists() else [])]
    console.print("\n".join(str(run.path / name) for name in files), soft_wrap=True)


def show_status(run: Run, *, as_json: bool) -> None:
    """Print a run's metrics while it is under way, else its summary."""
    if run.under_way() and (url := run.state().get("metrics")):
        metrics = read_metrics(url)
        if as_json:
            print(json.dumps({"run": run.name, "status": "under way", "metrics": _plain(metrics)}))
            return
        console.print(f"[bold]{run.name}[/bold] is under way; metrics: {url}", soft_wrap=True)
        if prometheus := run.state().get("prometheus"):
            console.print(f"Prometheus: {prometheus}", soft_wrap=True)
        console.print(metrics_table(metrics))
        if success := metrics_success(metrics):
            chance = task_of(run.config).spec.chance
            console.print(success_table(success, "newest evaluated weights", chance))
        return
    file = run.path / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if as_json:
        print(
            json.dumps(
                summary or {"run": run.name, "status": "starting" if run.under_way() else "broken off"}
            )
        )
    elif summary is None or run.under_way():
        state = "is starting" if run.under_way() else "was broken off; `--resume` goes on with it"
        console.print(f"{run.name} {state}", soft_wrap=True)
    else:
        console.print(f"[bold]{run.name}[/bold]")
        show(run, summary)


def _plain(metrics: Snapshot) -> dict[str, Any]:
    return {
        name: {",".join(labels): value for labels, value in series.items()}
        for name, series in metrics.items()
        if series
    }
