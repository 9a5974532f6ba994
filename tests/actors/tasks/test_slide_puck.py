from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.control import saving_fault
from longview.actors.tasks import slide_puck
from longview.actors.tasks.slide_puck import (
    ATTEMPT_STEPS,
    ATTEMPTS,
    END,
    FIRST,
    FRICTION,
    HOLD_STEPS,
    SPEED,
    TARGETS,
    TOLERANCE,
    SlidePuck,
    spec,
    task,
)

EPISODES = 300
NOISE = 0.01
DECISIONS = range(HOLD_STEPS, spec.max_steps, ATTEMPT_STEPS)
"""Step of each attempt at which the push begins."""

Samples = NDArray[np.float64]


@pytest.fixture(scope="module")
def frictions() -> Samples:
    """Frictions of the lanes of all seeds, (episodes,)."""
    env, drawn = SlidePuck(spec), []
    for seed in range(EPISODES):
        env.reset(seed=seed)
        drawn.append(env.friction)
    return np.array(drawn)


@pytest.fixture(scope="module")
def played(play: Callable[..., Any]) -> list[Any]:
    """Episodes of the noisy expert; episode i has seed i."""
    env = slide_puck.make()
    return [play(task, env, seed, NOISE) for seed in range(EPISODES)]


@pytest.fixture(scope="module")
def frames(played: list[Any]) -> list[Samples]:
    """Observations (T, 3) of these episodes: the puck's place and speed, and the target."""
    return [np.array([_row(seen) for seen in episode.observations]) for episode in played]


def test_the_expert_succeeds(played: list[Any]) -> None:
    outcomes = [episode.outcome for episode in played]
    assert outcomes.count("success") >= 0.97 * EPISODES
    assert set(outcomes) <= {"success", "wrong"}


def test_a_puck_slides_as_far_as_its_speed_and_the_friction_say(frictions: Samples) -> None:
    env = SlidePuck(spec)
    for seed, friction in enumerate(frictions[:50]):
        env.reset(seed=seed)
        while env.steps < ATTEMPT_STEPS - 1:
            env.step(np.array((FIRST[1] / SPEED,), np.float32))
        assert env.speed == 0
        assert env.x == pytest.approx(FIRST[1] ** 2 / (2 * friction), rel=1e-5)
        assert env.x < END


def test_the_puck_stops_at_the_end_of_the_lane() -> None:
    env = SlidePuck(spec)
    env.reset(seed=0)
    env.friction = FRICTION[0]
    for _ in range(HOLD_STEPS + 8):
        env.step(np.ones(1, np.float32))
    assert (env.x, env.speed) == (END, 0.0)


def test_until_the_line_the_puck_goes_as_the_hand_does() -> None:
    """Neither a careful nor a wild hand can feel the friction before the puck is gone."""
    pushes = np.random.default_rng(0).uniform(-1, 0.6, (ATTEMPT_STEPS - 1, 1)).astype(np.float32)
    ways = []
    for friction in FRICTION:
        env = SlidePuck(spec)
        places = [env.reset(seed=0)[0]["puck_pos"].item()]
        env.friction = friction
        for push in pushes:
            places.append(env.step(push)[0]["puck_pos"].item())
        gone = int(np.argmax(np.array(places) >= 0)) or len(places)
        ways.append(places[:gone])
    assert ways[0] == ways[1]
    assert len(ways[0]) > HOLD_STEPS + 2


def test_nothing_is_left_of_an_attempt_but_the_memory_of_it() -> None:
    """Whatever was done and whatever the friction, the next attempt begins with the same frames."""
    starts = []
    for friction, push in ((FRICTION[0], 1.0), (FRICTION[1], 0.4), (FRICTION[1], -1.0), (FRICTION[0], 0.01)):
        env = SlidePuck(spec)
        seen = [env.reset(seed=1)[0]]
        env.friction = friction
        for _ in range(spec.max_steps - ATTEMPT_STEPS + HOLD_STEPS):
            seen.append(env.step(np.array((push,), np.float32))[0])
        starts.append(
            [
                tuple(_row(seen[step]))
                for decision in DECISIONS
                for step in range(decision - HOLD_STEPS, decision + 1)
            ]
        )
    assert all(start == starts[0] for start in starts)
    assert len(set(starts[0])) == ATTEMPTS


def test_the_expert_shows_nothing_before_the_first_puck_slides() -> None:
    """The expert's first push is the same on every lane, to the last bit."""
    env, pushes = SlidePuck(spec), []
    for friction in FRICTION:
        env.reset(seed=2)
        env.friction = friction
        act, pushed = slide_puck.expert(env, np.random.default_rng(2)), []
        while env.x < 0:
            pushed.append(act().item())
            env.step(np.array(pushed[-1:], np.float32))
        pushes.append(pushed)
    assert pushes[0] == pushes[1]


