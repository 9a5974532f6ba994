"""Checks before a run starts, for what would otherwise stop it after minutes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from longview.actors.control import needs_saving, saving_fault
from longview.actors.task import make_simulator
from longview.cluster.run.config import ConfigError, RunConfig, task_of


def refuse_untrainable(config: RunConfig, *, begun: bool = False) -> None:
    """Refuse a run that has nothing to learn from.

    Args:
        config: the run's.
        begun: whether the run's folder exists, since episodes may have been imported into its store.

    Raises:
        ConfigError: the demonstrations do not exist; or none are given, and the task has no expert; or the
            run has no simulator.
    """
    if config.data.spec:
        raise ConfigError(
            "this run learns from recorded data: go on with it by `longview train --resume RUN`"
        )
    task = task_of(config)
    if config.demonstrations is not None:
        if not Path(config.demonstrations).exists():
            raise ConfigError(f"demonstrations: there is no file or folder {config.demonstrations}")
    elif task.expert is None and not begun:
        raise ConfigError(
            f"task {config.task} has no expert: give human demonstrations, in a format that `longview store "
            "import` reads, as demonstrations=PATH; or import them into a run, and go on with it by --resume "
            "RUN. With collect.kind=rollout the policy's own successes are imitated as well, but no run "
            "begins with them"
        )


def refuse_unmirrored(config: RunConfig) -> None:
    """Refuse a mirror whose package cannot be imported.

    Raises:
        ConfigError: the message says what to install.
    """
    for name in config.monitoring.mirrors:
        try:
            import_module(name)  # a mirror's name is that of its package and of the extra
        except ImportError as error:
            raise ConfigError(
                f"monitoring.mirrors: {name} cannot be imported ({error}): pip install 'longview[{name}]'"
            ) from None


def refuse_unsimulated(config: RunConfig) -> None:
    """Refuse a task that this machine cannot simulate, or cannot render where cameras are asked for.

    Raises:
        SimulatorError: the message says what is missing.
        ConfigError: the expert is to make plans, and the simulator cannot return to an earlier state.
    """
    task, collect = task_of(config), config.collect
    env = make_simulator(task)
    env.reset(seed=0)
    wrong = saving_fault(task, env) if needs_saving(collect.kind, collect) else ""
    env.close()
    if wrong:
        raise ConfigError(
            f"collect.kind={collect.kind}, gate={collect.gate}, hand_back={str(collect.hand_back).lower()} "
            f"needs plans of the expert, and task {config.task} cannot return to an earlier state: {wrong}"
        )


def refuse_unplaced(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a run for which a Ray cluster has no room. An autoscaled cluster is taken to grow as needed.

    Args:
        config: the run's.
        nodes: resources of each node of the cluster, by name.

    Raises:
        ConfigError: the message says what is missing.
    """
    if config.placement.autoscaled:
        return
    roles = _roles(config, config.placement.learner_gpus or 0)
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
    _refuse_sum("CPU", roles, nodes, mend)
    for count_key, count, asked, _ in roles:
        if (room := room_for(asked, nodes)) < count:
            raise ConfigError(
                f"{count_key} {count}: this Ray cluster has room for {room} ({_named(asked)} each): "
                f"lower it, {mend}"
            )
    _refuse_sum("GPU", roles, nodes, mend)


def _roles(config: RunConfig, rank_gpus: float) -> list[tuple[str, int, dict[str, float], str]]:
    """List the roles that a run has: the key of their number, the number, what each takes from Ray, and the
    key of that."""
    placement = config.placement
    actor = {"CPU": 1.0, **placement.actor} | _gpus(placement.actor_gpus)
    server = {"CPU": 1.0} | _gpus(placement.inference_gpus)
    roles = [
        ("actors.count", config.rollout_actors, actor, "placement.actor"),
        ("learners", config.learners, resources_of_rank(config, rank_gpus), "placement.learner"),
        ("inference.servers", config.inference.servers, server, "placement.inference"),
    ]
    return [role for role in roles if role[1]]


