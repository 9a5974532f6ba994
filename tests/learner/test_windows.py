import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.task import load_task
from longview.learner.config import Horizon
from longview.learner.windows import SPREAD, Batch, build, folded, margin, nows
from longview.replay.episode import Episode, Rows, Segment, TaskSpec

HORIZON = Horizon(context=16, past=3, future=5, execute=2)
COUNTING, RETURNING = load_task("counting").spec, load_task("return_point").spec
Cut = Callable[[Episode, int, int, int], Segment]


def drawn(segments: list[Segment]) -> NDArray[np.int64]:
    """Return the drawn step of each segment, for one window per segment: (G, 1)."""
    return np.array([[segment.now] for segment in segments])


def observed(batch: Batch, key: str) -> NDArray[Any]:
    """Return an observation as each window sees it: (B, S, ...)."""
    seen: NDArray[Any] = batch.observation[key][batch.frame_BS]
    return seen


@pytest.mark.parametrize("length", [1, 2, 4, 16])
def test_windows_of_the_counter_are_continuous_and_masked_right(
    counting: list[Episode], cut: Cut, length: int
) -> None:
    """The counter in observations and actions tells which step each of them came from."""
    for episode in counting:
        segments = [cut(episode, now, length - 1, HORIZON.after) for now in range(episode.length)]
        batch = build(segments, COUNTING, HORIZON, length, drawn(segments))
        first = episode.arrays["observation.count"][0, 0]
        assert observed(batch, "count").shape == (episode.length, length, 1)
        for now in range(episode.length):
            age = np.arange(length - 1, -1, -1)
            assert batch.seen_BS[now].tolist() == (now - age >= 0).tolist()
            seen = batch.seen_BS[now]
            assert (observed(batch, "count")[now, seen, 0] == (first + now - age)[seen]).all()
            offset = np.arange(-3, 5)
            target = batch.target_BT[now]
            expected = (now + offset >= 0) & (now + offset < episode.length) & (offset > -length)
            assert target.tolist() == expected.tolist()
            assert (batch.action_BTA[now, target, 0] == (first + now + offset)[target]).all()


