from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.tasks import return_point

EPISODES = 800
CHANCE, MARGIN = 0.5, 0.1

Samples = NDArray[np.float64]


@pytest.fixture(scope="module")
def episodes(play: Callable[..., Any]) -> list[Samples]:
    """Positions (T, 2) of the noisy expert's episodes; episode i has seed i."""
    env = return_point.make()
    return [
        np.array([seen["position"] for seen in play(return_point, env, seed, noise=0.1).observations])
        for seed in range(EPISODES)
    ]


@pytest.fixture(scope="module")
def sides() -> NDArray[np.bool_]:
    env = return_point.make()
    starts = [env.reset(seed=seed)[0]["position"][0] for seed in range(EPISODES)]
    return np.array(starts) > 0


def test_both_sides_are_equally_likely(sides: NDArray[np.bool_]) -> None:
    assert abs(sides.mean() - 0.5) < 0.07


@pytest.mark.parametrize("back", [0, 1, 2, 4])
def test_where_it_stands_on_the_lift_does_not_tell_the_side(
    episodes: list[Samples], sides: NDArray[np.bool_], back: int
) -> None:
    """Positions at the step of the decision, when the lift has arrived, and at the steps before."""
    arrivals = np.array([episode[_arrival(episode) - back] for episode in episodes])
    assert _predictability(arrivals, sides) < CHANCE + MARGIN


def test_the_time_of_arrival_does_not_tell_the_side(
    episodes: list[Samples], sides: NDArray[np.bool_]
) -> None:
    times = np.array([[_arrival(episode)] for episode in episodes], float)
    assert _predictability(times, sides) < CHANCE + MARGIN


def test_the_past_tells_the_side_for_as_long_as_the_longest_context(
    episodes: list[Samples], sides: NDArray[np.bool_]
) -> None:
    starts = np.array([episode[0] for episode in episodes])
    assert _predictability(starts, sides) > 0.99
    longest = return_point.spec.context_lengths[-1]
    assert max(_arrival(episode) for episode in episodes) < longest


def _arrival(episode: Samples) -> int:
    """Return the first step at which the lift is up."""
    return int(np.argmax(episode[:, 1] >= 1 - return_point.HALF_LANE))


def _predictability(samples: Samples, labels: NDArray[np.bool_]) -> float:
    """Return the accuracy of 25 nearest neighbours on the other half of the samples (N, D)."""
    scaled = samples / (samples.std(axis=0) + 1e-9)
    known, asked = scaled[::2], scaled[1::2]
    distances = np.linalg.norm(asked[:, None] - known[None], axis=-1)
    votes = labels[::2][np.argsort(distances, axis=1)[:, :25]].mean(axis=1)
    return float(np.mean((votes > 0.5) == labels[1::2]))


def test_the_wrong_side_is_wrong(play: Callable[..., Any]) -> None:
    point = return_point.ReturnPoint(return_point.spec)

    class Forgetful:
        """A task whose expert goes to the other side once it is up."""

        spec = return_point.spec
        make = staticmethod(return_point.make)

        @staticmethod
        def expert(env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> Callable[[], Any]:
            act = return_point.expert(env, rng)
            mirrored = np.array((-1, 1), np.float32)
            return lambda: act() * mirrored if point.y >= 1 - return_point.HALF_LANE else act()

    played = play(Forgetful, point, seed=0)
    assert (played.outcome, played.terminated, sum(played.rewards)) == ("wrong", True, 0.0)


def test_the_picture_shows_where_it_is_and_where_home_is() -> None:
    env = return_point.make(render_mode="rgb_array")
    for seed in range(4):
        x, y = env.reset(seed=seed)[0]["position"]
        picture = np.asarray(env.render()).astype(int)
        assert picture.shape == (256, 256, 3)
        red, green = np.moveaxis(picture, -1, 0)[:2]
        rows, columns = np.nonzero((red > 180) & (green < 100))
        np.testing.assert_allclose((columns.mean(), rows.mean()), _pixel(x, y), atol=2)
        assert _pixel(np.sign(x), 0)[0] == pytest.approx(np.nonzero(green > red + 30)[1].mean(), abs=15)


def _pixel(x: float, y: float) -> tuple[float, float]:
    """Return column and row of a position."""
    return 128 + 91 * x, 128 - 91 * (y - 0.5)


def test_the_lift_takes_its_time_whatever_the_policy_does() -> None:
    env = return_point.make()
    for seed in range(50):
        position = env.reset(seed=seed)[0]["position"]
        steps = 0
        while position[1] < 1 - return_point.HALF_LANE:
            toward = (-np.sign(position[0]), float(abs(position[0]) < return_point.HALF_LIFT))
            position = env.step(np.array(toward, np.float32))[0]["position"]
            steps += position[1] > return_point.HALF_LANE
        assert 0.7 * return_point.LIFT_STEPS[0] < steps < return_point.LIFT_STEPS[1]
