from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from learner.policy import DiffusionPolicy, policy_from_bytes, policy_to_bytes
from learner.session import PolicySession
from replay.episode import Episode

Array = NDArray[Any]


class Play:
    """Feeds recorded episodes to a session, some steps at a time, as an actor would."""

    def __init__(self, session: PolicySession, episodes: list[Episode]) -> None:
        self.session, self.episodes = session, episodes
        self.step = [0] * len(episodes)

    def act(self, slots: list[int], counts: list[int], fresh: list[bool], T_o: int, seed: int = 0) -> Array:
        frames, executed = [], []
        for slot, count, new in zip(slots, counts, fresh, strict=True):
            start = 0 if new else self.step[slot]
            arrays = self.episodes[slot].arrays
            self.step[slot] = start + count
            frames.append({"position": arrays["observation.position"][start : start + count]})
            executed.append(arrays["action"][max(start - 1, 0) : start + count - 1])
        rng = np.random.default_rng(seed)
        return self.session.act(slots, frames, executed, np.array(fresh), T_o, rng)


def expected(policy: DiffusionPolicy, histories: list[Array], T_o: int, seed: int = 0) -> Array:
    """The same decision straight from the policy: one simulator at a time, whole history."""
    noise = np.random.default_rng(seed).standard_normal((len(histories), policy.horizon.positions, 2))
    actions = []
    for history, noise_TA in zip(histories, noise, strict=True):
        context = history[-T_o:][None]
        with torch.inference_mode():
            sample = policy.sample(
                {"position": context}, np.ones(context.shape[:2], np.bool_), noise_TA[None]
            )
        actions.append(sample[0, policy.horizon.past :][: policy.horizon.execute])
    clipped: Array = np.clip(np.stack(actions), -1, 1)
    return clipped


@pytest.fixture
def play(policy: DiffusionPolicy, returning: list[Episode]) -> Play:
    return Play(PolicySession(policy, slots=3), returning[:3])


def positions(play: Play, slot: int, end: int) -> Array:
    return play.episodes[slot].arrays["observation.position"][:end]


@pytest.mark.parametrize("T_o", [1, 8, 64])
def test_histories_of_different_length_decide_as_each_alone(
    play: Play, policy: DiffusionPolicy, T_o: int
) -> None:
    play.act([0, 1, 2], [1, 1, 1], [True] * 3, T_o)
    play.act([0, 2], [8, 8], [False] * 2, T_o)
    actions = play.act([2, 0, 1], [8, 2, 1], [False, False, True], T_o)
    histories = [positions(play, 2, 17), positions(play, 0, 11), positions(play, 1, 1)]
    assert actions.shape == (3, 8, 2)
    np.testing.assert_allclose(actions, expected(policy, histories, T_o), rtol=0, atol=1e-4)


def test_history_is_as_long_as_the_longest_context(play: Play, policy: DiffusionPolicy) -> None:
    first = play.episodes[0]
    arrays = {name: np.concatenate((array,) * 4) for name, array in first.arrays.items()}
    play.episodes[0] = Episode(first.meta, first.outcome, arrays)
    play.act([0], [1], [True], 64)
    for _ in range(11):
        actions = play.act([0], [8], [False], 64)
    np.testing.assert_allclose(
        actions, expected(policy, [positions(play, 0, 89)[-64:]], 64), rtol=0, atol=1e-4
    )


def test_reset_forgets_one_slot_only(play: Play, policy: DiffusionPolicy) -> None:
    play.act([0, 1], [20, 20], [True, True], 16)
    actions = play.act([0, 1], [3, 3], [True, False], 16)
    histories = [positions(play, 0, 3), positions(play, 1, 23)]
    np.testing.assert_allclose(actions, expected(policy, histories, 16), rtol=0, atol=1e-4)


def test_new_weights_take_over_with_the_old_history(play: Play, policy: DiffusionPolicy) -> None:
    play.act([0], [10], [True], 16)
    newer = policy_from_bytes(policy_to_bytes(policy))
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.mul_(1.1)
    play.session.load(250, newer)
    assert play.session.version == 250
    actions = play.act([0], [2], [False], 16)
    np.testing.assert_allclose(actions, expected(newer, [positions(play, 0, 12)], 16), rtol=0, atol=1e-4)


def test_actions_are_those_of_the_generator_and_within_the_range(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    policy.actions.fit((np.full(2, -3, np.float32), np.full(2, 3, np.float32)))
    one, same, other = (
        Play(PolicySession(policy, 1), returning).act([0], [4], [True], 8, seed) for seed in (1, 1, 2)
    )
    assert one.dtype == np.float32
    assert (one == same).all()
    assert (one != other).any()
    assert np.abs(one).max() == 1


def test_what_does_not_fit_is_refused(play: Play, policy: DiffusionPolicy) -> None:
    frames, rng = {"position": np.zeros((3, 2), np.float32)}, np.random.default_rng()
    act = play.session.act
    with pytest.raises(ValueError, match=r"T_o must be in 1\.\.64 for this policy, not 65"):
        act([0], [frames], [np.zeros((0, 2), np.float32)], np.array([True]), 65, rng)
    with pytest.raises(ValueError, match="slot 1: 5 executed actions do not fit 3 new frames"):
        act([1], [frames], [np.zeros((5, 2), np.float32)], np.array([False]), 8, rng)
    shorter = DiffusionPolicy(type(policy.config)(context_length=8), policy.spec)
    with pytest.raises(ValueError, match=r"version 7 does not fit the session: .*context=8"):
        play.session.load(7, shorter)
