import json
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from actors.task import load_task
from learner.policy import DiffusionPolicy, policy_from_bytes, policy_to_bytes
from learner.windows import Batch, build
from replay.episode import Episode, Segment

Cut = Callable[[Episode, int, int, int], Segment]


@pytest.fixture
def batch(policy: DiffusionPolicy, returning: list[Episode], cut: Cut) -> Batch:
    """Windows of T_o = 6 from the start, the middle and the end of an episode."""
    episode = returning[0]
    nows = (0, 20, episode.length - 1)
    return build([cut(episode, now, 5, policy.horizon.after) for now in nows], policy.horizon, 6)


def draw(policy: DiffusionPolicy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(batch.action_BTA.shape, generator=generator), torch.tensor([3, 10, 19])


def test_closed_past_positions_tell_nothing(policy: DiffusionPolicy, batch: Batch) -> None:
    """At T_o = 2 one past action is known: what else was executed must not show, in loss or gradient."""
    short = Batch(
        {"position": batch.observation["position"][:, -2:]},
        batch.seen_BS[:, -2:],
        batch.action_BTA,
        batch.target_BT & (np.arange(-2, 14) > -2),
    )
    changed = short.action_BTA.copy()
    changed[:, 0] += 0.5
    noise_BTA, step_B = draw(policy, short)
    one, other = (
        policy.loss(each, noise_BTA, step_B) for each in (short, replace(short, action_BTA=changed))
    )
    assert torch.equal(one, other)
    assert policy.open(torch.from_numpy(short.seen_BS))[:, :3, 0].tolist() == [
        [False, False, True],  # the episode began: not even the one before
        [False, True, True],
        [False, True, True],
    ]


def test_steps_after_the_episodes_end_leave_the_loss(policy: DiffusionPolicy, batch: Batch) -> None:
    noise_BTA, step_B = draw(policy, batch)
    loss_B = policy.loss(batch, noise_BTA, step_B)
    target_BT = np.ones_like(batch.target_BT)
    everything_B = policy.loss(replace(batch, target_BT=target_BT), noise_BTA, step_B)
    assert loss_B.shape == (3,)
    assert (loss_B != everything_B).tolist() == [True, False, True]


def test_loss_is_that_of_each_sample_alone(policy: DiffusionPolicy, batch: Batch) -> None:
    noise_BTA, step_B = draw(policy, batch)
    together = policy.loss(batch, noise_BTA, step_B)
    for i in range(batch.size):
        one = slice(i, i + 1)
        alone = Batch(
            {key: value[one] for key, value in batch.observation.items()},
            batch.seen_BS[one],
            batch.action_BTA[one],
            batch.target_BT[one],
        )
        torch.testing.assert_close(policy.loss(alone, noise_BTA[one], step_B[one]), together[one])


def test_samples_are_a_function_of_the_noise(policy: DiffusionPolicy, batch: Batch) -> None:
    noise = np.random.default_rng(0).standard_normal((2, *batch.action_BTA.shape))
    with torch.inference_mode():
        one, again, other = (
            policy.sample(batch.observation, batch.seen_BS, each) for each in (noise[0], noise[0], noise[1])
        )
    assert one.shape == (3, 16, 2)
    assert one.dtype == np.float32
    assert (one == again).all()
    assert (one != other).any()


def test_samples_stay_within_the_range_of_the_data(policy: DiffusionPolicy, batch: Batch) -> None:
    noise = 3 * np.random.default_rng(0).standard_normal(batch.action_BTA.shape)
    with torch.inference_mode():
        actions = policy.sample(batch.observation, batch.seen_BS, noise)
    ends = policy.actions.invert(torch.tensor([[-1.0], [1.0]])).numpy()
    assert (actions >= ends[0] - 1e-5).all()
    assert (actions <= ends[1] + 1e-5).all()


def test_out_of_range_is_the_share_of_what_was_seen(policy: DiffusionPolicy, batch: Batch) -> None:
    assert policy.out_of_range(batch) == 0
    far = {"position": batch.observation["position"] + np.array([9, 0], np.float32)}
    assert policy.out_of_range(replace(batch, observation=far)) == 0.5


def test_bytes_hold_the_whole_policy(policy: DiffusionPolicy, batch: Batch) -> None:
    data = policy_to_bytes(policy)
    back = policy_from_bytes(data)
    assert (back.config, back.spec) == (policy.config, policy.spec)
    noise = np.random.default_rng(0).standard_normal(batch.action_BTA.shape)
    with torch.inference_mode():
        expected, got = (p.sample(batch.observation, batch.seen_BS, noise) for p in (policy, back))
    assert (expected == got).all()
    assert policy_to_bytes(back) == data


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 100,
        lambda data: data.replace(b"longview-policy-1", b"longview-policy-0"),
        lambda data: (2).to_bytes(8, "little") + json.dumps({}).encode(),
    ],
)
def test_other_bytes_are_refused(policy: DiffusionPolicy, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match="not a policy of format longview-policy-1"):
        policy_from_bytes(damage(policy_to_bytes(policy)))


def test_several_observations_are_joined(policy: DiffusionPolicy) -> None:
    spec = load_task("counting").spec
    two = replace(spec, observation={"b": spec.observation["count"], "a": spec.observation["count"]})
    joint = DiffusionPolicy(policy.config, two)
    one = np.ones(1, np.float32)
    joint.fit({"observation.a": (0 * one, one), "observation.b": (0 * one, 2 * one), "action": (-one, one)})
    frames = {"a": np.ones((1, 3, 1), np.float32), "b": np.ones((1, 3, 1), np.float32)}
    assert joint.normal_frames(frames)[0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("past", "future"), [(0, 10), (2, 10), ("all", 9)])
def test_any_number_of_past_actions_trains(
    policy: DiffusionPolicy, returning: list[Episode], cut: Cut, past: int | Literal["all"], future: int
) -> None:
    config = replace(policy.config, context_length=8, past_actions=past, future_actions=future)
    other = DiffusionPolicy(config, policy.spec)
    for length in (1, 3, 8):
        segments = [cut(returning[0], now, length - 1, future - 1) for now in (0, 1, 20)]
        batch = build(segments, other.horizon, length)
        noise_BTA, step_B = draw(other, batch)
        assert other.loss(batch, noise_BTA, step_B).isfinite().all()
        opened = other.open(torch.from_numpy(batch.seen_BS))[:, :, 0].numpy()
        past_positions = np.arange(other.horizon.positions) < other.horizon.past
        assert (opened[:, past_positions] == batch.target_BT[:, past_positions]).all()
        assert opened[:, ~past_positions].all()
