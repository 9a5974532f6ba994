"""Checks before a run starts, for what would otherwise stop it after minutes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from longview.actors.task import make_simulator
from longview.cluster.run.config import ConfigError, RunConfig, task_of


def refuse_untrainable(config: RunConfig) -> None:
    """Refuse a run that has nothing to learn from.

    Raises:
        ConfigError: the demonstrations do not exist; or none are given, and the task has no expert.
    """
    task = task_of(config)
    if config.demonstrations is not None:
        if not Path(config.demonstrations).exists():
            raise ConfigError(f"demonstrations: there is no file or folder {config.demonstrations}")
    elif task.expert is None:
        raise ConfigError(
            f"task {config.task} has no expert: give human demonstrations, in a format that `longview store "
            "import` reads, as demonstrations=PATH"
        )


def refuse_unsimulated(config: RunConfig) -> None:
    """Refuse a task that this machine cannot simulate, or cannot render where cameras are asked for.

    Raises:
        SimulatorError: the message says what is missing.
    """
    env = make_simulator(task_of(config))
    env.reset(seed=0)
    env.close()


def refuse_unplaced(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a run for which a Ray cluster has no room. An autoscaled cluster is taken to grow as needed.

    Args:
        config: the run's.
        nodes: resources of each node of the cluster, by name.

    Raises:
        ConfigError: the message says what is missing.
    """
    placement = config.placement
    if placement.autoscaled:
        return
    actor, learner = {"CPU": 1.0, **placement.actor}, {"CPU": 1.0, **placement.learner}
    if placement.learner_gpus:
        learner["GPU"] = placement.learner_gpus
    roles = (
        ("actors.count", config.actors.count, actor, "placement.actor"),
        ("learners", config.learners, learner, "placement.learner"),
    )
    mend = "add nodes, or if the cluster does so by itself, set placement.autoscaled=true"
    for _, _, asked, key in roles:
        for name, amount in asked.items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if most < amount:
                raise ConfigError(
                    f"{key}_gpus {amount:g}: no node of this Ray cluster has more than {most:g} GPUs; {mend}"
                    if name == "GPU"
                    else f"{key}: no node of this Ray cluster has {amount:g} {name} (the most is {most:g}); "
                    f"start nodes with --resources, or {mend}"
                )
    cpus, needed = sum(node.get("CPU", 0) for node in nodes), config.actors.count + config.learners
    if cpus < needed:
        raise ConfigError(
            f"actors.count {config.actors.count} + learners {config.learners} need {needed} CPUs, "
            f"this Ray cluster has {cpus:g}: lower them, {mend}"
        )
    for count_key, count, asked, _ in roles:
        room = sum(int(min(node.get(name, 0) // amount for name, amount in asked.items())) for node in nodes)
        if room < count:
            each = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
            raise ConfigError(
                f"{count_key} {count}: this Ray cluster has room for {room} ({each} each): lower it, {mend}"
            )
