"""Tests of crops and padding. test_train shows that a step follows from seed, rank and step alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import mean_loss
from longview.learner.recipe import SHAPES, DrawSegments, Recipe, padded
from longview.replay.episode import Episode, TaskSpec


class Watched(DiffusionPolicy):
    """Policy that remembers the crops of its newest frames."""

    shift_F2: Tensor | None = None

    def tokens(self, observation: Mapping[str, Any], shift_F2: Tensor | None = None) -> Tensor:
        self.shift_F2 = shift_F2
        return super().tokens(observation, shift_F2)


def test_all_frames_of_a_segment_are_cropped_alike(
    tiny: LearnerConfig, looking: list[Episode], looking_spec: TaskSpec, drawer: Callable[..., DrawSegments]
) -> None:
    config = replace(tiny, windows_per_segment=2, batch_size=8, curriculum=CurriculumConfig("fixed"))
    config = replace(config, policy=replace(tiny.policy, context_length=3))
    recipe = Recipe(config, looking_spec, 0, 0, 1, drawer(looking, seed=0))
    assert isinstance(config.policy, DiffusionConfig)
    policy = Watched(config.policy, looking_spec)
    policy.fit(measure(looking, looking_spec))
    shifts = []
    for step in (5, 6, 5):
        batch = recipe.batch(step)
        recipe.error(policy, batch, step)
        assert policy.shift_F2 is not None
        assert 0 <= policy.shift_F2.min() < policy.shift_F2.max() < 1
        by_segment = [policy.shift_F2[torch.from_numpy(batch.segment_F == segment)] for segment in range(4)]
        assert all((shift_F2 == shift_F2[0]).all() for shift_F2 in by_segment)
        shifts.append(torch.stack([shift_F2[0] for shift_F2 in by_segment]))
        assert len(shifts[-1].unique()) == 8
    assert torch.equal(shifts[0], shifts[2])
    assert not torch.equal(shifts[0], shifts[1])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_the_batch(tiny: LearnerConfig, arguments: dict[str, Any], world: int) -> None:
    config = replace(tiny, windows_per_segment=2, batch_size=8)
    recipe = Recipe(config, arguments["spec"], 0, world - 1, world, arguments["draw"])
    assert len(recipe.batch(0).target_BT) == 8 // world


@pytest.mark.parametrize("longest", [1, 2, 3, 20, 64, 92])
def test_padded_lengths_are_few_and_near(
    tiny: LearnerConfig, arguments: dict[str, Any], longest: int
) -> None:
    config = replace(
        tiny,
        policy=replace(tiny.policy, context_length=longest, widths=(8,)),
        curriculum=CurriculumConfig("sprinkle", full=0.0),
        steps=5000,
    )
    recipe = Recipe(config, arguments["spec"], 0, 0, 1, arguments["draw"])
    pairs = {
        (recipe.context_length(step), recipe.padded_context_length(step)) for step in range(config.steps)
    }
    assert {length for length, _ in pairs} == set(range(1, longest + 1))
    assert all(length <= place <= min(longest, 1.5 * length) for length, place in pairs)
    lengths = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    assert {place for _, place in pairs} == {min(length, longest) for length in lengths}


@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_padding_changes_nothing(
    tiny: LearnerConfig, arguments: dict[str, Any], returning: list[Episode], architecture: str
) -> None:
    config = replace(tiny, policy=policy_config(tiny.policy, architecture=architecture, dropout=0.0))
    recipe = Recipe(config, arguments["spec"], 0, 0, 1, arguments["draw"])
    torch.manual_seed(0)
    policy = DiffusionPolicy(config.policy, arguments["spec"])
    policy.fit(measure(returning, arguments["spec"]))
    for step in (0, 10):
        batch = recipe.batch(step)
        wider = padded(batch, batch.context_length + 5, batch.frames + 7)
        assert wider.context_length == batch.context_length + 5
        assert len(wider.observation["position"]) == batch.frames + 7
        np.testing.assert_array_equal(wider.target_BT, batch.target_BT)
        error, same = (recipe.error(policy, some, step) for some in (batch, wider))
        torch.testing.assert_close(error, same, rtol=1e-4, atol=1e-5)
        loss, same_loss = (mean_loss(some, torch.from_numpy(batch.target_BT)) for some in (error, same))
        torch.testing.assert_close(loss, same_loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("windows", [1, 8])
def test_an_encoder_is_trained_with_few_more_frames(
    tiny: LearnerConfig, arguments: dict[str, Any], windows: int
) -> None:
    """Its batches have single frames, beside the long contexts of the later part."""
    config = replace(tiny, batch_size=32, windows_per_segment=windows, steps=60, encoder_steps=50)
    recipe = Recipe(config, arguments["spec"], 0, 0, 1, arguments["draw"])
    few = replace(recipe, few_shapes=True)
    plain, padded = (sum(some.batch(step).frames for step in range(50)) for some in (recipe, few))
    assert plain <= padded <= 1.07 * plain


@pytest.mark.parametrize("windows", [1, 8])
@pytest.mark.parametrize("kind", ["progressive", "sprinkle"])
def test_a_run_with_few_shapes_has_few_shapes_and_few_more_frames(
    tiny: LearnerConfig, arguments: dict[str, Any], windows: int, kind: Any
) -> None:
    config = replace(
        tiny, batch_size=32, windows_per_segment=windows, steps=150, curriculum=CurriculumConfig(kind)
    )
    recipe = Recipe(config, arguments["spec"], 0, 0, 1, arguments["draw"])
    few = replace(recipe, few_shapes=True)
    plain, padded = ([some.batch(step) for step in range(config.steps)] for some in (recipe, few))
    assert len({batch.frames for batch in plain}) > len({batch.frames for batch in padded})
    assert len({batch.frames for batch in padded}) <= SHAPES
    assert len({batch.context_length for batch in padded}) <= 13
    frames, more = (sum(batch.frames for batch in batches) for batches in (plain, padded))
    assert frames < more <= 1.06 * frames