@pytest.mark.parametrize("attempt", range(ATTEMPTS))
@pytest.mark.parametrize("context_length", [1, 8])
def test_a_short_context_does_not_tell_the_friction(
    frames: list[Samples], frictions: Samples, attempt: int, context_length: int
) -> None:
    seen = _before(frames, DECISIONS[attempt], context_length)
    assert _predictability(seen, frictions > np.median(frictions)) < 0.6


def test_time_does_not_tell_the_friction(frames: list[Samples], frictions: Samples) -> None:
    """The puck is put back at the same steps of every episode, and until then nothing ends."""
    assert all(len(episode) > DECISIONS[-1] for episode in frames)
    for attempt in range(1, ATTEMPTS):
        back = attempt * ATTEMPT_STEPS
        assert all(episode[back, 0] < 0 <= episode[back - 1, 0] for episode in frames)


@pytest.mark.parametrize("attempt", range(1, ATTEMPTS))
def test_an_attempt_that_was_seen_tells_the_friction(
    frames: list[Samples], frictions: Samples, attempt: int
) -> None:
    """The attempt before, from its push on, is enough: 40 steps see all of it."""
    seen = _before(frames, DECISIONS[attempt], ATTEMPT_STEPS + HOLD_STEPS)
    assert _predictability(seen, frictions > np.median(frictions)) > 0.8


def test_the_longest_context_sees_all_attempts_and_a_short_one_none() -> None:
    assert spec.context_lengths[:2] == (1, HOLD_STEPS)
    assert spec.context_lengths[-1] == spec.max_steps > DECISIONS[-1]


def test_chance_is_the_best_that_speeds_without_knowledge_of_the_friction_reach() -> None:
    targets = np.linspace(*TARGETS, 41)
    speeds = np.linspace(0, SPEED, 301)[:, None]
    frictions = np.exp(np.linspace(*np.log(FRICTION), 1001))
    stops = np.minimum(speeds**2 / (2 * frictions), END)
    shares = [(np.abs(stops - target) <= TOLERANCE).mean(axis=1) for target in targets]
    assert spec.chance == pytest.approx(np.mean([share.max() for share in shares]), abs=0.01)

    env, outcomes = SlidePuck(spec), []
    for seed in range(EPISODES):
        env.reset(seed=seed)
        terminated = False
        while not terminated:
            best = speeds[np.argmax(shares[np.abs(targets - env.target).argmin()])] / SPEED
            _, _, terminated, _, info = env.step(best.astype(np.float32))
        outcomes.append(info["outcome"])
    assert set(outcomes) == {"success", "wrong"}
    assert outcomes.count("success") / EPISODES == pytest.approx(spec.chance, abs=0.06)


def test_a_state_in_the_middle_of_a_slide_is_restored() -> None:
    env = slide_puck.make()
    assert saving_fault(task, env) == ""
    assert isinstance(env, SlidePuck)
    env.reset(seed=3)
    push = np.full(1, 0.5, np.float32)
    for _ in range(ATTEMPT_STEPS - 10):
        env.step(push)
    state = env.save()
    first = [env.step(push)[0]["puck_pos"].item() for _ in range(30)]
    env.restore(state)
    assert [env.step(push)[0]["puck_pos"].item() for _ in range(30)] == first


def test_the_picture_shows_every_attempt_and_how_rough_the_lane_is() -> None:
    env = SlidePuck(spec, "rgb_array")
    reds = []
    for friction in FRICTION:
        env.reset(seed=0)
        env.friction = friction
        pictures = []
        for _ in range(spec.max_steps - ATTEMPT_STEPS + 1):
            if env.steps % ATTEMPT_STEPS == 0:
                pictures.append(env.render().astype(int))
            env.step(np.full(1, 0.4, np.float32))
        for attempt, picture in enumerate(pictures):
            red = (picture[..., 0] > 180) & (picture[..., 1] < 100)
            rows = [red[top : top + 64].any() for top in (32, 96, 160)]
            assert rows == [row <= attempt for row in range(ATTEMPTS)]
        reds.append(pictures[0].mean(axis=(0, 1)))
    assert reds[0][2] > reds[1][2] + 10


def _row(seen: Mapping[str, Samples]) -> Samples:
    return np.concatenate([seen[key] for key in sorted(seen)])


def _before(frames: list[Samples], step: int, context_length: int) -> Samples:
    """Return the frames that each episode shows at a step, (episodes, 3 context_length)."""
    return np.array([episode[step - context_length + 1 : step + 1].ravel() for episode in frames])


def _predictability(samples: Samples, labels: NDArray[np.bool_]) -> float:
    """Return the accuracy of 25 nearest neighbours on the other half of the samples (N, D)."""
    scaled = samples / (samples.std(axis=0) + 1e-9)
    known, asked = scaled[::2], scaled[1::2]
    distances = np.linalg.norm(asked[:, None] - known[None], axis=-1)
    votes = labels[::2][np.argsort(distances, axis=1)[:, :25]].mean(axis=1)
    return float(np.mean((votes > 0.5) == labels[1::2]))
