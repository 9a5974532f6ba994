from collections.abc import Callable
from typing import Any

import numpy as np

from longview.actors.task import Environment
from longview.actors.tasks.lift import task


def test_start_and_cube_differ_between_episodes(simulators: Callable[[str], Environment]) -> None:
    starts = [simulators("lift").reset(seed=seed)[0] for seed in range(20)]
    assert np.ptp([start["object"][:2] for start in starts], axis=0).min() > 0.03
    assert np.ptp([start["robot0_eef_pos"] for start in starts], axis=0).min() > 0.01


def test_the_expert_lifts_a_cube_at_any_angle_without_turning_its_hand(
    simulators: Callable[[str], Environment], play: Callable[..., Any]
) -> None:
    angles = []
    for seed in range(8):
        played = play(task, simulators("lift"), seed)
        (x, y, _, _), (_, _, z, w) = (
            played.observations[-1]["robot0_eef_quat"],
            played.observations[0]["object"][3:7],
        )
        assert played.outcome == "success"
        assert abs(2 * np.arctan2(y, x)) < 0.2
        angles.append(abs((2 * np.arctan2(z, w) + np.pi / 4) % (np.pi / 2) - np.pi / 4))
    assert max(angles) > 0.6  # as far from straight as a cube can be is 0.79
