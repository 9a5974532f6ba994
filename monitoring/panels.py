"""The panels of all dashboards, as data. `dashboards.py` makes Grafana's JSON of them.

RUN and TASK stand for the labels that a person chooses at the top of a dashboard: one run or several.
Where monitoring/rules.yaml records a quantity, panels show the recorded one: panels and alerts have the same
numbers and thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from longview.monitoring.metrics import RATES

RUN = '{run=~"$run"}'
TASK = '{run=~"$run", task=~"$task"}'
DEATHS = '{run=~"$run", cause!="worn"}'
LENGTH = '{run=~"$run", task=~"$task", context_length="$context_length"}'

GREEN, ORANGE, RED = "green", "orange", "red"

BY_LENGTH = "T_o = {{context_length}}"

Kind = Literal["stat", "lines", "stack", "curve", "table", "heatmap"]
"""`stat` is the number of this moment, or nothing while the hub is away; `lines` and `stack` are over time;
`curve` and `table` are over context length; `heatmap` is a distribution over time."""


@dataclass(frozen=True)
class Panel:
    """One plot, table or number of a dashboard."""

    title: str
    """Heading of the panel."""
    description: str
    """Explanation, with the value from which on it is bad; Grafana shows it behind the *i*."""
    kind: Kind
    """Kind of drawing."""
    unit: str
    """Unit of the values, by Grafana's name."""
    queries: Mapping[str, str]
    """PromQL of each series, by its name at the head of a table's column, or in the legend after its run."""
    width: int = 8
    """Width in columns; a dashboard has 24."""
    height: int = 8
    """Height in Grafana's rows."""
    thresholds: Mapping[float, str] | None = None
    """Colours by the value from which on they hold, ascending; below the first it is green."""
    maximum: float | None = None
    """Upper end of the axis, whose lower end is then 0; by default the values decide."""
    repeat: str | None = None
    """A variable of the dashboard; the panel is repeated for each of its values, in a row for each run."""
    names: Mapping[int, str] | None = None
    """Words that are shown in place of values."""
    band: tuple[str, str] | None = None
    """Names of two queries, upper and lower; the area between them is filled."""


@dataclass(frozen=True)
class Dashboard:
    """Panels, from left to right and from top to bottom."""

    uid: str
    """Name in Grafana's addresses."""
    title: str
    """Heading of the dashboard."""
    description: str
    """The question that the dashboard answers."""
    panels: tuple[Panel, ...]
    """The panels, in reading order."""


def ratio(
    title: str, description: str, queries: Mapping[str, str], kind: Kind = "lines", **more: Any
) -> Panel:
    """Make a panel of shares between 0 and 1; `more` are further fields of `Panel`."""
    return Panel(title, description, kind, "percentunit", queries, maximum=1.0, **more)


def by_length(metric: str) -> str:
    """Make a query for `curve` or `table`: one value a context length, by which Grafana joins queries."""
    return f"max by (context_length) ({metric}{TASK})"


INTERVAL = ("upper 95%", "lower 95%")
"""Names of the queries that are the ends of an interval."""


def with_interval(title: str, description: str, name: str, **more: Any) -> Panel:
    """Make a panel of a rate and its 95% Wilson interval by context length; `more` as for `ratio`."""
    upper, lower = INTERVAL
    columns = {upper: "_upper", name.replace("_", " "): "", lower: "_lower"}
    queries = {column: by_length(f"longview_{name}_ratio{suffix}") for column, suffix in columns.items()}
    return ratio(title, description, queries, "curve", band=INTERVAL, **more)


def in_range(counter: str, labels: str) -> str:
    """Make the query of a counter's growth within the shown time."""
    return f"sum by (run) (round(increase({counter}{labels}[$__range])))"


def buckets(histogram: str) -> dict[str, str]:
    """Make the query of a `heatmap`."""
    return {"{{le}}": f"sum by (le) (increase({histogram}_bucket{RUN}[$__rate_interval]))"}


