"""Episodes of real tasks in memory, and a tiny policy that trains in seconds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longview.actors.task import Task, load_task
from longview.learner.config import CurriculumConfig, LearnerConfig, policy_config
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.recipe import DrawSegments
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    CONTROLLER,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    ArraySpec,
    Episode,
    EpisodeMeta,
    Segment,
    TaskSpec,
)

TINY = policy_config(
    future_actions=14,
    widths=(8, 16),
    groups=2,
    heads=2,
    dropout=0.1,
    token_size=8,
    diffusion_steps=20,
    sampling_steps=4,
)

TINY_TRAINING = LearnerConfig(
    policy=TINY,
    curriculum=CurriculumConfig("progressive", ramp=0.5, full=0.8),
    learning_rate=1e-3,
    steps=24,
    batch_size=4,
    warmup=4,
    publish_every=10,
    checkpoint_every=8,
    report_every=6,
)
"""Settings of a training that uses every feature and takes a second."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: tiny tensors are slower on several threads, and their sums have another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def collect(task: Task, seed: int, noise: float) -> Episode:
    """Collect an episode of the expert. Its executed actions carry noise, its labels do not."""
    env, rng = task.make(), np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    assert task.expert is not None
    expert = task.expert(env, rng)
    rows: list[dict[str, Any]] = []
    ended = False
    while not ended:
        label = expert()
        noisy = label + noise * rng.standard_normal(label.shape)
        action = noisy.clip(task.spec.action.low, task.spec.action.high).astype(np.float32)
        row = {OBSERVATION_PREFIX + key: value for key, value in observation.items()}
        observation, reward, terminated, truncated, info = env.step(action)
        step = {ACTION: action, EXPERT_ACTION: label, REWARD: np.float32(reward), CONTROLLER: BY_EXPERT}
        rows.append(row | step)
        ended = terminated or truncated
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    meta = EpisodeMeta(f"demo.{task.spec.name}.{seed}", task.spec.name, seed, "demo")
    return Episode(meta, info["outcome"], arrays)


def cut(episode: Episode, now: int, before: int, after: int) -> Segment:
    """Cut the segment of an episode around one step."""
    start, end = max(0, now - before), min(episode.length, now + after + 1)
    arrays = {name: array[start:end] for name, array in episode.arrays.items()}
    return Segment(episode.meta, episode.length, start, now, 1.0, arrays)


def drawer(episodes: list[Episode], seed: int) -> DrawSegments:
    """Return a `draw` function for the training loop, over episodes in memory."""

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        rng = np.random.default_rng((seed, step))
        chosen = [episodes[i] for i in rng.integers(len(episodes), size=count)]
        return [cut(episode, int(rng.integers(episode.length)), before, after) for episode in chosen]

    return draw


@pytest.fixture(scope="session")
def counting() -> list[Episode]:
    return [collect(load_task("counting"), seed, noise=0.0) for seed in range(12)]


@pytest.fixture(scope="session")
def returning() -> list[Episode]:
    return [collect(load_task("return_point"), seed, noise=0.1) for seed in range(12)]


@pytest.fixture(scope="session")
def looking_spec() -> TaskSpec:
    """Return the spec of return_point with two cameras."""
    spec = load_task("return_point").spec
    images = {f"{side}_image": ArraySpec((40, 44, 3), "uint8", 0, 255) for side in ("left", "right")}
    return replace(spec, observation={**spec.observation, **images})


@pytest.fixture(scope="session")
def looking(returning: list[Episode], looking_spec: TaskSpec) -> list[Episode]:
    """Return episodes whose cameras show noise, so that no two images are alike."""
    rng = np.random.default_rng(0)
    return [
        replace(episode, arrays={
            **episode.arrays,
            **{
                OBSERVATION_PREFIX + key: rng.integers(0, 256, (episode.length, *array.shape), np.uint8)
                for key, array in looking_spec.observation.items()
                if array.dtype == "uint8"
            },
        })
        for episode in returning[:4]
    ]  # fmt: skip


@pytest.fixture(name="cut")
def cut_fixture() -> Callable[[Episode, int, int, int], Segment]:
    return cut


@pytest.fixture(name="drawer")
def drawer_fixture() -> Callable[[list[Episode], int], DrawSegments]:
    return drawer


@pytest.fixture
def tiny() -> LearnerConfig:
    return TINY_TRAINING


@pytest.fixture
def policy(returning: list[Episode]) -> DiffusionPolicy:
    """Return an untrained policy with fitted ranges, in evaluation mode."""
    torch.manual_seed(0)
    spec = load_task("return_point").spec
    made = DiffusionPolicy(TINY, spec)
    made.fit(measure(returning, spec))
    return made.eval()


@pytest.fixture
def arguments(returning: list[Episode], tmp_path: Path) -> dict[str, Any]:
    """Return keyword arguments of `train` for the episodes of return_point."""
    spec = load_task("return_point").spec
    return {
        "spec": spec,
        "seed": 3,
        "draw": drawer(returning, seed=3),
        "statistics": lambda: measure(returning, spec),
        "publish": lambda version, data: None,
        "report": lambda progress: None,
        "should_stop": lambda: False,
        "checkpoints": tmp_path,
    }