@pytest.mark.parametrize("length", [1, 4, 16])
def test_windows_of_one_segment_share_its_frames(counting: list[Episode], cut: Cut, length: int) -> None:
    """Observations and targets equal those of windows cut alone. No frame occurs twice or unobserved."""
    windows, rng = 3, np.random.default_rng(0)
    before, after = length - 1 + margin(windows), HORIZON.after + margin(windows)
    segments = [cut(episode, episode.length // 2, before, after) for episode in counting]
    now_GJ = nows(segments, windows, rng)
    batch = build(segments, COUNTING, HORIZON, length, now_GJ)
    each = zip(np.repeat(np.arange(len(counting)), windows), now_GJ.flat, strict=True)
    single = [cut(counting[i], int(now), length - 1, HORIZON.after) for i, now in each]
    alone = build(single, COUNTING, HORIZON, length, now_GJ.reshape(-1, 1))
    assert (batch.seen_BS == alone.seen_BS).all()
    assert (batch.target_BT == alone.target_BT).all()
    assert (observed(batch, "count") == observed(alone, "count"))[batch.seen_BS].all()
    assert (batch.action_BTA == alone.action_BTA)[batch.target_BT].all()
    assert set(batch.frame_BS[batch.seen_BS]) == set(range(len(batch.segment_F)))
    frames = list(zip(batch.segment_F, batch.observation["count"][:, 0], strict=True))
    assert len(set(frames)) == len(frames)
    assert batch.episodes == tuple(episode.meta.id for episode in counting)
    for segment, count in frames:
        first = counting[segment].arrays["observation.count"][0, 0]
        assert 0 <= count - first < counting[segment].length
    assert (batch.segment_F[batch.frame_BS] == np.repeat(np.arange(len(counting)), windows)[:, None]).all()


@pytest.mark.parametrize("length", [1, 2, 5, 24, 40])
def test_every_window_is_uniform_over_the_episode_as_the_drawn_step_is(length: int) -> None:
    """Over all drawn steps and all pairs of places, each step of the episode occurs equally often."""
    span = 2 * SPREAD
    counts = np.zeros(length, np.int64)
    for first, other in itertools.permutations(range(span), 2):
        np.add.at(counts, folded(np.arange(length) + other - first, np.array(length)), 1)
    assert counts.tolist() == [span * (span - 1)] * length


@pytest.mark.parametrize("length", [1, 5, 40])
def test_the_windows_drawn_are_uniform(counting: list[Episode], cut: Cut, length: int) -> None:
    segment, times = cut(counting[0], 0, 0, 0), 2000
    drawn = [replace(segment, episode_length=length, now=now) for now in range(length)] * times
    for column in nows(drawn, 3, np.random.default_rng(2)).T:
        assert abs(np.bincount(column, minlength=length) - times).max() < 5 * times**0.5


def test_windows_lie_around_the_drawn_step(counting: list[Episode], cut: Cut) -> None:
    """Far from the ends no step is folded: all steps differ, and every place around the drawn step occurs."""
    long = replace(cut(counting[0], 5, 5, 5), episode_length=1000, now=500)
    found = nows([long] * 2000, 4, np.random.default_rng(1))
    assert (found[:, 0] == 500).all()
    assert all(len(set(some)) == 4 for some in found.tolist())
    assert np.ptp(found, axis=1).max() == 4 * SPREAD - 1
    assert set(found[:, 1:].flat) == set(range(500 - margin(4), 500 + margin(4) + 1)) - {500}
    assert (nows([long], 1, np.random.default_rng(1)) == 500).all()
    assert margin(1) == 0


def test_past_targets_are_executed_and_future_ones_the_experts(returning: list[Episode], cut: Cut) -> None:
    arrays, segments = returning[0].arrays, [cut(returning[0], 10, 15, HORIZON.after)]
    batch = build(segments, RETURNING, HORIZON, 16, drawn(segments))
    assert (batch.action_BTA[0, :3] == arrays["action"][7:10]).all()
    assert (batch.action_BTA[0, 3:] == arrays["expert_action"][10:15]).all()
    assert (batch.action_BTA[0, 3:] != arrays["action"][10:15]).any()


def test_without_labels_the_executed_actions_are_the_targets(returning: list[Episode], cut: Cut) -> None:
    """The batch also has an episode with labels."""
    bare = without(returning[0], "expert_action")
    segments = [cut(episode, 10, 0, HORIZON.after) for episode in (bare, returning[1])]
    batch = build(segments, RETURNING, HORIZON, 1, drawn(segments))
    assert (batch.action_BTA[0, 3:] == bare.arrays["action"][10:15]).all()
    assert (batch.action_BTA[1, 3:] == returning[1].arrays["expert_action"][10:15]).all()


def test_a_longer_segment_gives_the_same_window(counting: list[Episode], cut: Cut) -> None:
    episode = max(counting, key=lambda e: e.length)
    tight, loose = (
        build([cut(episode, 9, before, 20)], COUNTING, HORIZON, 4, np.array([[9]])) for before in (3, 9)
    )
    assert (tight.observation["count"] == loose.observation["count"]).all()
    assert (tight.action_BTA == loose.action_BTA).all()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_in_pieces_give_the_same_windows(
    looking: list[Episode], looking_spec: TaskSpec, cut: Cut, size: int
) -> None:
    horizon = Horizon(context=8, past=2, future=4, execute=2)
    whole = [cut(episode, now, 22, 18) for episode, now in zip(looking, (0, 20, 30, 40), strict=True)]
    parted = [
        replace(segment, arrays=Rows({
            name: [rows[start : start + size] for start in range(0, len(rows), size)]
            for name, rows in segment.arrays.items()
        }))
        for segment in whole
    ]  # fmt: skip
    now_GJ = nows(whole, 2, np.random.default_rng(0))
    batches = [build(segments, looking_spec, horizon, 8, now_GJ) for segments in (whole, parted)]
    for one, other in zip(*(batch.arrays for batch in batches), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_episode_shorter_than_the_horizon_is_masked(counting: list[Episode], cut: Cut) -> None:
    whole = counting[0]
    short = Episode(whole.meta, whole.outcome, {name: array[:2] for name, array in whole.arrays.items()})
    segments = [cut(short, 1, 15 + margin(2), HORIZON.after + margin(2))]
    now_GJ = nows(segments, 2, np.random.default_rng(0))
    batch = build(segments, COUNTING, HORIZON, 16, now_GJ)
    assert batch.seen_BS.sum(axis=1).tolist() == [now + 1 for now in now_GJ[0]]
    assert batch.target_BT.sum(axis=1).tolist() == [2, 2]


def without(episode: Episode, *names: str, **others: NDArray[Any]) -> Episode:
    arrays = {name: array for name, array in episode.arrays.items() if name not in names}
    return Episode(episode.meta, episode.outcome, arrays | others)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: without(e, "observation.left_image"), "left_image is missing, expected uint8[40, 44, 3]"),
        (
            lambda e: without(e, **{"observation.left_image": e.arrays["observation.left_image"][:, :20]}),
            "left_image is uint8[20, 44, 3], expected uint8[40, 44, 3]",
        ),
        (
            lambda e: without(e, **{"observation.position": e.arrays["observation.position"].astype("f8")}),
            "position is float64[2], expected float32[2]",
        ),
        (
            lambda e: without(e, action=e.arrays["action"][:, :1]),
            "action is float32[1], expected float32[2]",
        ),
    ],
)  # fmt: skip
def test_what_is_not_as_the_task_says_is_named(
    looking: list[Episode],
    looking_spec: TaskSpec,
    cut: Cut,
    change: Callable[[Episode], Episode],
    named: str,
) -> None:
    segments = [cut(episode, 5, 3, HORIZON.after) for episode in (looking[0], change(looking[1]))]
    with pytest.raises(ValueError, match=r"demo\.return_point\.1: ") as caught:
        build(segments, looking_spec, HORIZON, 4, drawn(segments))
    assert str(caught.value).endswith(named)


def test_what_is_not_finite_is_named(returning: list[Episode], cut: Cut) -> None:
    position = returning[1].arrays["observation.position"].copy()
    position[8, 1] = np.inf
    poisoned = without(returning[1], **{"observation.position": position})
    segments = [cut(episode, 9, 3, HORIZON.after) for episode in (returning[0], poisoned)]
    with pytest.raises(ValueError, match=r"point\.1: observation\.position is not finite at step 8"):
        build(segments, RETURNING, HORIZON, 4, drawn(segments))
    build(segments, RETURNING, HORIZON, 1, drawn(segments))


def test_a_segment_that_is_too_short_is_refused(returning: list[Episode], cut: Cut) -> None:
    for before, after in ((2, 4), (3, 3)):
        with pytest.raises(ValueError, match=r"windows need steps 6 to 13 of \d+, the segment holds"):
            build([cut(returning[0], 9, before, after)], RETURNING, HORIZON, 4, np.array([[9]]))
