from collections import Counter

import numpy as np
import pytest

from replay.episode import Episode, EpisodeMeta
from replay.errors import StoreError
from replay.sampling import Draw, Stratum, cut, draw, shares

STRATA = {
    "demo": Stratum.of({"a": 3, "b": 1}),
    "rollout": Stratum.of({"c": 10}),
    "dagger": Stratum.of({}),
    "import": Stratum.of({}),
}


def test_every_step_is_drawn_as_often_as_its_probability_says() -> None:
    count = 40_000
    draws = draw(STRATA, {"demo": 3, "rollout": 1}, count, np.random.default_rng(0))
    seen = Counter((drawn.id, drawn.now) for drawn in draws)
    expected = dict.fromkeys([("a", 0), ("a", 1), ("a", 2), ("b", 0)], 0.75 / 4)
    expected |= {("c", now): 0.25 / 10 for now in range(10)}
    assert seen.keys() == expected.keys()
    for drawn in draws:
        assert drawn.probability == pytest.approx(expected[drawn.id, drawn.now])
    for step, probability in expected.items():
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(seen[step] - count * probability) < 5 * deviation


def test_draws_follow_from_contents_and_generator_alone() -> None:
    shuffled = {"rollout": STRATA["rollout"], "demo": Stratum.of({"b": 1, "a": 3})} | {
        source: STRATA[source] for source in ("import", "dagger")
    }
    first = draw(STRATA, {"demo": 1, "rollout": 2}, 50, np.random.default_rng(7))
    assert draw(shuffled, {"rollout": 2, "demo": 1}, 50, np.random.default_rng(7)) == first
    assert draw(STRATA, {"demo": 1, "rollout": 2}, 50, np.random.default_rng(8)) != first


def test_empty_sources_leave_their_share_to_the_others() -> None:
    assert shares(STRATA, {"demo": 1, "rollout": 1, "dagger": 2}) == {"demo": 0.5, "rollout": 0.5}
    assert shares(STRATA, {"demo": 0, "rollout": 1}) == {"rollout": 1.0}


def test_nothing_to_draw_from_says_what_there_is() -> None:
    with pytest.raises(StoreError, match=r"'dagger': 1.*'demo': 2, 'rollout': 1"):
        draw(STRATA, {"dagger": 1}, 4, np.random.default_rng(0))


@pytest.mark.parametrize("mix", [{}, {"demo": 0}, {"demo": -1, "rollout": 2}, {"demo": np.inf}, {"dmo": 1}])
def test_a_mix_that_is_none_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="mix"):
        shares(STRATA, mix)


@pytest.mark.parametrize(
    ("now", "before", "after", "start", "rows"),
    [(5, 2, 3, 3, [3, 4, 5, 6, 7, 8]), (1, 4, 1, 0, [0, 1, 2]), (9, 1, 5, 8, [8, 9]), (0, 0, 0, 0, [0])],
)
def test_a_segment_is_clipped_to_its_episode(
    now: int, before: int, after: int, start: int, rows: list[int]
) -> None:
    meta = EpisodeMeta("c", "walk", 0, "rollout")
    episode = Episode(meta, "success", {"action": np.arange(10, dtype=np.float32)[:, None]})
    segment = cut(episode, Draw("c", now, 0.1), before, after)
    assert (segment.meta, segment.episode_length, segment.probability) == (meta, 10, 0.1)
    assert (segment.start, segment.now) == (start, now)
    assert segment.arrays["action"][:, 0].tolist() == rows
