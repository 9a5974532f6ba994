"""Evaluation of a checkpoint at several context lengths: `longview evaluate`."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longview.actors.environment import ANSWER
from longview.actors.task import UnknownTask, load_task
from longview.cluster.driver.collection import Collection
from longview.cluster.driver.dispatch import Dispatcher
from longview.cluster.driver.launch import ray_cluster, start_actor, start_servers
from longview.cluster.driver.orders import Orders
from longview.cluster.run.config import (
    ConfigError,
    PlacementConfig,
    RunConfig,
    environment_of,
    read_config,
    task_of,
)
from longview.cluster.run.preflight import refuse_unsimulated
from longview.cluster.views.terminal import console, success_table
from longview.monitoring.success import Success
from longview.replay.episode import TaskSpec


def evaluate_checkpoint(
    file: Path,
    adapter: Path | None,
    task: str | None,
    lengths: Sequence[int] | None,
    episodes: int,
    seed: int,
    settings: Sequence[str],
    *,
    delay: int | None = None,
    as_json: bool,
) -> None:
    """Evaluate a policy, and print a table, or JSON in the shape of summary.json's `success`.

    Args:
        file: the policy's weights.
        adapter: file of an adapter that was trained from them; None: the policy as it is.
        task: name of the task; by default the one that the policy was trained for.
        lengths: context lengths; by default those of the policy's task.
        episodes: episodes per context length.
        seed: the evaluation's seeds follow from it.
        settings: overrides of the config, `key=value`.
        delay: steps that a robot makes while it waits for a decision; by default those of the settings.
        as_json: print JSON.

    Raises:
        ConfigError: the file holds no policy, the adapter does not fit it, the task has no simulator or does
            not fit the policy, or the policy takes no such context length or delay.
    """
    from longview.learner.adapters import with_adapter
    from longview.learner.policy import policy_from_bytes, policy_to_bytes

    weights = file.read_bytes()
    try:
        policy = policy_from_bytes(weights)
    except ValueError as error:
        raise ConfigError(f"{file} holds no policy: {error}") from None
    if adapter is not None:
        try:
            policy = with_adapter(policy, adapter)
        except ValueError as error:
            raise ConfigError(f"--adapter: {error}") from None
        file, weights = adapter, policy_to_bytes(policy)
    name = task or policy.spec.name
    try:
        simulated = load_task(name, environment=environment_of(settings)).spec
    except UnknownTask as error:
        raise ConfigError(f"{file}: only a policy of a task with a simulator is evaluated: {error}") from None
    actors = {
        "cameras": cameras_of(simulated, policy.spec),
        "oracle": ANSWER in policy.spec.observation,
    }
    learner = {"policy": {"kind": policy.config.kind}}
    config = read_config(None, settings, task=name, seed=seed, actors=actors, learner=learner)
    spec, longest = task_of(config).spec, policy.horizon.context
    if (spec.observation, spec.action) != (policy.spec.observation, policy.spec.action):
        raise ConfigError(
            f"--task {spec.name}: its observations and actions are not those of {policy.spec.name}, which "
            f"{file} was trained for"
        )
    chosen = tuple(sorted(set(lengths or (t for t in policy.spec.context_lengths if t <= longest))))
    if chosen[0] < 1 or chosen[-1] > longest:
        raise ConfigError(f"--context {list(chosen)}: this policy takes context lengths from 1 to {longest}")
    delay = config.evaluation.delay if delay is None else delay
    if 2 * delay > policy.horizon.execute:
        raise ConfigError(
            f"--delay {delay} exceeds half of the {policy.horizon.execute} actions of this policy's decisions"
        )
    refuse_unsimulated(config)
    evaluation = replace(config.evaluation, context_lengths=chosen, final_episodes=episodes, delay=delay)
    # The command starts its own Ray, as a run without a cluster does, and places nothing.
    config = replace(config, evaluation=evaluation, placement=PlacementConfig())
    step = re.search(r"\d+", file.parent.name)
    success = _evaluate(config, spec, int(step[0]) if step else 0, weights)
    if as_json:
        counts = {length: asdict(found) for length, found in success.items()}
        print(json.dumps({"policy": str(file), "seed": seed, "delay": delay, "success": {spec.name: counts}}))
    else:
        title = f"{config.task}: {file}"
        if delay:
            how = "continued" if delay <= policy.horizon.max_delay else "plain switching"
            title += f", a delay of {delay} ({how})"
        if config.evaluation.history != "own":
            title += f", history: {config.evaluation.history}"
        console.print(success_table(success, title, spec.chance))


def cameras_of(simulated: TaskSpec, seen: TaskSpec) -> dict[str, Any]:
    """Return the settings of cameras with which a policy that saw `seen` saw the task `simulated`."""
    sizes = {
        key.removesuffix("_image"): array.shape[0]
        for key, array in seen.observation.items()
        if array.is_image and key not in simulated.observation
    }
    if not sizes:
        return {}
    hidden = sorted(simulated.observation.keys() - seen.observation.keys())
    return {"names": list(sizes), "size": max(sizes.values()), "instead_of": hidden}


def _evaluate(config: RunConfig, spec: TaskSpec, version: int, weights: bytes) -> Success:
    orders = Orders(config, spec, Collection(config, spec))
    orders.conclude(version)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ray_cluster(config, None), Progress(*columns, console=console, transient=True) as bar:
        reference = ray.put(weights)
        dispatcher = Dispatcher(orders)
        _servers = start_servers(config, cpus=0, reports=False)  # a server ends with its handle
        for index in range(config.actors.count):
            dispatcher.add(f"actor-{index}", start_actor(config, None, 0, f"actor-{index}"))
        total = sum(evaluation.wanted for evaluation in orders.evaluations.values())
        shown = bar.add_task("", total=total)
        while not orders.idle:
            dispatcher.dispatch(version, 0, lambda _: ([reference], 0.0))
            for order, result in dispatcher.collect(timeout=0.25):
                orders.finish(order, result)
                bar.advance(shown, order.count)
    return {found.context_length: found.counts for found in orders.evaluations.values()}
