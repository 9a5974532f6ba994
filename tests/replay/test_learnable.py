"""Draws of learnable steps, from a real Redis: the runs in an episode's record, and what is drawn by them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from longview.replay.cache import PartialEpisode
from longview.replay.codec import Record, decode_record, encode_record, longer
from longview.replay.episode import NO_PLAN, EpisodeMeta, Selection, episode_id, runs_of
from longview.replay.errors import CodecError
from longview.replay.redis import keys
from longview.replay.store import EpisodeStore

Connect = Callable[..., EpisodeStore]
PATTERNS = ("0001111000110000000", "0000000000000000011", "10", "1111111", "0000000", "1000000010000000100")
"""Episodes: at each step, 1 where an expert was in control and 0 where a policy was."""


@pytest.fixture
def take_over(begin: Any, step: Any) -> Callable[..., str]:
    """Return a function that stores the number-th correction, with these controllers."""

    def take_over(store: EpisodeStore, number: int, pattern: str, outcome: str = "failure") -> str:
        writer = begin(store, number, "correction")
        for row, controller in enumerate(pattern):
            writer.append(step(row) | {"controller": np.uint8(int(controller))})
        writer.commit(outcome)
        return episode_id("correction", "walk", number)

    return take_over


def strip_runs(store: EpisodeStore, redis: Redis, id: str) -> None:
    """Make an episode's record one of an early version, which had no runs."""
    name = keys.episodes(store._namespace.tag_of(id))
    packed: Any = redis.hget(name, id)
    plain = msgpack.unpackb(packed)
    del plain["runs"]
    redis.hset(name, id, msgpack.packb(plain))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("by", ["steps", "episodes"])
def test_every_drawn_step_is_learnable_and_they_are_drawn_evenly(
    connect: Connect, take_over: Any, redis: Redis, by: str, early: bool
) -> None:
    store = connect(chunk_steps=4)
    patterns = {take_over(store, number, pattern): pattern for number, pattern in enumerate(PATTERNS)}
    if early:
        for record in store.records():
            if record.runs:
                strip_runs(store, redis, record.meta.id)
    count = 6000
    segments = store.sample(Selection({"correction": 1}, by), count, 3, 2, np.random.default_rng(0))
    learnable = {(id, now) for id, text in patterns.items() for now, by in enumerate(text) if by == "1"}
    seen = Counter((segment.meta.id, segment.now) for segment in segments)
    assert seen.keys() == learnable
    drawn_from = [text for text in patterns.values() if "1" in text]
    for segment in segments:
        text = patterns[segment.meta.id]
        expected = 1 / len(learnable) if by == "steps" else 1 / len(drawn_from) / text.count("1")
        assert segment.probability == pytest.approx(expected)
        assert segment.start == max(0, segment.now - 3)
        last = min(len(text) - 1, segment.now + 2)
        assert segment.arrays["reward"].tolist() == list(range(segment.start, last + 1))
        now = segment.now - segment.start
        assert segment.arrays["controller"][now] == 1
        assert abs(seen[segment.meta.id, segment.now] - count * expected) < 5 * (count * expected) ** 0.5
    assert store.sizes(Selection({"correction": 1})) == (len(learnable), len(learnable))
    assert store.verify().sound, "an early record is no damage"


def test_a_success_is_drawn_from_whole(connect: Connect, take_over: Any) -> None:
    store = connect()
    id, _ = take_over(store, 0, "0011000000", "success"), take_over(store, 1, "0001")
    selection = Selection({"correction": 1, "correction/success": 1})
    segments = store.sample(selection, 2000, 0, 0, np.random.default_rng(0))
    by_stratum = {
        stratum: {(s.meta.id == id, s.now) for s in segments if s.stratum == stratum}
        for stratum in selection.mix
    }
    assert by_stratum["correction/success"] == {(True, now) for now in range(10)}
    assert by_stratum["correction"] == {(True, 2), (True, 3), (False, 3)}
    for segment in segments:
        learnable = segment.now in (2, 3)
        if segment.meta.id == id:
            assert segment.probability == pytest.approx(0.5 / 10 + 0.5 / 3 * learnable)
    assert store.sizes(selection) == (10 + 1, 10 + 1)
    assert store.sizes(Selection({"correction": 1})) == (3, 3)


def test_a_plan_is_drawn_at_the_step_where_it_was_made(connect: Connect, begin: Any, step: Any) -> None:
    store = connect(chunk_steps=4)
    writer = begin(store, 0, "correction")
    for row, place in enumerate([0, 1, 2, NO_PLAN, 0, 1, 2, 3, 0]):
        said = {"controller": np.uint8(0), "plan_step": np.uint8(place)}
        writer.append(step(row) | said | {"expert_action": np.zeros(3, np.float32)})
    writer.commit("failure")
    (record,) = store.records()
    assert (record.runs, record.learnable) == ((0, 1, 4, 5, 8, 9), 3)
    segments = store.sample({"correction": 1}, 100, 0, 3, np.random.default_rng(0))
    assert {segment.now for segment in segments} == {0, 4, 8}
    assert store.verify().sound


def test_runs_that_are_wrong_are_found(connect: Connect, take_over: Any, redis: Redis) -> None:
    store = connect()
    id = take_over(store, 0, "001100")
    name = keys.episodes(store._namespace.tag_of(id))
    packed: Any = redis.hget(name, id)
    redis.hset(name, id, encode_record(replace(decode_record(packed), runs=(1, 3))))
    (finding,) = store.verify().findings
    assert (finding.kind, finding.what) == ("episode", id)
    assert "steps (2, 4) are learnable, not (1, 3)" in finding.why


def record_of(chunks: Sequence[Sequence[bool]]) -> Record:
    """Return the record of an episode of these chunks, as a writer makes it."""
    meta = EpisodeMeta("x", "walk", 0, "correction")
    record = Record(meta, "success", 0, 0, 0, 0, "token", max(map(len, chunks)))
    for chunk in chunks:
        record = longer(record, np.array(chunk, np.bool_), 1)
    return record


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_runs_number_the_learnable_steps(chunks: list[list[bool]]) -> None:
    learnable = np.array(chunks).ravel()
    record = record_of(chunks)
    assert record.runs == runs_of(learnable)
    again = decode_record(encode_record(record))
    whole = learnable.sum() in (0, len(learnable))
    assert again == (replace(record, runs=()) if whole else record)
    episode = PartialEpisode(again)
    assert not episode.unclear
    assert [episode.learnable_step(number) for number in range(again.learnable)] == np.flatnonzero(
        learnable
    ).tolist()
    assert [episode.is_learnable(step) for step in range(len(learnable))] == learnable.tolist()


@pytest.mark.parametrize(
    "runs",
    [
        (2,), (2, 2, 3, 5), (2, 4, 4, 5), (3, 5, 0, 1), (-1, 2), (4, 7), (0, 2), (0, 4),
        ("0", 3), (0.0, 3), (0, True, 2, 4),
    ],
)  # fmt: skip
def test_a_record_with_impossible_runs_is_refused(runs: Any) -> None:
    record = replace(record_of([[True, True, False], [False, False, True]]), runs=runs)
    with pytest.raises(CodecError, match=r"runs .* of 3 learnable steps among 6"):
        decode_record(encode_record(record))