ALERTS = Panel(
    "Alerts",
    "Number of alerts that fire for the chosen runs; 0 is well. The red marks in the plots name them, and "
    "docs/runbook.md says what to do about each.",
    "stat",
    "none",
    {"alerts": 'count(ALERTS{alertname=~"Longview.+", alertstate="firing", run=~"$run"}) or vector(0)'},
    thresholds={1: RED},
)
HEARD = Panel(
    "Last heard",
    "Time since Prometheus last reached the run's hub. The other numbers of this row are of this moment, and "
    "missing while the hub is away or once the run has ended.",
    "stat",
    "s",
    {"ago": f"time() - max by (run) (last_over_time(longview:heard_timestamp_seconds:max{RUN}[1d]))"},
    thresholds={60: ORANGE, 600: RED},
    width=3,
    height=4,
)
PHASE = Panel(
    "Phase",
    "What the run does: it collects demonstrations, trains, or evaluates its last policy.",
    "stat",
    "none",
    {"phase": f"max by (run) (longview_phase{RUN})"},
    names={0: "ended", 1: "collects", 2: "trains", 3: "evaluates"},
)
TIME_LEFT = Panel(
    "Time left",
    "Estimated time until this phase ends, from its pace so far.",
    "stat",
    "s",
    {"left": f"max by (run) (longview_phase_seconds_left{RUN})"},
)
ACTORS = Panel(
    "Actors",
    "Rollout actors that reported within the last 15 s, and the number that the run wants. Red: none is "
    "alive.",
    "stat",
    "none",
    {
        "alive": f"max by (run) (longview_actors{RUN})",
        "wanted": f"max by (run) (longview_actors_target{RUN})",
    },
    thresholds={0: RED, 1: GREEN},
    width=3,
    height=4,
)
BEST_SUCCESS = ratio(
    "Success",
    "Success of the newest evaluated policy at the context length where it is highest.",
    {"best": f"max by (run) (longview_success_ratio{TASK})"},
    "stat",
)
STEPS = Panel(
    "Simulated",
    "Control steps that all simulators together make per second.",
    "stat",
    "suffix:steps/s",
    {"steps": f"sum by (run) (longview:env_steps:rate1m{TASK})"},
    thresholds={0: RED, 0.1: GREEN},
    width=3,
    height=4,
)
SAMPLES = Panel(
    "Trained",
    "Windows that all learner ranks together train on per second; 0 before training starts and after it "
    "ends.",
    "stat",
    "suffix:windows/s",
    {"windows": f"longview:samples_trained:rate1m{RUN}"},
    width=3,
    height=4,
)
DATA_WAIT = ratio(
    "Learner waits",
    "Share of its time that the learner waits for data. More than 20%: actors or store are too slow for it.",
    {"waiting": f"longview:learner_data_wait:ratio5m{RUN}"},
    "stat",
    thresholds={0.2: RED},
    width=3,
    height=4,
)
STALENESS = Panel(
    "Staleness",
    "Age of the policies that collected episodes come from, in publications: 90% of them are at most this "
    "old. More than 5 is stale.",
    "stat",
    "suffix:publications",
    {"90%": f"longview:staleness_publications:p90_10m{RUN}"},
    thresholds={5: RED},
    width=3,
    height=4,
)
STORE_FILL = ratio(
    "Store",
    "Size of the stored episodes as a share of the store's budget. A full store is well: the oldest "
    "collected episodes are removed for new ones.",
    {"full": f"longview:store_bytes:ratio{RUN}"},
    "stat",
    width=3,
    height=4,
)
SUCCESS = ratio(
    "Success over training",
    "Success of the newest evaluated policy at each context length: is it getting better? Marks show "
    "published policies and finished evaluations.",
    {BY_LENGTH: f"longview_success_ratio{TASK}"},
    width=12,
    height=9,
)
SUCCESS_CURVE = with_interval(
    "Success by context length",
    "The newest evaluated policy: its success, with its 95% Wilson interval. Does it need its memory, and "
    "does it use it?",
    "success",
    width=12,
    height=9,
)
ACTOR_TIME = ratio(
    "What actors do",
    "Shares of the actors' time: in simulators, in the policy, in the expert, writing to the store, loading "
    "policies, held by the limiter of collection, done because the expert's steps are spent, otherwise "
    "waiting for orders.",
    {"{{part}}": f"longview:actor_seconds:share1m{RUN}"},
    "stack",
)
STEP_RATE = Panel(
    "Simulated steps",
    "Control steps per second of all simulators together, by task, and how many are an expert's.",
    "lines",
    "suffix:steps/s",
    {
        "{{task}}": f"longview:env_steps:rate1m{TASK}",
        "expert, {{task}}": f"longview:expert_steps:rate1m{TASK}",
    },
)
SAMPLE_RATE = Panel(
    "Trained windows",
    "Windows per second of all learner ranks together.",
    "lines",
    "suffix:windows/s",
    {"windows": f"longview:samples_trained:rate1m{RUN}"},
)
BACKPRESSURE = ratio(
    "Backpressure",
    "Share of their time that actors wait because the store does not keep up. More than 10%: use a faster "
    "Redis, or fewer actors.",
    {"actors wait": f"longview:backpressure:ratio5m{RUN}"},
    thresholds={0.1: RED},
)
QUEUE = Panel(
    "Chunks that wait",
    "Chunks in the actors' queues to the store. Growing: the store does not keep up.",
    "lines",
    "none",
    {"chunks": f"longview_store_queue_depth{RUN}"},
)
WRITE_RATE = Panel(
    "Written",
    "Compressed size of the episodes committed to the store, per second and by source.",
    "lines",
    "Bps",
    {"{{source}}": f"longview:store_committed_bytes:rate1m{RUN}"},
)

