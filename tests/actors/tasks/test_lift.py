from collections.abc import Callable

import numpy as np

from longview.actors.task import Environment


def test_start_and_cube_differ_between_episodes(simulators: Callable[[str], Environment]) -> None:
    starts = [simulators("lift").reset(seed=seed)[0] for seed in range(20)]
    assert np.ptp([start["object"][:2] for start in starts], axis=0).min() > 0.03
    assert np.ptp([start["robot0_eef_pos"] for start in starts], axis=0).min() > 0.01
