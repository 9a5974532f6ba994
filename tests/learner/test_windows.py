from collections.abc import Callable

import numpy as np
import pytest

from learner.config import Horizon
from learner.windows import build
from replay.episode import Episode, Segment

HORIZON = Horizon(context=16, past=3, future=5, execute=2)
Cut = Callable[[Episode, int, int, int], Segment]


@pytest.mark.parametrize("length", [1, 2, 4, 16])
def test_windows_of_the_counter_are_continuous_and_masked_right(
    counting: list[Episode], cut: Cut, length: int
) -> None:
    """Every step of every episode: counts tell where each row came from."""
    for episode in counting:
        nows = range(episode.length)
        batch = build([cut(episode, now, length - 1, HORIZON.after) for now in nows], HORIZON, length)
        first = episode.arrays["observation.count"][0, 0]
        assert batch.observation["count"].shape == (episode.length, length, 1)
        for now in nows:
            age = np.arange(length - 1, -1, -1)
            assert batch.seen_BS[now].tolist() == (now - age >= 0).tolist()
            seen = batch.seen_BS[now]
            assert (batch.observation["count"][now, seen, 0] == (first + now - age)[seen]).all()
            offset = np.arange(-3, 5)
            target = batch.target_BT[now]
            expected = (now + offset >= 0) & (now + offset < episode.length) & (offset > -length)
            assert target.tolist() == expected.tolist()
            assert (batch.action_BTA[now, target, 0] == (first + now + offset)[target]).all()


def test_past_targets_are_executed_and_future_ones_the_experts(returning: list[Episode], cut: Cut) -> None:
    arrays = returning[0].arrays
    batch = build([cut(returning[0], 10, 15, HORIZON.after)], HORIZON, 16)
    assert (batch.action_BTA[0, :3] == arrays["action"][7:10]).all()
    assert (batch.action_BTA[0, 3:] == arrays["expert_action"][10:15]).all()
    assert (batch.action_BTA[0, 3:] != arrays["action"][10:15]).any()


def test_without_labels_the_executed_actions_are_the_targets(returning: list[Episode], cut: Cut) -> None:
    whole = returning[0]
    arrays = {name: array for name, array in whole.arrays.items() if name != "expert_action"}
    bare = Episode(whole.meta, whole.outcome, arrays)
    batch = build([cut(bare, 10, 0, HORIZON.after)], HORIZON, 1)
    assert (batch.action_BTA[0, 3:] == arrays["action"][10:15]).all()


def test_a_longer_segment_gives_the_same_window(counting: list[Episode], cut: Cut) -> None:
    episode = max(counting, key=lambda e: e.length)
    tight, loose = (build([cut(episode, 9, before, 20)], HORIZON, 4) for before in (3, 9))
    assert (tight.observation["count"] == loose.observation["count"]).all()
    assert (tight.action_BTA == loose.action_BTA).all()