KUBERNETES = (
    ratio(
        "Memory of Redis",
        "Kubernetes: used memory of Redis as a share of its maxmemory. More than 90%: soon it refuses "
        "writes.",
        {"used": f"longview:redis_memory:ratio{RUN}"},
        thresholds={0.9: RED},
    ),
    ratio(
        "Fullest volume",
        "Kubernetes: how far the fullest volume is filled: that of the run, one of Redis, or, as of its last "
        "backup, that of the backups.",
        {"filled": f"longview:volume:ratio{RUN}"},
        thresholds={0.85: RED},
    ),
    Panel(
        "Redis and the RayJob",
        "Kubernetes: 1 while Redis can write its append-only file, 1 while the second Redis follows the "
        "first, 1 when the RayJob has used up its attempts, and 1 when it is complete, suspended or deleted.",
        "lines",
        "none",
        {
            "file is written": f"longview:redis_file:ok{RUN}",
            "copy follows": f"longview:redis_copy:ok{RUN}",
            "attempts used up": f"longview:attempts_used_up:bool{RUN}",
            "RayJob is over": f"longview:job_over:bool{RUN}",
        },
    ),
)
"""Panels that have data only on Kubernetes."""

OVERVIEW = Dashboard(
    "longview-overview",
    "Longview: Overview",
    "Is the run healthy, and is it getting better?",
    (
        *(replace(it, width=4, height=3) for it in (ALERTS, HEARD, PHASE, TIME_LEFT, BEST_SUCCESS, ACTORS)),
        *(replace(it, width=5, height=3) for it in (STEPS, SAMPLES, DATA_WAIT, STALENESS)),
        replace(STORE_FILL, width=4, height=3),
        *(SUCCESS, SUCCESS_CURVE),
        *(ACTOR_TIME, STEP_RATE, SAMPLE_RATE),
    ),
)

SUCCESS_BY_CONTEXT = Dashboard(
    "longview-success",
    "Longview: Success by context length",
    "How well does each context length do, how sure is that, and what fails: the manipulation or the memory?",
    (
        replace(HEARD, width=12, height=3),
        Panel(
            "Evaluated policy",
            "The newest evaluated policy. All numbers of this dashboard are about it.",
            "stat",
            "prefix:step ",
            {"version": f"longview_evaluation_version{RUN}"},
            width=12,
            height=3,
        ),
        Panel(
            "The newest evaluation",
            "Episodes, and rates with their 95% Wilson intervals. Completed: the manipulation was carried "
            "out, at any place. Contextual: the share of completed episodes that ended at the right place.",
            "table",
            "none",
            {
                "episodes": by_length("longview_evaluation_episodes"),
                "successes": by_length("longview_evaluation_successes"),
                "completed": by_length("longview_evaluation_completed"),
            }
            | {
                f"{name.replace('_', ' ')} {what}": by_length(f"longview_{name}_ratio{suffix}")
                for name, _ in RATES.values()
                for what, suffix in {"rate": "", "from": "_lower", "to": "_upper"}.items()
            },
            width=24,
            height=9,
        ),
        SUCCESS_CURVE,
        SUCCESS,
        ratio(
            "Completion over training",
            "Share of the evaluation episodes in which the manipulation was carried out, at any place.",
            {BY_LENGTH: f"longview_completion_ratio{TASK}"},
        ),
        ratio(
            "Contextual success over training",
            "Share of the completed episodes that ended at the right place. At chance: the policy guesses.",
            {BY_LENGTH: f"longview_contextual_success_ratio{TASK}"},
        ),
        with_interval(
            "Completion by context length",
            "The newest evaluated policy, with its 95% Wilson interval.",
            "completion",
        ),
        with_interval(
            "Contextual success by context length",
            "The newest evaluated policy, with its 95% Wilson interval.",
            "contextual_success",
        ),
        Panel(
            "Below its best",
            "Success of the best three successive policies minus that of the newest three. 0 unless chance "
            "is ruled out; above 0 the policy has become worse, and an alert fires.",
            "lines",
            "percentunit",
            {BY_LENGTH: f"longview_success_drop_ratio{TASK}"},
            thresholds={0.01: RED},
            maximum=1.0,
        ),
        Panel(
            "Action error",
            "Mean distance of the newest published policy's actions from the right ones, as a share of "
            "their range, on demonstrations that are not trained on.",
            "lines",
            "percentunit",
            {BY_LENGTH: f"longview_action_error_ratio{RUN}"},
        ),
        Panel(
            "T_o = $context_length",
            "Success at this context length, with its 95% Wilson interval.",
            "lines",
            "percentunit",
            {
                INTERVAL[0]: f"longview_success_ratio_upper{LENGTH}",
                "success": f"longview_success_ratio{LENGTH}",
                INTERVAL[1]: f"longview_success_ratio_lower{LENGTH}",
            },
            width=24,
            maximum=1.0,
            repeat="context_length",
            band=INTERVAL,
        ),
    ),
)

