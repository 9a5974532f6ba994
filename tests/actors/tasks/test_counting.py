from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longview.actors.tasks import counting


def test_the_expert_counts_without_gaps_and_succeeds(play: Callable[..., Any]) -> None:
    lengths = set()
    for seed in range(100):
        played = play(counting, counting.make(), seed)
        counts = [int(observation["count"][0]) for observation in played.observations]
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        assert played.outcome == "success"
        assert played.terminated
        lengths.add(len(played.rewards))
    assert min(lengths) >= counting.LENGTHS[0]
    assert max(lengths) < counting.LENGTHS[1] <= counting.spec.max_steps
    assert len(lengths) > 20


@pytest.mark.parametrize("wrong_step", [0, 2])
def test_one_wrong_action_is_failure(wrong_step: int) -> None:
    env = counting.make()
    observation, info = env.reset(seed=1)
    step, ended, rewards = 0, False, []
    while not ended:
        observation, reward, ended, _, info = env.step(observation["count"] + np.float32(step == wrong_step))
        rewards.append(float(reward))
        step += 1
    assert info["outcome"] == "failure"
    assert rewards[wrong_step] == 0.0
    assert np.sum(rewards) == step - 1
