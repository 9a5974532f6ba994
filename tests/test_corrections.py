"""Corrections of return_point through the whole pipeline: actor, Redis, segments, windows, and training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.config import ActorsConfig, CollectConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.run.services import redis_server
from longview.learner.config import LearnerConfig, policy_config
from longview.learner.normalize import measure
from longview.learner.recipe import Recipe
from longview.learner.train import train
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.episode import Segment
from longview.replay.errors import StoreError
from longview.replay.store import EpisodeStore

TASK = load_task("return_point")
EXECUTE = 4
TRAINING = LearnerConfig(
    policy=policy_config(
        past_actions=4,
        future_actions=10,
        execute=EXECUTE,
        widths=(8, 16),
        groups=2,
        heads=2,
        token_size=8,
        diffusion_steps=20,
        sampling_steps=4,
    ),
    batch_size=32,
    steps=6,
    warmup=2,
)
WINDOWS = replace(TRAINING, windows_per_segment=4)


class Still:
    """A policy that does not move, unlike the expert with its noise."""

    execute = EXECUTE

    def act(self, slots: Sequence[int], *_: Any) -> NDArray[np.float32]:
        return np.zeros((len(slots), EXECUTE, *TASK.spec.action.shape), np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig(chunk_steps=16, refresh_seconds=0))
        store.register(TASK.spec)
        yield store
        store.close()


def collect(store: EpisodeStore, **settings: Any) -> None:
    worker = Worker(TASK, ActorsConfig(simulators=4), 7, "a", store, Hub().report, CollectConfig(**settings))
    purpose = "rollout" if settings["kind"] == "rollout" else "correction"
    worker.work(Order(purpose, 0, 8, 4, version=300, typical_steps=40.0), Still())


def draw(
    store: EpisodeStore, config: LearnerConfig, step: int, before: int, after: int, count: int
) -> list[Segment]:
    rng = np.random.default_rng((0, step))
    return store.sample(config.selection(TASK.spec.name), count, before, after, rng)


@pytest.mark.parametrize("config", [TRAINING, WINDOWS], ids=["one window", "four windows"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "takeover"},
        {"kind": "takeover", "gate": "progress", "patience": 5},
        {"kind": "takeover", "hand_back": True, "distance": 0.6},
        {"kind": "labels"},
    ],
    ids=["random", "progress", "handed back", "labels"],
)
def test_only_what_the_expert_wants_is_learnt(
    store: EpisodeStore, settings: dict[str, Any], config: LearnerConfig
) -> None:
    """The policy's actions are all zero, the expert's never are."""
    collect(store, **settings)
    recipe = Recipe(config, TASK.spec, 0, 0, 1, partial(draw, store, config))
    present, masked = recipe.horizon.past, 0
    for step in range(4):
        batch = recipe.batch(step)
        assert batch.target_BT[:, present].all(), "every window decides where there is something to learn"
        assert (batch.action_BTA[batch.target_BT] != 0).any(axis=1).all()
        masked += int((~batch.target_BT & (batch.action_BTA == 0).all(axis=2)).sum())
        if settings["kind"] == "labels":
            assert not batch.target_BT[:, :present].any()
            assert batch.target_BT.sum(axis=1).max() == EXECUTE
    assert masked, "steps of the policy are seen, and are no targets"


def test_a_policy_is_trained_on_corrections_alone(store: EpisodeStore, tmp_path: Path) -> None:
    collect(store, kind="labels")
    losses: list[float] = []
    train(
        TRAINING,
        TASK.spec,
        seed=0,
        draw=partial(draw, store, TRAINING),
        statistics=lambda: measure(map(store.read, store.ids()), TASK.spec),
        publish=lambda version, data: None,
        report=lambda progress: losses.append(progress.loss),
        should_stop=lambda: False,
        checkpoints=tmp_path / "checkpoints",
    )
    assert losses
    assert np.isfinite(losses).all()


def test_failures_of_a_policy_are_never_learnt(store: EpisodeStore) -> None:
    collect(store, kind="rollout")
    assert store.stats().committed["rollout", "failure"].episodes == 8
    with pytest.raises(StoreError, match="no steps to learn from"):
        draw(store, TRAINING, 0, 4, 4, 1)
