"""Decisions of a policy along recorded episodes."""

from dataclasses import replace

import numpy as np
import pytest

from longview.actors.task import load_task
from longview.learner.config import LearnerConfig, policy_config
from longview.learner.decisions import decisions_along
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.session import PolicySession
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, Episode

T_O = 12


def test_each_decision_follows_from_what_was_recorded_before_it(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    """A decision is that of a session which sees the recorded history. What comes later has no influence."""
    execute = policy.horizon.execute
    arrays = {name: rows[: 5 * execute] for name, rows in returning[0].arrays.items()}
    episode = replace(returning[0], arrays=arrays)
    found = list(decisions_along(policy, episode, T_O, seed=5))
    assert [decision.step for decision in found] == list(range(0, episode.length, execute))
    for number in (0, 1, 3):
        decision = found[number]
        frames = {
            key: episode.arrays[OBSERVATION_PREFIX + key][: decision.step + 1]
            for key in policy.spec.observation
        }
        executed = episode.arrays[ACTION][: decision.step]
        rng = np.random.default_rng((5, number))
        session = PolicySession(policy, slots=1)
        expected_1TA = session.act([0], [frames], [executed], np.array([True]), T_O, [rng])
        np.testing.assert_allclose(decision.action_TA, expected_1TA[0], atol=1e-5)
        shares = decision.attention_S
        assert shares is not None
        assert shares.shape == (T_O,)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        assert np.count_nonzero(shares) == min(T_O, decision.step + 1)
    later = {name: array.copy() for name, array in episode.arrays.items()}
    for key in policy.spec.observation:
        later[OBSERVATION_PREFIX + key][3 * execute + 1 :] += 1
    changed = list(decisions_along(policy, replace(episode, arrays=later), T_O, seed=5))
    np.testing.assert_array_equal(changed[3].action_TA, found[3].action_TA)
    assert (changed[4].action_TA != found[4].action_TA).any()


def test_frames_between_strides_get_no_attention(tiny: LearnerConfig, returning: list[Episode]) -> None:
    policy = policy_config(tiny.policy, frame_stride=4).make(load_task("return_point").spec).eval()
    for decision in decisions_along(policy, returning[0], T_O, seed=5):
        shares = decision.attention_S
        assert shares is not None
        ages = T_O - 1 - np.flatnonzero(shares)
        assert ages.tolist() == [age for age in (8, 4, 0) if age <= decision.step]


def test_an_episode_without_what_the_policy_sees_is_refused(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    blind = {name: rows for name, rows in returning[0].arrays.items() if name == ACTION}
    with pytest.raises(ValueError, match=r"has no observation\..*, which the policy needs"):
        list(decisions_along(policy, replace(returning[0], arrays=blind), T_O, seed=0))
