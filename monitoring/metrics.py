"""Every metric of Longview: its name, kind, unit, labels and meaning, once."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric; its series differ in the values of its labels."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "mean", "last"] = "sum"
    """How the values of several reporters become one; counters are always summed."""


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
            "longview_actor_seconds_total",
            "counter",
            "seconds",
            "Time that actors spent in the simulator, in the policy, and in writing to the store",
            ("part",),
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
            "Completed evaluation episodes of the newest evaluated policy version, at whatever place",
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
            "longview_loss_by_position",
            "gauge",
            "mean squared error",
            "Training loss by the position of the action: how many steps from now on, or past",
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
            "longview_learner_data_wait_seconds_total",
            "counter",
            "seconds",
            "Time that learner ranks waited for data",
        ),
        Metric(
            "longview_validation_seconds_total",
            "counter",
            "seconds",
            "Time that validating published policies took",
        ),
        # store and roles
        Metric("longview_store_bytes", "gauge", "bytes", "Size of all stored chunks", merge="last"),
        Metric("longview_store_episodes", "gauge", "episodes", "Episodes in the store", merge="last"),
        Metric("longview_actor_restarts_total", "counter", "restarts", "Ray actors started again", ("role",)),
    )
}


def metric(name: str) -> Metric:
    """The catalogue's entry of that name.

    Raises:
        UnknownMetric: there is none; the message suggests the nearest.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, CATALOGUE, n=1)
    raise UnknownMetric(f"unknown metric {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
