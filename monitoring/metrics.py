"""The catalogue of all metrics: name, kind, unit, labels and meaning.

Run as a program it prints docs/metrics.md; `make generated` renews that page.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
WAIT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TRAINING_STEPS = (0, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000)

RATES = {
    "success": ("success", "Successes as a share of the evaluation episodes"),
    "completed": ("completion", "Completed evaluation episodes as a share of all"),
    "contextual": ("contextual_success", "Successes as a share of the completed evaluation episodes"),
}
"""Name in metrics and meaning of each of `success.Counts.rates`."""


@dataclass(frozen=True)
class Metric:
    """One metric; its series differ in the values of its labels."""

    name: str
    """Full name, as Prometheus knows it."""
    kind: Literal["counter", "gauge", "histogram"]
    """Prometheus' type of metric."""
    unit: str
    """Unit of the values, for people."""
    help: str
    """Meaning, as a phrase without a full stop."""
    labels: tuple[str, ...] = ()
    """Names of the labels."""
    merge: Literal["sum", "max", "mean", "last"] = "sum"
    """Rule that makes one value of several reporters' gauges; counters and histograms are always summed."""
    buckets: tuple[float, ...] = ()
    """A histogram's upper bounds, ascending; there is one more, without an end."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Parts of each series of a histogram: for each bound the number of observations up to it, and the
        sum of all observations. They only grow, so they are handled like counters."""
        from prometheus_client.utils import floatToGoString

        return (*map(floatToGoString, self.buckets), "+Inf", "sum") if self.buckets else ()

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Names of the fields of a series' key: the labels, and for a histogram's part `le`."""
        return (*self.labels, "le") if self.buckets else self.labels


class UnknownMetric(ValueError):
    """The catalogue has no metric of this name."""


CATALOGUE = {
    metric.name: metric
    for metric in (
        # actors
        Metric("longview_env_steps_total", "counter", "steps", "Control steps simulated", ("task",)),
        Metric(
            "longview_episodes_total",
            "counter",
            "episodes",
            "Episodes that ended",
            ("task", "source", "outcome"),
        ),
        Metric(
            "longview_invalid_episodes_total",
            "counter",
            "episodes",
            "Episodes whose simulator diverged",
            ("task",),
        ),
        Metric(
            "longview_refused_actions_total",
            "counter",
            "actions",
            "Actions that the task refused, each of which ended its episode",
            ("task",),
        ),
        Metric(
            "longview_expert_steps_total",
            "counter",
            "steps",
            "Steps of experts: those that they acted in, and those of plans that they made",
            ("task",),
        ),
        Metric(
            "longview_simulated_seconds_total",
            "counter",
            "seconds",
            "Simulated time; divided by actor_seconds of part `simulator` it is the real-time factor",
            ("task",),
        ),
        Metric(
            "longview_actor_seconds_total",
            "counter",
            "seconds",
            "Time that actors spent on each part: `simulator`, `policy`, `expert`, `store`, `weights` "
            "(loading a policy), `limited` (too far ahead of the training, or too old a version), `ended` "
            "(`collect.expert_steps` is spent), `waiting` (otherwise without "
            "an order)",
            ("part",),
        ),
        Metric(
            "longview_actors",
            "gauge",
            "actors",
            "Rollout actors that reported within the last 15 s",
            merge="last",
        ),
        Metric(
            "longview_actors_target",
            "gauge",
            "actors",
            "Rollout actors that the run wants to have",
            merge="last",
        ),
        Metric(
            "longview_staleness_max",
            "gauge",
            "versions",
            "Newest policy version minus the one that acts, of the actor furthest behind",
            merge="max",
        ),
        Metric(
            "longview_staleness_mean",
            "gauge",
            "versions",
            "Newest policy version minus the one that acts, averaged over actors",
            merge="mean",
        ),
        Metric(
            "longview_staleness_steps",
            "histogram",
            "training steps",
            "Newest policy version minus the one that acted, of collected episodes when they arrived",
            ("source",),
            buckets=TRAINING_STEPS,
        ),
        Metric(
            "longview_publish_to_use_seconds",
            "histogram",
            "seconds",
            "From the publication of a policy until an actor first acts with it",
            buckets=SECONDS,
        ),
        # inference
        Metric(
            "longview_inference_decisions_total",
            "counter",
            "decisions",
            "Decisions of the inference servers, each for one simulator",
        ),
        Metric(
            "longview_inference_batch_size",
            "histogram",
            "simulators",
            "Simulators that an inference server decides for at once",
            buckets=BATCHES,
        ),
        Metric(
            "longview_inference_wait_seconds",
            "histogram",
            "seconds",
            "From the arrival of a request at an inference server until its batch is complete",
            buckets=WAIT_SECONDS,
        ),
        # evaluation
        Metric(
            "longview_evaluation_successes",
            "gauge",
            "episodes",
            "Successes of the newest evaluated policy version",
            ("task", "context_length"),
            merge="last",
        ),
        Metric(
            "longview_evaluation_completed",
            "gauge",
            "episodes",
            "Completed evaluation episodes of the newest evaluated policy version, at any place",
            ("task", "context_length"),
            merge="last",
        ),
        Metric(
            "longview_evaluation_episodes",
            "gauge",
            "episodes",
            "Evaluation episodes of the newest evaluated policy version, without the invalid ones",
            ("task", "context_length"),
            merge="last",
        ),
        Metric(
            "longview_evaluation_version",
            "gauge",
            "version",
            "Newest evaluated policy version",
            merge="last",
        ),
        *(
            Metric(
                f"longview_{name}_ratio{suffix}",
                "gauge",
                "ratio",
                f"{what}, of the newest evaluated policy version{bound}",
                ("task", "context_length"),
                merge="last",
            )
            for name, what in RATES.values()
            for suffix, bound in {
                "": "",
                "_lower": ": lower end of the 95% Wilson interval",
                "_upper": ": upper end of the 95% Wilson interval",
            }.items()
        ),
        Metric(
            "longview_success_drop_ratio",
            "gauge",
            "ratio",
            "Success of the best earlier policy versions minus that of the newest ones, each three "
            "successive versions together; 0 where chance may explain the difference",
            ("task", "context_length"),
            merge="last",
        ),
        # learner
        Metric(
            "longview_loss",
            "gauge",
            "mean squared error",
            "Training loss by the context length of the training step",
            ("context_length",),
            merge="last",
        ),
        Metric(
            "longview_gradient_norm",
            "gauge",
            "norm",
            "Norm of the gradient before clipping, by the context length of the training step",
            ("context_length",),
            merge="last",
        ),
        Metric(
            "longview_loss_by_position",
            "gauge",
            "mean squared error",
            "Training loss by the position of the action: steps from now on, or `past`",
            ("position",),
            merge="last",
        ),
        Metric(
            "longview_validation_loss",
            "gauge",
            "mean squared error",
            "Loss of the newest published policy on episodes that are not trained on",
            ("context_length",),
            merge="last",
        ),
        Metric(
            "longview_action_error_ratio",
            "gauge",
            "ratio",
            "Mean distance of the newest published policy's actions from the right ones, as a share of their "
            "range, on episodes that are not trained on",
            ("context_length",),
            merge="last",
        ),
        Metric(
            "longview_out_of_range_ratio",
            "gauge",
            "ratio",
            "Share of the newest batch's observed values outside of the normaliser's frozen ranges",
            merge="max",
        ),
        Metric("longview_samples_trained_total", "counter", "windows", "Windows trained on, all ranks"),
        Metric("longview_learner_step", "gauge", "steps", "Training steps done", merge="max"),
        Metric("longview_policy_version", "gauge", "version", "Newest published policy", merge="max"),
        Metric(
            "longview_publish_interval_steps",
            "gauge",
            "training steps",
            "Steps from one published policy to the next, as configured",
            merge="last",
        ),
        Metric(
            "longview_learner_step_seconds",
            "histogram",
            "seconds",
            "Duration of a training step without its wait for data, averaged between two reports",
            buckets=STEP_SECONDS,
        ),
        Metric(
            "longview_gpu_memory_bytes",
            "gauge",
            "bytes",
            "Most GPU memory that a learner rank has ever held; 0 on CPU",
            merge="max",
        ),
        Metric(
            "longview_learner_data_wait_seconds_total",
            "counter",
            "seconds",
            "Time that the first learner rank waited for data",
        ),
        Metric(
            "longview_validation_seconds_total",
            "counter",
            "seconds",
            "Time that validating published policies took",
        ),
        # store and roles
        Metric(
            "longview_phase",
            "gauge",
            "phase",
            "What the run does: 1 collects, 2 trains, 3 evaluates its last version; 0 it has ended, "
            "finished or stopped. A run that failed keeps its last phase",
            merge="last",
        ),
        Metric(
            "longview_phase_seconds_left",
            "gauge",
            "seconds",
            "Estimated time until the phase ends, from its pace so far; missing while nothing is done in it",
            merge="last",
        ),
        Metric(
            "longview_store_bytes", "gauge", "bytes", "Size of the stored chunks", ("source",), merge="last"
        ),
        Metric(
            "longview_store_episodes", "gauge", "episodes", "Episodes in the store", ("source",), merge="last"
        ),
        Metric(
            "longview_store_byte_budget",
            "gauge",
            "bytes",
            "Largest size of the stored chunks; beyond it the oldest collected episodes are evicted",
            merge="last",
        ),
        Metric(
            "longview_store_committed_bytes_total",
            "counter",
            "bytes",
            "Size of all chunks ever committed, evicted or not",
            ("source",),
        ),
        Metric(
            "longview_store_queue_depth", "gauge", "chunks", "Chunks that wait in the actors to be stored"
        ),
        Metric(
            "longview_store_backpressure_seconds_total",
            "counter",
            "seconds",
            "Time that actors waited because the store did not keep up",
        ),
        Metric(
            "longview_store_limiter_wait_seconds_total",
            "counter",
            "seconds",
            "Time that the limiter of samples per insert made learner ranks wait",
        ),
        Metric(
            "longview_store_evicted_episodes_total",
            "counter",
            "episodes",
            "Episodes removed to make room for newer ones",
        ),
        Metric(
            "longview_store_quarantined_episodes",
            "gauge",
            "episodes",
            "Damaged episodes, set aside by the store",
            merge="last",
        ),
        Metric(
            "longview_actor_restarts_total",
            "counter",
            "restarts",
            "Ray actors started again: they `died`, lost their node (`preempted`), lost other learner ranks "
            "(`lost`), waited too long for them (`late`), or had rendered for long enough (`worn`)",
            ("role", "cause"),
        ),
        Metric(
            "longview_errors_total",
            "counter",
            "errors",
            "Errors that a role met and the run survived, besides deaths",
            ("role",),
        ),
    )
}


def metric(name: str) -> Metric:
    """Find a metric in the catalogue.

    Raises:
        UnknownMetric: the catalogue has none of this name; the message suggests the nearest.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, CATALOGUE, n=1)
    raise UnknownMetric(f"unknown metric {name!r}" + (f"; did you mean {near[0]}?" if near else ""))


def markdown() -> str:
    """Make docs/metrics.md from the catalogue."""
    lines = [
        "# Metrics",
        "",
        "What the hub serves at /metrics. Besides the labels below, every series has `run`, the run's name.",
        "Made from monitoring/metrics.py by `make generated`.",
        "",
        "| name | type | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    for found in CATALOGUE.values():
        labels = ", ".join(f"`{label}`" for label in found.labels)
        lines.append(f"| `{found.name}` | {found.kind} | {found.unit} | {labels} | {found.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
