"""Room of a Ray cluster for a run's actors and learner ranks."""

import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from longview.actors.environment import SimulatedTask
from longview.actors.tasks import return_point
from longview.actors.tasks.return_point import ReturnPoint
from longview.cluster.run.config import ConfigError, described, read_config
from longview.cluster.run.preflight import (
    Torch,
    gpus_of_rank,
    refuse_torch,
    refuse_unaddable,
    refuse_unmirrored,
    refuse_unplaced,
    refuse_unsimulated,
    refuse_untrainable,
    resources_of_rank,
)

NODES = [
    {"CPU": 0.0, "memory": 1e9},
    {"CPU": 4.0, "actor": 4.0},
    {"CPU": 4.0, "actor": 2.0},
    {"CPU": 4.0, "GPU": 2.0, "learner": 1.0},
]
"""Nodes of a cluster: a head without work, two for actors, one for a learner."""

PLACED = [
    "actors.count=6",
    "placement.actor.actor=1",
    "placement.learner.learner=1",
    "placement.learner_gpus=2",
]


def test_what_fits_is_let_through() -> None:
    refuse_unplaced(read_config(None, PLACED), NODES)
    refuse_unplaced(read_config(None, ["actors.count=11"]), NODES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["placement.learner_gpus=4"],
            "placement.learner_gpus 4: no node of this Ray cluster has more than 2 GPUs",
        ),
        (
            ["placement.actor.gripper=1"],
            "placement.actor: no node of this Ray cluster has 1 gripper (the most is 0)",
        ),
        (
            ["placement.actor.actor=5"],
            "placement.actor: no node of this Ray cluster has 5 actor (the most is 4)",
        ),
        (["actors.count=12"], "actors.count 12 + learners 1 need 13 CPUs, this Ray cluster has 12"),
        (["learners=2"], "learners 2: this Ray cluster has room for 1 (1 CPU, 1 learner, 2 GPU each)"),
        (["actors.count=7"], "actors.count 7: this Ray cluster has room for 6 (1 CPU, 1 actor each)"),
        (
            ["inference.servers=6"],
            "actors.count 6 + learners 1 + inference.servers 6 need 13 CPUs, this Ray cluster has 12",
        ),
        (
            ["inference.servers=1", "placement.inference_gpus=3"],
            "placement.inference_gpus 3: no node of this Ray cluster has more than 2 GPUs",
        ),
        (
            ["inference.servers=2", "placement.inference_gpus=0.5"],
            "learners 1 + inference.servers 2 need 3 GPUs, this Ray cluster has 2",
        ),
        (
            ["placement.actor_gpus=0.25"],
            "actors.count 6: this Ray cluster has room for 0 (1 CPU, 1 actor, 0.25 GPU each)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_there_is(settings: list[str], words: str) -> None:
    config = [*PLACED, *settings]
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        refuse_unplaced(read_config(None, config), NODES)
    assert "add nodes" in str(refused.value)
    # An autoscaled cluster may get what it lacks.
    refuse_unplaced(read_config(None, [*config, "placement.autoscaled=true"]), NODES)


def test_a_mirror_whose_package_is_missing_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = read_config(None, ["monitoring.mirrors=[tensorboard, wandb]"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"mirrors: wandb cannot .* pip install 'longview\[wandb\]'"):
        refuse_unmirrored(config)
    refuse_unmirrored(read_config(None, ["monitoring.mirrors=[tensorboard]"]))
    refuse_unmirrored(read_config(None))


def test_a_run_on_recorded_data_needs_room_for_its_ranks_alone() -> None:
    spec = described(replace(return_point.spec, name="drawer"))
    config = read_config(None, ["learners=2"], task="drawer", data={"spec": spec})
    refuse_unplaced(config, [{"CPU": 2.0}])
    with pytest.raises(ConfigError, match="learners 2 need 2 CPUs, this Ray cluster has 1"):
        refuse_unplaced(config, [{"CPU": 1.0}])
    assert gpus_of_rank(config, available=2) == 1


def test_ranks_get_a_gpu_each_if_there_are_enough() -> None:
    two = read_config(None, ["learners=2", "placement.learner.learner=1"])
    assert [gpus_of_rank(two, available) for available in (0, 1, 2, 8)] == [0, 0, 1, 1]
    asked = read_config(None, ["learners=2", "placement.learner_gpus=4"])
    assert [gpus_of_rank(asked, available) for available in (0, 8)] == [4, 4]
    served = read_config(None, ["inference.servers=2", "placement.inference_gpus=0.5"])
    assert [gpus_of_rank(served, available) for available in (1, 2)] == [0, 1]
    assert resources_of_rank(two, 0) == {"CPU": 1, "learner": 1}
    assert resources_of_rank(two, 2) == {"CPU": 1, "learner": 1, "GPU": 2}


def test_a_place_that_an_autoscaler_has_given_up_is_refused() -> None:
    config = read_config(None, ["placement.learner_gpus=1", "placement.autoscaled=true"])
    asked = resources_of_rank(config, 1)
    refuse_unaddable(config, asked, [])
    refuse_unaddable(config, asked, [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 8.0}])
    with pytest.raises(
        ConfigError, match=r"learners 1: .* cannot add nodes for 1 CPU, 1 GPU each: .*learner_gpus \(1\)"
    ):
        refuse_unaddable(config, asked, [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}])


