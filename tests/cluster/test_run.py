"""Whole runs in real processes, some of which are killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from longview.cluster.run.folder import Run, open_store
from longview.monitoring.snapshot import read_metrics

SMALL = """
task: return_point
seed: 5
actors: {count: 2, simulators: 8, demonstrations: 26}
collect: {kind: takeover, steps_per_training_step: 20}
learner:
  steps: 24
  warmup: 5
  batch_size: 16
  publish_every: 8
  checkpoint_every: 8
  report_every: 5
  validation_episodes: 4
  policy: {architecture: mlp, width: 32, depth: 1, token_size: 16, sampling_steps: 1}
evaluation: {episodes: 4, final_episodes: 8, context_lengths: [1, 8]}
"""
LONG = ("learner.steps=100000", "learner.checkpoint_every=50", "learner.publish_every=50")
DEMONSTRATIONS = 30
"""Demonstrations to train on and to validate on, together."""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(SMALL)
    return "small.yaml"


def run_of(longview: Any, name: str) -> Run:
    return Run(longview.folder / "runs" / name)


def summary_of(longview: Any, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((longview.folder / "runs" / name / "summary.json").read_text())
    return summary


def training(run: Run, step: int = 1) -> bool:
    """Whether the learner has reached a step."""
    try:
        metrics = read_metrics(run.state()["metrics"])
    except (KeyError, OSError):
        return False
    return metrics.total("longview_learner_step") >= step


def checkpointed(run: Run) -> list[Path]:
    return sorted(run.checkpoints.glob("step-*[0-9]"))


def assert_store_is_exact(longview: Any, name: str) -> None:
    """Check that no committed episode is lost or doubled, and that the counts fit the episodes."""
    with open_store(run_of(longview, name), None) as store:
        ids, stats = store.ids(), store.stats()
        assert len(store.ids("demo")) == DEMONSTRATIONS
        assert len(ids) == len(set(ids)) == stats.total.episodes
        assert sum(store.read(id).length for id in ids) == stats.total.steps
        assert sum(count.episodes for count in stats.committed.values()) == stats.total.episodes


def assert_nothing_is_left(longview: Any) -> None:
    longview.wait_for(lambda: not longview.processes())


SEEING = """
task: lift
actors:
  {count: 1, simulators: 2, demonstrations: 4, recycle: 2,
   cameras: {names: [agentview], size: 40}}
learner:
  {steps: 4, warmup: 1, batch_size: 8, publish_every: 4, checkpoint_every: 4, validation_episodes: 0}