THROUGHPUT = Dashboard(
    "longview-throughput",
    "Longview: Throughput",
    "Are the simulators busy, does data flow, and is anything dying?",
    (
        *(HEARD, ACTORS, STEPS),
        Panel(
            "Real-time factor",
            "Simulated seconds per second that an actor spends in its simulators; the rest of its time does "
            "not count.",
            "stat",
            "suffix:x",
            {"factor": f"longview:real_time_factor:mean1m{RUN}"},
            width=3,
            height=4,
        ),
        Panel(
            "Restarts",
            "Deaths and preemptions of Ray actors within the shown time. Each came back; many tell of a "
            "cause that remains.",
            "stat",
            "none",
            {"restarts": in_range("longview_actor_restarts_total", DEATHS)},
            thresholds={1: ORANGE, 10: RED},
            width=2,
            height=4,
        ),
        Panel(
            "Errors",
            "Errors that a role met and the run survived, besides deaths, within the shown time.",
            "stat",
            "none",
            {"errors": in_range("longview_errors_total", RUN)},
            thresholds={1: ORANGE, 10: RED},
            width=2,
            height=4,
        ),
        ratio(
            "Invalid episodes",
            "Share of the episodes whose simulator diverged, over 10 minutes. They are kept, and never "
            "trained on.",
            {"{{task}}": f"longview:invalid_episodes:ratio10m{TASK}"},
            "stat",
            thresholds={0.01: ORANGE, 0.1: RED},
            width=3,
            height=4,
        ),
        Panel(
            "Refused actions",
            "Actions within the shown time that the task refused as not finite or out of range; each ended "
            "its episode.",
            "stat",
            "none",
            {"actions": in_range("longview_refused_actions_total", TASK)},
            thresholds={1: ORANGE, 100: RED},
            width=2,
            height=4,
        ),
        DATA_WAIT,
        *(STEP_RATE, ACTOR_TIME),
        Panel(
            "Real-time factor over time",
            "Simulated seconds per second in simulators. It falls when cores are shared.",
            "lines",
            "suffix:x",
            {"factor": f"longview:real_time_factor:mean1m{RUN}"},
        ),
        Panel(
            "Episodes",
            "Episodes that end per second, by source and outcome.",
            "stack",
            "suffix:episodes/s",
            {"{{source}}, {{outcome}}": f"sum by (run, source, outcome) (longview:episodes:rate1m{TASK})"},
        ),
        *(WRITE_RATE, BACKPRESSURE, QUEUE),
        Panel(
            "Actors over time",
            "Rollout actors that are alive, and the number that the run wants.",
            "lines",
            "none",
            dict(ACTORS.queries),
        ),
        Panel(
            "Restarts and errors over time",
            "Ray actors started again within 10 minutes, by role and cause: died, preempted with their "
            "node, or worn from rendering; and errors that a role survived. More than 10 deaths and errors "
            "of a role for 15 minutes: a cause remains.",
            "stack",
            "none",
            {
                "{{role}} {{cause}}": f"longview:restarts:increase10m{RUN}",
                "{{role}} errors": f"longview:errors:increase10m{RUN}",
            },
        ),
        Panel(
            "Decisions of servers",
            "Decisions of the inference servers per second, each for one simulator. Empty where actors hold "
            "the policy themselves.",
            "lines",
            "suffix:decisions/s",
            {"decisions": f"longview:inference_decisions:rate1m{RUN}"},
        ),
        Panel(
            "Batches of servers",
            "Simulators that an inference server decides for at once: half of the batches have at most this "
            "many. As few as one actor's half: the servers find nothing to gather.",
            "lines",
            "none",
            {"50%": f"longview:inference_batch_size:p50_5m{RUN}"},
        ),
        Panel(
            "Waits at servers",
            "Time from the arrival of a request at an inference server until its batch is decided, below "
            "which 90% stay. Far above `inference.wait_ms`: the servers are too few, or too slow.",
            "lines",
            "s",
            {"90%": f"longview:inference_wait_seconds:p90_5m{RUN}"},
        ),
    ),
)

