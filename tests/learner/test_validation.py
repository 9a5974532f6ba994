"""Tests of validation against a loop over single windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.validation import action_errors, validate
from longview.replay.episode import ACTION, CONTROLLER, EXPERT_ACTION, OBSERVATION_PREFIX, ArraySpec, Episode


def test_validation_equals_a_loop_over_windows(policy: DiffusionPolicy, returning: list[Episode]) -> None:
    """The second of two episodes has no labels of an expert."""
    labelled, other = returning[:2]
    arrays = {name: array for name, array in other.arrays.items() if name != EXPERT_ACTION}
    episodes, horizon = [labelled, replace(other, arrays=arrays)], policy.horizon
    found = validate(policy, episodes, seed=5)
    assert found["validation_s"] > 0
    assert list(found["action_error_by_context"]) == [1, 8, 16, 24, 32, 48, 64]

    rngs = np.random.default_rng(5).spawn(64)
    noise_BTA = np.array([rng.standard_normal((horizon.positions, 2)) for rng in rngs])
    for context_length in (1, 8, 64):
        errors: list[float] = []
        for number, noise_TA in enumerate(noise_BTA):
            episode = episodes[number // 32]
            now = int((number % 32 + 0.5) / 32 * episode.length)
            first = max(0, now + 1 - context_length)
            frames = {
                key: episode.arrays[OBSERVATION_PREFIX + key][first : now + 1]
                for key in policy.spec.observation
            }
            with torch.inference_mode():
                token_1SE = policy.tokens(frames)[None]
                seen_1S = np.ones((1, now + 1 - first), np.bool_)
                (action_TA,) = policy.denoise(policy.sampling(), token_1SE, seen_1S, noise_TA[None])
            wanted = episode.arrays.get(EXPERT_ACTION, episode.arrays[ACTION])[now : now + horizon.execute]
            action = action_TA[horizon.past :][: len(wanted)].clip(-1, 1)
            errors += np.abs(action - wanted).mean(axis=1).tolist()
        assert found["action_error_by_context"][context_length] == pytest.approx(
            np.mean(errors) / 2, rel=1e-4
        )


def test_it_can_be_compared_from_one_time_to_the_next(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    def values(seed: int) -> list[object]:
        return list(validate(policy, returning[:3], seed).values())[:2]

    first, state = values(1), torch.get_rng_state()
    torch.manual_seed(99)
    assert values(1) == first
    assert values(2) != first
    torch.set_rng_state(state)
    values(1)
    assert torch.equal(torch.get_rng_state(), state), "the randomness of training is another"


def test_a_shorter_policy_and_many_short_episodes(policy: DiffusionPolicy, returning: list[Episode]) -> None:
    short = DiffusionPolicy(replace(policy.config, context_length=8), policy.spec).eval()
    short.load_state_dict(policy.state_dict())
    brief = [
        replace(episode, arrays={name: array[:context_length] for name, array in episode.arrays.items()})
        for episode in returning
        for context_length in range(1, 8)
    ]
    assert len(brief) > 64
    found = validate(short, brief, seed=0)
    assert list(found["validation_loss_by_context"]) == [1, 8]
    assert np.isfinite([*found["validation_loss_by_context"].values()]).all()
    assert found["validation_loss_by_context"][1] != found["validation_loss_by_context"][8]


def test_without_limits_the_error_is_a_share_of_the_measured_range(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    free = DiffusionPolicy(policy.config, replace(policy.spec, action=ArraySpec((2,)))).eval()
    free.load_state_dict(policy.state_dict())
    # Half of the task's range is measured, and all samples lie in it: only the share differs.
    for each in (free, policy):
        each.actions.scale.fill_(0.5)
        each.actions.centre.fill_(0.0)
    found, expected = (validate(each, returning[:2], seed=5) for each in (free, policy))
    for length, error in expected["action_error_by_context"].items():
        assert found["action_error_by_context"][length] == pytest.approx(2 * error, rel=1e-5)


def test_a_window_in_which_a_policy_acted_has_no_error(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    episode = returning[0]
    arrays = {name: array for name, array in episode.arrays.items() if name != EXPERT_ACTION}
    controller = np.zeros(episode.length, np.uint8)
    controller[episode.length // 2 :] = 2
    found = action_errors(policy, replace(episode, arrays=arrays | {CONTROLLER: controller}), 8, 20, seed=0)
    assert np.isnan(found[:5]).all()
    assert np.isfinite(found[10:]).all()
    controller[:] = 0
    found = action_errors(policy, replace(episode, arrays=arrays | {CONTROLLER: controller}), 8, 20, seed=0)
    assert np.isnan(found).all()