evaluation: {episodes: 0, final_episodes: 1, context_lengths: [2]}
"""


def path_without(program: str, folder: Path) -> str:
    """Make a PATH with all installed programs but one."""
    folder.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for file in Path(entry).glob("*"):
            if file.name != program and not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
    return str(folder)


@pytest.mark.slow
def test_a_run_with_a_camera_replaces_actors_that_rendered_for_long(longview: Any) -> None:
    """The run goes without Prometheus, too."""
    (longview.folder / "seeing.yaml").write_text(SEEING)
    path = path_without("prometheus", longview.folder / "bin")
    code, output = longview("launch", "seeing.yaml", "name=seeing", PATH=path)
    assert code == 0, output
    run = run_of(longview, "seeing")
    assert run.state()["prometheus"] is None
    assert not (run.path / "prometheus").exists()
    assert "is replaced by a new process" in (run.path / "log.txt").read_text()
    assert summary_of(longview, "seeing")["success"]["lift"]["2"]["episodes"] == 1
    with open_store(run, None) as store:
        episode = store.read(store.ids("demo")[0])
        assert episode.arrays["observation.agentview_image"].shape == (episode.length, 40, 40, 3)
    assert_nothing_is_left(longview)


def test_a_run_with_two_learner_ranks(longview: Any, config: str) -> None:
    code, output = longview("launch", config, "name=whole", "learners=2", "actors.count=1")
    assert code == 0, output
    summary = summary_of(longview, "whole")
    assert summary["status"] == "finished"
    assert summary["policy_version"] == 24
    assert summary["seed"] == 5
    success = summary["success"]["return_point"]
    assert {length: counts["episodes"] for length, counts in success.items()} == {"1": 8, "8": 8}
    assert all(counts["successes"] <= counts["completed"] <= 8 for counts in success.values())
    assert 24 in {row["version"] for row in summary["history"]}
    sources = {row["source"] for row in summary["episodes"]}
    assert sources == {"demo", "correction"}
    corrected = sum(row["learnable"] for row in summary["episodes"] if row["source"] == "correction")
    assert 0 <= summary["expert_steps"] <= corrected, "without those of orders that were under way at the end"
    assert_store_is_exact(longview, "whole")
    run = run_of(longview, "whole")
    page = (run.path / "report.html").read_text()
    assert "return_point" in page
    assert "<h2>Episodes</h2>" in page
    assert (run.path / "episodes.png").read_bytes().startswith(b"\x89PNG")
    assert run.series.exists()
    assert (run.path / "success-return_point.png").stat().st_size > 1000
    assert_nothing_is_left(longview)

    # Afterwards status, store and evaluation work; the evaluation gives the same result twice.
    code, output = longview("status", "whole", "--json")
    assert code == 0
    assert json.loads(output) == summary
    code, output = longview("store", "stats", "--json")
    assert code == 0
    assert json.loads(output)["stored"]["demo"]["episodes"] == DEMONSTRATIONS
    sizes = ("--context", "1,64", "--episodes", "10")
    evaluations = [longview("evaluate", "runs/whole", *sizes, "--json", "actors.count=1") for _ in range(2)]
    (code, output), again = evaluations
    assert code == 0, output
    assert again == (code, output)
    counts = json.loads(output.splitlines()[-1])["success"]["return_point"]
    assert {length: row["episodes"] for length, row in counts.items()} == {"1": 10, "64": 10}
    code, output = longview("evaluate", "runs/whole", "--context", "65")
    assert code == 2, output
    assert "from 1 to 64" in output


@pytest.mark.timeout(600)
def test_a_run_under_way_that_is_killed_resumed_interrupted_and_resumed(longview: Any, config: str) -> None:
    process = longview.start("launch", config, "name=life", *LONG)
    run = run_of(longview, "life")
    assert_metrics_and_status(longview, run)

    # The driver is killed.
    longview.wait_for(lambda: checkpointed(run) and run.expert_steps())
    process.kill()
    process.wait()
    spent = run.expert_steps()
    assert spent is not None
    killed = last_step(run)
    code, output = longview("status", "life")
    assert code == 0
    assert "broken off" in output

    # Ctrl-C while it trains, with one more actor.
    process = longview.start("launch", "--resume", "life")
    longview.wait_for(lambda: training(run, killed + 10))
    code, output = longview("scale", "actors=3", "life")
    assert code == 0, output
    assert "life has 3 actors" in output
    assert len(longview.processes("ray::RolloutActor")) == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, process.communicate()
    assert_nothing_is_left(longview)
    assert summary_of(longview, "life")["status"] == "interrupted"
    reached = last_step(run)
    assert reached >= killed + 10

    code, output = longview("launch", "--resume", "life", f"learner.steps={reached + 20}")
    assert code == 0, output
    summary = summary_of(longview, "life")
    assert summary["policy_version"] == reached + 20
    assert summary["config"]["actors"]["count"] == 3
    assert summary["expert_steps"] >= spent
    assert_store_is_exact(longview, "life")


def last_step(run: Run) -> int:
    """Return the step of the newest checkpoint."""
    return int(checkpointed(run)[-1].name[-9:])


def assert_metrics_and_status(longview: Any, run: Run) -> None:
    """Check the metrics of a run under way, its status, and that it cannot be resumed."""
    longview.wait_for(run.evaluations)
    evaluated = ("return_point", "1")
    metrics = longview.wait_for(
        lambda: (
            evaluated in (found := read_metrics(run.state()["metrics"]))["longview_evaluation_episodes"]
            and found
        )
    )
    assert metrics["longview_episodes_total"]["return_point", "demo", "success"] == DEMONSTRATIONS
    assert metrics["longview_evaluation_episodes"][evaluated] == 4
    assert 0 <= metrics["longview_evaluation_completed"][evaluated] <= 4
    assert metrics["longview_invalid_episodes_total"] == {("return_point",): 0}
    for name in ("env_steps_total", "loss", "samples_trained_total", "policy_version", "staleness_max"):
        assert metrics[f"longview_{name}"], name
    lengths = {(str(length),) for length in (1, 8, 16, 24, 32, 48, 64)}
    assert metrics["longview_validation_loss"].keys() == lengths
    assert metrics["longview_action_error_ratio"].keys() == lengths
    assert metrics["longview_validation_seconds_total"][()] > 0
    assert metrics["longview_loss_by_position"].keys() >= {("0",), ("9",)}
    for name in ("store_bytes", "store_episodes", "actor_restarts_total", "actor_seconds_total"):
        assert metrics[f"longview_{name}"], name
    code, output = longview("status")
    assert code == 0, output
    assert "under way" in output
    assert "30 demo" in output
    code, output = longview("launch", "--resume", run.name)
    assert code == 2
    assert "is under way" in output


@pytest.mark.parametrize("moment", ["at once", "while Ray starts"])
def test_ctrl_c_at_the_start_leaves_nothing(longview: Any, config: str, moment: str) -> None:
    process = longview.start("launch", config, "name=stopped", "placement.actor_gpus=1", *LONG)
    if moment == "while Ray starts":
        longview.wait_for(lambda: longview.processes("gcs_server"))
    else:
        longview.wait_for(run_of(longview, "stopped").path.exists)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert_nothing_is_left(longview)
    if moment == "while Ray starts":
        assert "placement is for an existing Ray cluster: ignored without --address" in output


def test_whatever_is_killed_comes_back(longview: Any, config: str) -> None:
    process = longview.start("launch", config, "name=hurt", "learners=2", *LONG)
    run = run_of(longview, "hurt")

    # Killed while it collects demonstrations, or just after.
    os.kill(min(longview.wait_for(lambda: longview.processes("ray::RolloutActor"))), signal.SIGKILL)
    longview.wait_for(lambda: checkpointed(run))
    # Killed are one rank of two, and the role that holds the weights.
    ranks = longview.processes("ray::LearnerRank")
    assert len(ranks) == 2
    for victim in (min(ranks), *longview.processes("ray::WeightBoard")):
        os.kill(victim, signal.SIGKILL)
    reached = last_step(run)
    longview.wait_for(lambda: last_step(run) > reached + 50)
    # Killed are an actor that is evaluating or collecting, and the hub.
    victims = {max(longview.processes("ray::RolloutActor")), *longview.processes("ray::MetricsHub")}
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    longview.wait_for(lambda: len(set(longview.processes("ray::RolloutActor")) - victims) == 2)
    longview.wait_for(lambda: restarts(run).get("learner") == 1 and restarts(run).get("actor", 0) >= 1)
    evaluated = len(run.evaluations())
    longview.wait_for(lambda: len(run.evaluations()) > evaluated)
    code, output = longview("stop", "hurt")
    assert code == 0, output
    assert process.wait(40) == 130
    assert summary_of(longview, "hurt")["status"] == "interrupted"
    assert_nothing_is_left(longview)
    assert_store_is_exact(longview, "hurt")


PATIENCE = 300.0
"""Longest wait of a slow test for its next event, in seconds."""


@pytest.mark.slow
def test_a_run_acts_through_a_server_that_is_killed(longview: Any, config: str) -> None:
    process = longview.start("launch", config, "name=served", "inference.servers=1", "learner.steps=120")
    run = run_of(longview, "served")
    longview.wait_for(lambda: acted(run), PATIENCE)
    (victim,) = longview.processes("ray::InferenceServer")
    os.kill(victim, signal.SIGKILL)
    longview.wait_for(lambda: restarts(run).get("inference") == 1, PATIENCE)
    before = acted(run)
    longview.wait_for(lambda: acted(run) > before, PATIENCE)
    assert process.wait(2 * PATIENCE) == 0, process.communicate()
    assert_nothing_is_left(longview)
    counts = summary_of(longview, "served")["success"]["return_point"]
    assert {length: count["episodes"] for length, count in counts.items()} == {"1": 8, "8": 8}
    assert_store_is_exact(longview, "served")


def acted(run: Run) -> float:
    """Decisions of the run's servers so far."""
    try:
        return read_metrics(run.state()["metrics"]).total("longview_inference_decisions_total")
    except (KeyError, OSError):
        return 0.0


