"""Intervals of means over episodes."""

import numpy as np

from longview.learner.bootstrap import known_mean, mean_interval


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(200):
        _, low, high = mean_interval(rng.normal(3.0, 1.0, (30, 1)), seed=trial)
        held += bool(low[0] <= 3.0 <= high[0])
    assert 0.88 <= held / 200 <= 0.98


def test_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0], [2.0, np.nan]])
    mean, low, high = mean_interval(values)
    np.testing.assert_allclose(mean, [2.0, 5.0])
    assert low[0] < 2.0 < high[0]
    assert low[1] == high[1] == 5.0


def test_one_episode_has_an_interval_without_width() -> None:
    mean, low, high = mean_interval(np.array([[[0.5, 0.25]]]))
    assert mean.shape == (1, 2)
    np.testing.assert_array_equal(low, mean)
    np.testing.assert_array_equal(high, mean)


def test_what_no_episode_tells_is_unknown() -> None:
    for ends in mean_interval(np.array([[1.0, np.nan], [1.0, np.nan]])):
        np.testing.assert_array_equal(ends, [1.0, np.nan])
    np.testing.assert_array_equal(
        known_mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]), axis=1), [2, np.nan]
    )
