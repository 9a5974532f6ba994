"""Tests of what of the history a denoiser is given."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longview.actors.task import load_task
from longview.learner.config import LearnerConfig, architectures, policy_config
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.history import GatedMemory, keyframes
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.replay.episode import Episode


def made(tiny: LearnerConfig, returning: list[Episode], **settings: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    spec = load_task("return_point").spec
    policy = policy_config(tiny.policy, **settings).make(spec)
    assert isinstance(policy, DiffusionPolicy)
    policy.fit(measure(returning, spec))
    return policy.eval()


def chosen(policy: DiffusionPolicy, token_BSE: torch.Tensor, seen_BS: np.ndarray) -> np.ndarray:
    rngs = np.random.default_rng(0).spawn(len(seen_BS))
    unknown = np.full((len(seen_BS), policy.horizon.past, 2), np.nan, np.float32)
    with torch.inference_mode():
        return policy.sample(token_BSE, seen_BS, unknown, rngs)


def tokens(policy: DiffusionPolicy, steps: int, windows: int = 2) -> torch.Tensor:
    return torch.randn(windows, steps, policy.token_size, generator=torch.Generator().manual_seed(1))


def test_frames_between_strides_have_no_influence(tiny: LearnerConfig, returning: list[Episode]) -> None:
    policy = made(tiny, returning, frame_stride=4, past_actions=0)
    seen, token_BSE = np.ones((2, 11), np.bool_), tokens(policy, 11)
    before = chosen(policy, token_BSE, seen)
    between = [step for step in range(11) if (10 - step) % 4]
    token_BSE[:, between] += 5
    np.testing.assert_array_equal(chosen(policy, token_BSE, seen), before)
    token_BSE[:, 2] += 5
    assert not np.array_equal(chosen(policy, token_BSE, seen), before)


def test_keyframes_are_where_a_path_turns() -> None:
    """A path goes up, right, down and right again, at one speed."""
    steps = [(0, 1)] * 5 + [(1, 0)] * 5 + [(0, -1)] * 5 + [(1, 0)] * 4
    token_1SE = torch.tensor(steps, dtype=torch.float32).cumsum(dim=0)[None]
    turns, seen = (4, 9, 14), torch.ones(1, len(steps), dtype=torch.bool)
    assert keyframes(token_1SE, seen, 3)[0].nonzero().flatten().tolist() == [*turns, 18]
    seen[0, 10] = False
    kept = keyframes(token_1SE, seen, 3)[0].nonzero().flatten().tolist()
    assert {4, 14, 18} < set(kept), "a frame beside a missing one has no change of course"
    assert not {9, 10, 11} & set(kept)
    assert len(kept) == 4


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_a_short_context_has_few_keyframes_or_none(steps: int) -> None:
    token_BSE = torch.randn(2, steps, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(2, steps, dtype=torch.bool)
    kept = keyframes(token_BSE, seen, 8)
    assert kept[:, -1].all()
    assert kept.sum(dim=1).tolist() == [max(1, steps - 1)] * 2, "all but the oldest"
    assert not keyframes(token_BSE, ~seen, 8).any()


def test_frames_that_are_no_keyframes_have_no_influence(
    tiny: LearnerConfig, returning: list[Episode]
) -> None:
    policy = made(tiny, returning, keyframes=2, past_actions=0)
    token_BSE = torch.zeros(2, 11, policy.token_size)
    token_BSE[:, 4:, 0], token_BSE[:, 7:, 1] = 1, 1  # it changes course at 3 and 4, and less at 6 and 7
    token_BSE[:, 4:, 0] *= 2
    seen = np.ones((2, 11), np.bool_)
    before = chosen(policy, token_BSE, seen)
    other = token_BSE.clone()
    other[:, 0:2, 2] += torch.tensor([0.1, 0.2])
    np.testing.assert_array_equal(chosen(policy, other, seen), before)
    other[:, 4:, 3] += 1
    assert not np.array_equal(chosen(policy, other, seen), before)


def test_the_newest_frames_have_an_encoder_of_their_own(
    tiny: LearnerConfig, returning: list[Episode]
) -> None:
    policy = made(tiny, returning, recent_encoder=True)
    assert policy.token_size == 2 * policy.config.token_size
    seen, token_BSE = np.ones((2, 9), np.bool_), tokens(policy, 9)
    before, size = chosen(policy, token_BSE, seen), policy.config.token_size
    other = token_BSE.clone()
    other[:, -2:, :size] += 5
    other[:, :-2, size:] += 5
    np.testing.assert_array_equal(chosen(policy, other, seen), before)
    for steps, features in ((slice(-2, None), slice(size, None)), (slice(-2), slice(size))):
        other = token_BSE.clone()
        other[:, steps, features] += 5
        assert not np.array_equal(chosen(policy, other, seen), before)


def test_a_memory_has_the_same_size_at_every_context_length() -> None:
    torch.manual_seed(0)
    memory = GatedMemory(3, 8)
    for steps in (1, 2, 40):
        seen = torch.ones(2, steps, dtype=torch.bool)
        given, mask = memory(torch.randn(2, steps, 8), seen)
        assert given.shape == (2, 4, 8)
        assert mask.all()


def test_a_memory_leaves_out_missing_frames_and_keeps_the_present() -> None:
    torch.manual_seed(0)
    memory, token_BSE = GatedMemory(3, 8), torch.randn(1, 6, 8)
    seen = torch.tensor([[False, False, True, False, True, True]])
    given, _ = memory(token_BSE, seen)
    torch.testing.assert_close(given[:, -1], token_BSE[:, -1])
    other = torch.where(seen.unsqueeze(2), token_BSE, token_BSE + 5)
    torch.testing.assert_close(memory(other, seen)[0], given)
    torch.nn.init.constant_(memory.gate.bias, -100)
    assert memory(token_BSE, seen)[0][:, :-1].abs().max() < 1e-6, "a closed gate lets nothing pass"


@pytest.mark.parametrize("architecture", architectures("diffusion"))
@pytest.mark.parametrize(
    "settings", [{"memory_tokens": 3}, {"frame_stride": 5}, {"keyframes": 4}, {"recent_encoder": True}]
)
def test_policies_train_and_act_with_it(
    tiny: LearnerConfig,
    arguments: dict[str, Any],
    returning: list[Episode],
    architecture: str,
    settings: dict[str, Any],
) -> None:
    policy = policy_config(size="tiny", future_actions=12, architecture=architecture, **settings)
    trained = train(replace(tiny, policy=policy, steps=6), **arguments)
    loaded = policy_from_bytes(policy_to_bytes(trained))
    session, episode = PolicySession(loaded, 1), returning[0]
    for start, count in ((0, 1), (1, 8), (9, 8)):
        frames = {"position": episode.arrays["observation.position"][start : start + count]}
        executed = episode.arrays["action"][max(0, start - 1) : start + count - 1]
        actions = session.act(
            [0], [frames], [executed], np.array([start == 0]), 64, [np.random.default_rng(0)]
        )
    assert actions.shape == (1, 8, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frame_stride": 0}, "frame_stride must be positive"),
        ({"memory_tokens": -1}, "memory_tokens must not be negative"),
        ({"keyframes": -1}, "keyframes must not be negative"),
        ({"memory_tokens": 2, "token_size": 6, "heads": 1}, "token_size must be a multiple of 4"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        policy_config(**settings)