@pytest.mark.parametrize(
    ("cuda", "alone", "words"),
    [
        (
            None,
            False,
            r"node 10\.0\.0\.1 .* PyTorch 2\.13 is a build for CPUs.*placement\.learner_gpus=0",
        ),
        (None, True, r"CUDA_VISIBLE_DEVICES= in the environment"),
        ("12.8", False, r"is built for CUDA 12\.8 and finds no GPU: .*nvidia-smi"),
    ],
)
def test_a_pytorch_that_cannot_use_its_gpu_is_refused(cuda: str | None, alone: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse_torch(Torch("10.0.0.1", "2.13", cuda, usable=False), alone=alone)
    refuse_torch(Torch("10.0.0.1", "2.13", cuda, usable=True), alone=alone)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("return_point", ["collect.kind=labels"]),
        ("return_point", ["collect.kind=takeover", "collect.gate=distance"]),
        (f"{__name__}:unrestored", ["collect.kind=takeover"]),
    ],
)
def test_plans_are_let_through_where_a_state_can_be_restored(task: str, settings: list[str]) -> None:
    refuse_unsimulated(read_config(None, [f"task={task}", *settings]))


@pytest.mark.parametrize(
    "settings", [["kind=labels"], ["kind=takeover", "gate=distance"], ["kind=takeover", "hand_back=true"]]
)
def test_plans_are_refused_where_a_state_cannot_be_restored(settings: list[str]) -> None:
    config = read_config(None, [f"task={__name__}:unrestored", *(f"collect.{some}" for some in settings)])
    words = rf"collect\.{settings[0]}, .*unrestored cannot return to an earlier state: the same 10 actions"
    with pytest.raises(ConfigError, match=words):
        refuse_unsimulated(config)


@pytest.mark.parametrize("kind", ["takeover", "labels"])
def test_a_task_without_an_expert_has_no_corrections(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"collect\.kind={kind} needs an expert, which task push_t"):
        read_config(None, ["task=push_t", f"collect.kind={kind}"])
    read_config(None, ["task=push_t", "collect.kind=rollout"])


def test_a_task_without_an_expert_begins_from_demonstrations_or_from_what_its_run_holds() -> None:
    config = read_config(None, ["task=push_t"])
    with pytest.raises(ConfigError, match=r"no expert: give human demonstrations.*--resume.*kind=rollout"):
        refuse_untrainable(config)
    refuse_untrainable(config, begun=True)
    refuse_untrainable(read_config(None, ["task=return_point"]))


class Unrestored(ReturnPoint):
    """A simulator whose state cannot be restored."""

    def restore(self, state: Any) -> None:
        pass


unrestored = SimulatedTask(return_point.spec, Unrestored, return_point.expert)