def restarts(run: Run) -> dict[str, float]:
    try:
        metrics = read_metrics(run.state()["metrics"])
    except OSError:  # the hub is restarting
        return {}
    counts = metrics["longview_actor_restarts_total"]
    return {role: count for (role, cause), count in counts.items() if cause == "died"}


@pytest.mark.slow
def test_two_runs_side_by_side(longview: Any, config: str) -> None:
    both = [longview.start("launch", config, f"name=side-{number}", f"seed={number}") for number in (1, 2)]
    for process in both:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    for number in (1, 2):
        assert summary_of(longview, f"side-{number}")["status"] == "finished"
        assert_store_is_exact(longview, f"side-{number}")


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 4, "resources": {"learner": 1}, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.add_node(num_cpus=1)
    print("added", flush=True)
cluster.shutdown()
"""


def test_a_run_attaches_to_a_running_ray_cluster_and_leaves_it_running(longview: Any, config: str) -> None:
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | longview.environment | {"RAY_worker_niceness": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with cluster:
        address = cluster.stdout.readline().strip()
        settings = ("placement.learner.learner=1", "evaluation.final_episodes=200")
        process = longview.start("launch", config, "name=attached", *settings, "--address", address)
        longview.wait_for(lambda: training(run_of(longview, "attached")))
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        # The learner's place is free for others as soon as training ends, while the last policy is evaluated.
        ray.get(ray.remote(resources={"learner": 1})(lambda: None).remote(), timeout=120)
        ray.shutdown()
        assert run_of(longview, "attached").under_way()
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert summary_of(longview, "attached")["status"] == "finished"
        longview.wait_for(lambda: not longview.processes("ray::RolloutActor"))

        code, output = longview("launch", config, "name=large", "actors.count=9", "--address", address)
        assert code == 2
        assert "need 10 CPUs" in output

        print("one more", file=cluster.stdin, flush=True)
        cluster.stdout.readline()
        code, output = longview("launch", config, "name=spread", "--address", address)
        assert code == 2, output
        assert "replay.url" in output
        cluster.stdin.close()