def resources_of_run(config: RunConfig, gpus: float) -> dict[str, float]:
    """Return what all roles of a run take from Ray together, by name of the resource.

    Args:
        config: the run's.
        gpus: GPUs of the Ray cluster.
    """
    together = Counter[str]()
    for _, count, asked, _ in _roles(config, gpus_of_rank(config, gpus)):
        together.update({name: count * amount for name, amount in asked.items()})
    return dict(together)


def _refuse_sum(
    resource: str,
    roles: Sequence[tuple[str, int, Mapping[str, float], str]],
    nodes: Sequence[Mapping[str, float]],
    mend: str,
) -> None:
    """Refuse roles that together need more of a resource than all nodes have."""
    asking = [f"{key} {count}" for key, count, asked, _ in roles if resource in asked]
    needed = sum(count * asked.get(resource, 0) for _, count, asked, _ in roles)
    there = sum(node.get(resource, 0) for node in nodes)
    if there < needed:
        raise ConfigError(
            f"{' + '.join(asking)} need {needed:g} {resource}s, this Ray cluster has {there:g}: lower them, "
            f"{mend}"
        )


def refuse_unaddable(
    config: RunConfig, asked: Mapping[str, float], infeasible: Sequence[Mapping[str, float]]
) -> None:
    """Refuse learner ranks for which an autoscaled cluster cannot add nodes.

    Args:
        config: the run's.
        asked: resources of one rank, by name.
        infeasible: requests that the cluster's autoscaler has given up, likewise.

    Raises:
        ConfigError: the autoscaler has given up what a rank asks for.
    """
    if any(all(given_up.get(name) == amount for name, amount in asked.items()) for given_up in infeasible):
        raise ConfigError(
            f"learners {config.learners}: this Ray cluster cannot add nodes for {_named(asked)} each: give "
            "it such nodes (on Kubernetes: maxReplicas of a worker group), or change learners, "
            f"placement.learner or placement.learner_gpus ({config.placement.learner_gpus or 0:g})"
        )


@dataclass(frozen=True)
class Torch:
    """PyTorch as one node of a Ray cluster has it."""

    node: str
    """Address of the node."""
    version: str
    """Version of PyTorch."""
    cuda: str | None
    """Version of CUDA that it was built for; None: a build without CUDA."""
    usable: bool
    """Whether it finds a GPU."""


def refuse_torch(torch: Torch, *, alone: bool) -> None:
    """Refuse a PyTorch that cannot use the GPU of its node.

    Args:
        torch: what a node with a GPU has.
        alone: whether the run has started Ray itself, on this machine.

    Raises:
        ConfigError: the message says what is wrong, and how to train without a GPU.
    """
    if torch.usable:
        return
    if torch.cuda is None:
        wrong = "is a build for CPUs only: install one for CUDA"
    else:
        wrong = f"is built for CUDA {torch.cuda} and finds no GPU: see whether `nvidia-smi` works there"
    without = "CUDA_VISIBLE_DEVICES= in the environment" if alone else "placement.learner_gpus=0"
    raise ConfigError(
        f"node {torch.node} has a GPU for a learner rank, but its PyTorch {torch.version} {wrong}; "
        f"to train on the CPU, set {without}"
    )


def gpus_of_rank(config: RunConfig, available: float) -> float:
    """Return the GPUs that each learner rank takes.

    Args:
        config: the run's.
        available: GPUs of the Ray cluster.
    """
    placement = config.placement
    acting = (
        config.rollout_actors * placement.actor_gpus + config.inference.servers * placement.inference_gpus
    )
    enough = available - acting >= config.learners
    return float(enough) if placement.learner_gpus is None else placement.learner_gpus


def resources_of_rank(config: RunConfig, gpus: float) -> dict[str, float]:
    """Return what a learner rank takes from Ray, by name of the resource."""
    return {"CPU": 1.0, **config.placement.learner} | _gpus(gpus)


def room_for(asked: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """Count how many times the nodes of a cluster have what is asked for."""
    return sum(int(min(node.get(name, 0) // amount for name, amount in asked.items())) for node in nodes)


def _gpus(gpus: float) -> dict[str, float]:
    return {"GPU": float(gpus)} if gpus else {}


def _named(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
