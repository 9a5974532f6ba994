"""Tests of cameras' networks that are trained first and then kept as they are."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load, load_file

from longview.learner import files, keypoints
from longview.learner.config import CurriculumConfig, LearnerConfig
from longview.learner.keypoints import KeypointMemory
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import Policy, policy_from_bytes, policy_to_bytes
from longview.learner.recipe import DrawSegments, Recipe
from longview.learner.train import train
from longview.replay.episode import OBSERVATION_PREFIX, Episode, Segment, TaskSpec

CAMERAS = "encoder.cameras."


@pytest.fixture
def config(tiny: LearnerConfig) -> LearnerConfig:
    """Return settings that train the cameras for 10 of 24 steps."""
    short = replace(tiny.policy, context_length=6, camera_stages=2)
    return replace(
        tiny, policy=short, encoder_steps=10, windows_per_segment=2, publish_every=5, checkpoint_every=6
    )


@pytest.fixture
def seeing(
    looking: list[Episode], looking_spec: TaskSpec, drawer: Callable[..., DrawSegments], tmp_path: Path
) -> dict[str, Any]:
    """Return keyword arguments of `train` for episodes with pictures."""
    return {
        "spec": looking_spec,
        "seed": 3,
        "draw": drawer(looking, seed=3),
        "statistics": lambda: measure(looking, looking_spec),
        "publish": lambda version, data: None,
        "report": lambda progress: None,
        "should_stop": lambda: False,
        "checkpoints": tmp_path / "straight",
    }


def untrained(config: LearnerConfig, spec: TaskSpec, episodes: list[Episode]) -> Policy:
    torch.manual_seed(0)
    policy = config.policy.make(spec)
    policy.fit(measure(episodes, spec))
    return policy.eval()


def test_keypoints_are_those_of_the_frames_however_they_are_asked_for(
    config: LearnerConfig,
    looking: list[Episode],
    looking_spec: TaskSpec,
    cut: Callable[[Episode, int, int, int], Segment],
) -> None:
    policy, episode = untrained(config, looking_spec, looking), looking[0]
    once, twice = KeypointMemory(policy), KeypointMemory(policy)
    whole = once.locate(cut(episode, 0, 0, episode.length))
    for now, before, after in ((20, 3, 5), (22, 1, 30), (0, 0, 0), (40, 40, 2)):
        part = twice.locate(cut(episode, now, before, after))
        for key in policy.cameras:
            name, rows = (
                OBSERVATION_PREFIX + key,
                slice(part.start, part.start + part.arrays["action"].shape[0]),
            )
            assert np.array_equal(part.arrays[name], whole.arrays[name][rows])
    images = {key: episode.arrays[OBSERVATION_PREFIX + key] for key in looking_spec.observation}
    found = {**images, **{key: whole.arrays[OBSERVATION_PREFIX + key] for key in policy.cameras}}
    with torch.inference_mode():
        torch.testing.assert_close(policy.tokens(found), policy.tokens(images), rtol=0, atol=1e-5)


def test_episodes_that_were_not_drawn_for_long_are_forgotten(
    config: LearnerConfig,
    looking: list[Episode],
    looking_spec: TaskSpec,
    cut: Callable[[Episode, int, int, int], Segment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = untrained(config, looking_spec, looking)
    lengths = [episode.length for episode in looking]
    monkeypatch.setattr(keypoints, "KEPT_FRAMES", len(policy.cameras) * (lengths[0] + max(lengths[1:3])))
    memory, name = KeypointMemory(policy), OBSERVATION_PREFIX + policy.cameras[0]

    def locate(number: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = memory.locate(cut(looking[number], 5, 2, 3)).arrays[name]
        return found

    found = {number: locate(number) for number in (0, 1, 0, 2)}
    assert {id for id, _ in memory._episodes} == {looking[0].meta.id, looking[2].meta.id}
    assert np.array_equal(locate(1), found[1])


def test_a_batch_of_keypoints_has_the_loss_of_its_images(
    config: LearnerConfig, looking: list[Episode], looking_spec: TaskSpec, drawer: Callable[..., DrawSegments]
) -> None:
    config = replace(config, windows_per_segment=2)
    policy = untrained(config, looking_spec, looking)
    recipe = Recipe(config, looking_spec, 0, 0, 1, drawer(looking, seed=0))
    located = recipe.with_keypoints(KeypointMemory(policy))
    for step in (12, 23):
        errors = [which.error(policy, which.batch(step), step) for which in (recipe, located)]
        torch.testing.assert_close(errors[0], errors[1], rtol=0, atol=1e-5)


def test_cameras_learn_from_single_frames_and_then_stay_as_they_are(
    config: LearnerConfig, seeing: dict[str, Any]
) -> None:
    published: dict[int, dict[str, torch.Tensor]] = {}
    asked: list[int] = []

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        asked.append(before)
        segments: list[Segment] = seeing["draw"](step, before, after, count)
        return segments

    publish = {"publish": lambda version, data: published.update({version: load(bytes(data))})}
    config = replace(config, windows_per_segment=1, curriculum=CurriculumConfig("fixed"))
    train(config, **seeing | publish | {"draw": draw})
    assert asked == [0] * 10 + [5] * 14
    assert list(published) == [5, 10, 15, 20, 24]
    changed = {
        (before, after): {
            name.startswith(CAMERAS)
            for name, tensor in published[after].items()
            if not torch.equal(tensor, published[before][name])
        }
        for before, after in ((5, 10), (10, 15), (15, 24))
    }
    assert changed == {(5, 10): {True, False}, (10, 15): {False}, (15, 24): {False}}


def test_a_resumed_run_ends_bit_for_bit_the_same(
    config: LearnerConfig, seeing: dict[str, Any], tmp_path: Path
) -> None:
    """The run stops while its cameras are trained, when they are, or afterwards."""

    def end(folder: Path) -> dict[str, torch.Tensor]:
        last = folder / f"step-{24:09d}"
        return load_file(last / files.TRAINING) | load_file(last / files.POLICY)

    train(config, **seeing)
    straight = end(seeing["checkpoints"])
    for stop in (8, 10, 15):
        steps = itertools.count(1)
        again = seeing | {"checkpoints": tmp_path / f"resumed-{stop}"}
        train(config, **again | {"should_stop": lambda steps=steps, stop=stop: next(steps) == stop})
        assert files.steps(again["checkpoints"])[-1] == stop
        train(config, **again)
        resumed = end(again["checkpoints"])
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_policy_with_fewer_stages_comes_back_from_its_file(
    config: LearnerConfig, looking: list[Episode], looking_spec: TaskSpec
) -> None:
    policy = untrained(config, looking_spec, looking)
    assert isinstance(policy, DiffusionPolicy)
    again = policy_from_bytes(policy_to_bytes(policy))
    assert again.config == policy.config
    assert len(again.encoder.cameras[0].blocks) == 4


def test_without_cameras_the_encoder_learns_first_and_then_stays_as_it_is(
    tiny: LearnerConfig, arguments: dict[str, Any]
) -> None:
    published: dict[int, dict[str, torch.Tensor]] = {}
    publish = {"publish": lambda version, data: published.update({version: load(bytes(data))})}
    config = replace(tiny, encoder_steps=10, publish_every=5, curriculum=CurriculumConfig("fixed"))
    train(config, **arguments | publish)
    for name in published[24]:
        if name.startswith("encoder."):
            assert not torch.equal(published[5][name], published[10][name])
            assert torch.equal(published[10][name], published[24][name])
    assert not all(torch.equal(published[10][name], published[24][name]) for name in published[24])