LEARNER = Dashboard(
    "longview-learner",
    "Longview: Learner",
    "Is the learner busy, does it learn, and are its policies in use soon?",
    (
        HEARD,
        Panel(
            "Training step",
            "Training steps done.",
            "stat",
            "none",
            {"step": f"longview_learner_step{RUN}"},
            width=2,
            height=4,
        ),
        Panel(
            "Published policy",
            "Training step of the newest published policy.",
            "stat",
            "prefix:step ",
            {"version": f"longview_policy_version{RUN}"},
            width=3,
            height=4,
        ),
        *(SAMPLES, DATA_WAIT, STALENESS),
        Panel(
            "GPU memory",
            "Most memory that a learner rank has ever held on its GPU; 0 on CPU.",
            "stat",
            "bytes",
            {"held": f"longview_gpu_memory_bytes{RUN}"},
            width=3,
            height=4,
        ),
        ratio(
            "Out of range",
            "Share of the newest batch's observed values outside of the ranges that were frozen when "
            "training started. Many: collected episodes look unlike the demonstrations.",
            {"outside": f"longview_out_of_range_ratio{RUN}"},
            "stat",
            thresholds={0.05: ORANGE, 0.2: RED},
            width=2,
            height=4,
        ),
        ratio(
            "Validating",
            "Share of its time that the learner spends on validating published policies, over 5 minutes.",
            {"validating": f"sum by (run) (rate(longview_validation_seconds_total{RUN}[5m]))"},
            "stat",
            width=2,
            height=4,
        ),
        Panel(
            "Training loss",
            "Mean squared error by the context length of the training step.",
            "lines",
            "none",
            {BY_LENGTH: f"longview_loss{RUN}"},
        ),
        Panel(
            "Validation loss",
            "Loss of the newest published policy on held-out demonstrations. It rises while the training "
            "loss falls: the policy learns the training data by heart.",
            "lines",
            "none",
            {BY_LENGTH: f"longview_validation_loss{RUN}"},
        ),
        Panel(
            "Gradient norm",
            "Norm of the gradient before clipping, by the context length of the training step.",
            "lines",
            "none",
            {BY_LENGTH: f"longview_gradient_norm{RUN}"},
        ),
        Panel(
            "Loss by position",
            "Training loss by the position of the action in steps from now; `past` are past actions.",
            "lines",
            "none",
            {"{{position}}": f"longview_loss_by_position{RUN}"},
        ),
        SAMPLE_RATE,
        ratio(
            "The learner waits",
            "Share of its time that the learner waits for data, and the part of it that it waits for the "
            "limiter of samples per insert.",
            {
                "for data": f"longview:learner_data_wait:ratio5m{RUN}",
                "for the limiter": f"longview:limiter_wait:ratio5m{RUN}",
            },
            thresholds={0.2: RED},
        ),
        Panel(
            "Duration of a training step",
            "Time without the wait for data, below which 50% and 90% of the training steps stay.",
            "lines",
            "s",
            {
                "50%": f"longview:learner_step_seconds:p50_5m{RUN}",
                "90%": f"longview:learner_step_seconds:p90_5m{RUN}",
            },
        ),
        Panel(
            "Staleness in training steps",
            "Age of the policies that collected episodes come from, when the episodes arrived: 50% and 90% "
            "of them are at most this old. Beside it the mean and the worst of the actors now.",
            "lines",
            "suffix:steps",
            {
                "50%": f"longview:staleness_steps:p50_10m{RUN}",
                "90%": f"longview:staleness_steps:p90_10m{RUN}",
                "mean of actors": f"longview_staleness_mean{RUN}",
                "worst actor": f"longview_staleness_max{RUN}",
                "a publication": f"longview_publish_interval_steps{RUN}",
            },
        ),
        Panel(
            "From publication to use",
            "Time from the publication of a policy until an actor acts with it: 90% take at most this long. "
            "More than 600 s is stale.",
            "lines",
            "s",
            {"90%": f"longview:publish_to_use_seconds:p90_10m{RUN}"},
            thresholds={600: RED},
        ),
        Panel(
            "Distribution of staleness",
            "Collected episodes by the age of their policy in training steps.",
            "heatmap",
            "none",
            buckets("longview_staleness_steps"),
            width=12,
        ),
        Panel(
            "Distribution of step durations",
            "Training steps by their duration.",
            "heatmap",
            "s",
            buckets("longview_learner_step_seconds"),
            width=12,
        ),
    ),
)

