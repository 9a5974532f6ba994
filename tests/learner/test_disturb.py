"""Tests of histories that training disturbs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longview.learner.config import LearnerConfig
from longview.learner.disturb import disturbed
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.train import train
from longview.learner.windows import Batch, build
from longview.replay.episode import Episode, Segment

Cut = Callable[[Episode, int, int, int], Segment]


@pytest.fixture
def batch(policy: DiffusionPolicy, returning: list[Episode], cut: Cut) -> Batch[Any]:
    """Return 32 windows of 16 steps; the first one begins before its episode."""
    nows = np.arange(5, 37)[None]
    segment = cut(returning[0], 20, 40, 40)
    return build([segment], policy.spec, policy.horizon, 16, nows)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_a_share_of_the_past_frames_is_hidden(
    policy: DiffusionPolicy, tiny: LearnerConfig, batch: Batch[Any]
) -> None:
    found = disturbed(batch, policy, replace(tiny, history_dropout=0.3), seeded())
    seen = found.seen_BS.numpy()
    assert seen[:, -1].all(), "the present is seen"
    assert not (seen & ~batch.seen_BS).any(), "nothing is seen that is missing"
    past = batch.seen_BS[:, :-1]
    assert 0.6 < seen[:, :-1][past].mean() < 0.8
    assert disturbed(batch, policy, tiny, seeded()) is batch, "by default nothing changes"


def test_noise_reaches_past_frames_alone(
    policy: DiffusionPolicy, tiny: LearnerConfig, batch: Batch[Any]
) -> None:
    found = disturbed(batch, policy, replace(tiny, history_noise=0.5), seeded())
    before, after = (
        policy.normal_states(each.observation)[policy.tensor(each.frame_BS)] for each in (batch, found)
    )
    difference = (after - before).detach()
    assert torch.equal(difference[:, -1], torch.zeros_like(difference[:, -1])), "the present is clean"
    past = difference[:, :-1][policy.tensor(batch.seen_BS)[:, :-1]]
    assert past.std().item() == pytest.approx(0.5, rel=0.1), "in normalised units"
    assert torch.equal(found.segment_F, torch.from_numpy(batch.segment_F).repeat(2))


@pytest.mark.parametrize("kind", ["diffusion", "recurrent"])
def test_training_with_a_disturbed_history_is_repeatable(
    tiny: LearnerConfig, arguments: dict[str, Any], kind: str
) -> None:
    from longview.learner.config import policy_config

    policy = tiny.policy if kind == "diffusion" else policy_config(kind=kind, token_size=8, hidden=12)
    config = replace(tiny, policy=policy, steps=6, history_dropout=0.4, history_noise=0.1)
    first, second, plain = (
        train(each, **{**arguments, "checkpoints": arguments["checkpoints"] / str(number)}).state_dict()
        for number, each in enumerate((config, config, replace(config, history_dropout=0, history_noise=0)))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], plain[name]) for name in first)
