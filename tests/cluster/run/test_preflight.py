"""Room of a Ray cluster for a run's actors and learner ranks."""

import re

import pytest

from longview.cluster.run.config import ConfigError, read_config
from longview.cluster.run.preflight import refuse_unplaced

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
    ],
)
def test_what_does_not_fit_is_refused_with_what_there_is(settings: list[str], words: str) -> None:
    config = [*PLACED, *settings]
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        refuse_unplaced(read_config(None, config), NODES)
    assert "add nodes" in str(refused.value)
    # An autoscaled cluster may get what it lacks.
    refuse_unplaced(read_config(None, [*config, "placement.autoscaled=true"]), NODES)