STORE = Dashboard(
    "longview-store",
    "Longview: Store",
    "What is stored, is there room, and does the store keep up?",
    (
        *(HEARD, STORE_FILL),
        Panel(
            "Demonstrations' share",
            "Size of the episodes that are never evicted, as a share of the store's budget. More than 80%: "
            "hardly any room for collected episodes.",
            "stat",
            "percentunit",
            {"kept": f"longview:store_kept_bytes:ratio{RUN}"},
            thresholds={0.8: RED},
            width=3,
            height=4,
        ),
        Panel(
            "Episodes",
            "Episodes in the store now.",
            "stat",
            "none",
            {"{{source}}": f"longview_store_episodes{RUN}"},
            width=5,
            height=4,
        ),
        Panel(
            "Quarantined",
            "Damaged episodes that were set aside; `longview store verify` says what is wrong with them.",
            "stat",
            "none",
            {"episodes": f"longview_store_quarantined_episodes{RUN}"},
            thresholds={1: RED},
            width=2,
            height=4,
        ),
        Panel(
            "Evicted",
            "Collected episodes that made room for newer ones within the shown time. Usual once the store "
            "is full.",
            "stat",
            "none",
            {"episodes": in_range("longview_store_evicted_episodes_total", RUN)},
            width=2,
            height=4,
        ),
        Panel(
            "Ever committed",
            "Compressed size of all episodes ever committed, those evicted included.",
            "stat",
            "decbytes",
            {"all sources": f"sum by (run) (longview_store_committed_bytes_total{RUN})"},
            width=3,
            height=4,
        ),
        Panel(
            "Waiting",
            "Chunks in the actors' queues to the store.",
            "stat",
            "suffix:chunks",
            {"chunks": f"longview_store_queue_depth{RUN}"},
            width=3,
            height=4,
        ),
        Panel(
            "Size",
            "Compressed size of the stored episodes, by source.",
            "stack",
            "decbytes",
            {"{{source}}": f"longview_store_bytes{RUN}"},
        ),
        Panel(
            "Size and budget",
            "Size of all stored episodes, and the budget (replay.byte_budget): beyond it the oldest "
            "collected episodes are evicted.",
            "lines",
            "decbytes",
            {
                "stored": f"sum by (run) (longview_store_bytes{RUN})",
                "budget": f"max by (run) (longview_store_byte_budget{RUN})",
            },
        ),
        Panel(
            "Episodes over time",
            "Episodes in the store, by source.",
            "stack",
            "none",
            {"{{source}}": f"longview_store_episodes{RUN}"},
        ),
        *(WRITE_RATE, BACKPRESSURE, QUEUE),
        Panel(
            "Evictions",
            "Collected episodes per second that make room for newer ones.",
            "lines",
            "suffix:episodes/s",
            {"evicted": f"rate(longview_store_evicted_episodes_total{RUN}[$__rate_interval])"},
            width=12,
        ),
        ratio(
            "Limiter",
            "Share of its time that the learner waits because it has drawn all that "
            "replay.samples_per_insert allows.",
            {"learner waits": f"longview:limiter_wait:ratio5m{RUN}"},
            width=12,
        ),
        *KUBERNETES,
    ),
)

DASHBOARDS = (OVERVIEW, SUCCESS_BY_CONTEXT, THROUGHPUT, LEARNER, STORE)
"""In the order in which a person should look at them."""
