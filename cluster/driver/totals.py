"""Running totals of a run's driver, for the metrics hub."""

from collections import Counter
from dataclasses import asdict

from longview.cluster.run.progress import RunProgress
from longview.monitoring.hub import Totals
from longview.monitoring.metrics import RATES
from longview.monitoring.success import success_drop
from longview.replay.stats import StoreStats

PHASES = {"collect": 1, "import": 1, "train": 2, "evaluate": 3}
"""Values of `longview_phase` while the run is under way."""

RESTARTS = {
    "actor": ("died", "preempted", "worn"),
    "learner": ("died", "preempted"),
    "inference": ("died",),
    "board": ("died",),
    "hub": ("died",),
}
"""Causes of restarts by role. Each is reported as 0 from the start, so that Prometheus sees the first one."""


def totals_of(progress: RunProgress, stats: StoreStats, *, ended: bool) -> Totals:
    """Make the totals that follow from a run's progress and from its store.

    Args:
        progress: the run's progress.
        stats: counts of the run's store.
        ended: whether the run has finished or was stopped.
    """
    totals = Totals()
    for source, count in stats.stored.items():
        totals.set("longview_store_bytes", count.bytes, source=source)
        totals.set("longview_store_episodes", count.episodes, source=source)
    totals.set("longview_store_byte_budget", stats.byte_budget)
    for (source, _), count in stats.committed.items():
        totals.add("longview_store_committed_bytes_total", count.bytes, source=source)
    evicted = sum(count.episodes for count in stats.evicted.values())
    totals.add("longview_store_evicted_episodes_total", evicted)
    totals.set("longview_store_quarantined_episodes", stats.quarantined)
    for role, causes in RESTARTS.items():
        known = progress.restarts.get(role, Counter[str]())
        for cause in causes:
            totals.add("longview_actor_restarts_total", known[cause], role=role, cause=cause)
    totals.add("longview_errors_total", progress.errors, role="actor")
    totals.add("longview_errors_total", progress.copies.failures if progress.copies else 0, role="copies")
    totals.set("longview_phase", 0 if ended else PHASES.get(progress.phase, 1))
    if not ended and (left := progress.time_left()) is not None:
        totals.set("longview_phase_seconds_left", left)
    totals.set("longview_publish_interval_steps", progress.config.learner.publish_every)
    if progress.version is not None:
        totals.set("longview_policy_version", progress.version)
    _add_success(totals, progress)
    return totals


def _add_success(totals: Totals, progress: RunProgress) -> None:
    """Add counts, rates and intervals of the newest evaluated version."""
    for newest in progress.newest_round():
        totals.set("longview_evaluation_version", newest.version)
        labels: dict[str, str | int] = {
            "task": progress.spec.name,
            "context_length": newest.context_length,
        }
        for name, count in asdict(newest.counts).items():
            totals.set(f"longview_evaluation_{name}", count, **labels)
        for key, rate in newest.counts.rates.items():
            if rate.of:
                name, (lower, upper) = f"longview_{RATES[key][0]}_ratio", rate.interval
                totals.set(name, rate.share, **labels)
                totals.set(f"{name}_lower", lower, **labels)
                totals.set(f"{name}_upper", upper, **labels)
        versions = [
            found.counts.rates["success"]
            for found in sorted(progress.history, key=lambda found: found.version)
            if found.context_length == newest.context_length and found.version <= newest.version
        ]
        totals.set("longview_success_drop_ratio", success_drop(versions), **labels)
