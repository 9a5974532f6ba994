from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis import Redis

from longview.replay.codec import decode_chunk
from longview.replay.errors import EpisodeError
from longview.replay.redis import keys
from longview.replay.redis.writer import EpisodeWriter
from longview.replay.store import EpisodeStore

Rewards = Callable[[EpisodeWriter], list[list[float]]]
STEP_BYTES = 4 * 2 + 4 * 4 * 3 + 4 * 3 + 4 + 1
"""Bytes of a step of the tests' task: position, camera, action, reward, controller."""


@pytest.fixture
def store(connect: Callable[..., EpisodeStore]) -> EpisodeStore:
    return connect(chunk_steps=3)


@pytest.fixture
def writer(store: EpisodeStore, begin: Any) -> EpisodeWriter:
    opened = begin(store, 1)
    assert isinstance(opened, EpisodeWriter)
    return opened


@pytest.fixture
def rewards(store: EpisodeStore, redis: Redis) -> Rewards:
    """Return a function that reads the rewards in the stored chunks of a writer's episode."""

    def rewards(writer: EpisodeWriter) -> list[list[float]]:
        store.flush()
        record = writer._record
        names = keys.chunks(store._namespace.tag_of(record.meta.id), record.meta.id, record.token, range(9))
        chunks: Any = redis.mget(names)
        return [decode_chunk(chunk)["reward"].tolist() for chunk in chunks if chunk is not None]

    return rewards


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_steps_leave_in_chunks(
    store: EpisodeStore, writer: EpisodeWriter, rewards: Rewards, step: Any, length: int
) -> None:
    for number in range(length):
        writer.append(step(number))
        assert len(rewards(writer)) == number // 3
    assert writer.commit("failure")
    assert [reward for chunk in rewards(writer) for reward in chunk] == list(range(length))
    (record,) = store.records()
    assert (record.outcome, record.length, record.chunks) == ("failure", length, -(-length // 3))
    assert store.stats().total.bytes == record.bytes > 0


@pytest.mark.parametrize(
    ("chunk_bytes", "steps"),
    [(1, 1), (2 * STEP_BYTES - 1, 1), (2 * STEP_BYTES, 2), (100 * STEP_BYTES, 5)],
)
def test_a_chunk_is_bounded_in_bytes_too(
    connect: Callable[..., EpisodeStore], begin: Any, step: Any, chunk_bytes: int, steps: int
) -> None:
    store = connect(chunk_steps=5, chunk_bytes=chunk_bytes)
    writer = begin(store, 1)
    for number in range(11):
        writer.append(step(number))
    writer.commit("success")
    (record,) = store.records()
    assert (record.length, record.chunk_steps, record.chunks) == (11, steps, -(-11 // steps))
    assert store.verify().sound
    for reader in (store, connect(chunk_steps=3)):  # the record decides, not the reader's config
        assert reader.read(record.meta.id).arrays["reward"].tolist() == list(range(11))
        (segment,) = reader.sample({"rollout/success": 1.0}, 1, 20, 20, np.random.default_rng(0))
        assert segment.arrays["reward"].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros(4, np.float32)}, r"step 1: .*action is float32\[4\], expected float32\[3\]"),
        ({"action": np.zeros(3, np.float64)}, r"action is float64\[3\], expected float32\[3\]"),
        ({"observation.camera": np.zeros((4, 3), np.uint8)}, r"uint8\[4, 3\], expected uint8\[4, 4, 3\]"),
        ({"observation.pose": np.zeros(2, np.float32)}, r"unknown arrays \['observation.pose'\]"),
        ({"expert_action": np.zeros(3, np.float32)}, "expert_action must be in all steps"),
        ({"reward": None}, r"missing arrays \['reward'\]"),
        ({"reward": 1.0}, r"reward is float64\[\], expected float32\[\]"),
        ({"controller": np.int64(1)}, r"controller is int64\[\], expected uint8\[\]"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    writer: EpisodeWriter, rewards: Rewards, step: Any, change: dict[str, Any], message: str
) -> None:
    writer.append(step(0))
    wrong = {name: array for name, array in (step(1) | change).items() if array is not None}
    with pytest.raises(EpisodeError, match=message):
        writer.append(wrong)
    writer.append(step(1))
    writer.commit("success")
    assert rewards(writer) == [[0, 1]]


def test_the_first_step_is_checked_too(writer: EpisodeWriter, step: Any) -> None:
    with pytest.raises(EpisodeError, match=r"action is float32\[1\], expected float32\[3\]"):
        writer.append(step(0) | {"action": np.ones(1, np.float32), "expert_action": np.ones(3, np.float32)})
    with pytest.raises(EpisodeError, match=r"missing arrays \['action'\]"):
        writer.append({name: array for name, array in step(0).items() if name != "action"})
    writer.append(step(0))


def test_expert_actions_are_optional(store: EpisodeStore, writer: EpisodeWriter, step: Any) -> None:
    writer.append(step(0) | {"expert_action": np.ones(3, np.float32)})
    with pytest.raises(EpisodeError, match="expert_action must be in all steps of an episode or in none"):
        writer.append(step(1))
    writer.commit("success")
    assert store.read(store.ids()[0]).arrays["expert_action"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_optional_arrays_are_in_all_chunks_or_in_none(
    connect: Any, begin: Any, step: Any, steps: int
) -> None:
    label, place = {"expert_action": np.ones(3, np.float32)}, {"plan_step": np.uint8(7)}
    writer = begin(store := connect(chunk_steps=4), 1)
    with pytest.raises(EpisodeError, match=r"step 0: .* unknown arrays \['plan_step'\]"):
        writer.append(step(0) | place)
    for number in range(steps):
        writer.append(step(number) | label | place)
    with pytest.raises(EpisodeError, match=f"step {steps}: plan_step must be in all steps of an episode"):
        writer.append(step(steps) | label)
    with pytest.raises(EpisodeError, match="expert_action and plan_step must be in all steps"):
        writer.append(step(steps))
    writer.commit("success")
    assert store.read(store.ids()[0]).arrays["plan_step"].tolist() == [7] * steps


def test_values_that_are_not_finite_are_refused(
    store: EpisodeStore, writer: EpisodeWriter, step: Any
) -> None:
    for number in range(4):
        writer.append(step(number))
    writer.append(step(4) | {"reward": np.float32("nan")})
    with pytest.raises(EpisodeError, match="reward holds values that are not finite in steps 3 to 4"):
        writer.commit("success")
    assert store.ids() == []


def test_a_controller_that_is_unknown_is_refused(
    store: EpisodeStore, writer: EpisodeWriter, step: Any
) -> None:
    writer.append(step(0) | {"controller": np.uint8(3)})
    with pytest.raises(EpisodeError, match="controller is 0, 1 or 2, but up to 3 in steps 0 to 0"):
        writer.commit("success")
    assert store.ids() == []


def test_an_episode_that_is_too_long_ends_with_what_to_do(
    writer: EpisodeWriter, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longview.replay.redis.writer.MAX_CHUNKS", 2)
    for number in range(9):
        writer.append(step(number))
    with pytest.raises(
        EpisodeError, match=r"has 2 chunks already, .*; raise replay\.chunk_steps and replay\.chunk_bytes"
    ):
        writer.append(step(9))


def test_an_array_may_be_used_again_at_once(
    store: EpisodeStore, writer: EpisodeWriter, step: Any, rewards: Rewards
) -> None:
    same = step(0)
    for number in range(7):
        same["reward"][...] = number
        writer.append(same)
    writer.commit("success")
    assert rewards(writer) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_episode_ends_once(store: EpisodeStore, writer: EpisodeWriter, step: Any) -> None:
    with pytest.raises(EpisodeError, match="has 0 steps"):
        writer.commit("success")
    writer.append(step(0))
    with pytest.raises(EpisodeError, match="outcome 'won'"):
        writer.commit("won")
    assert writer.commit("success")
    assert writer.commit("success"), "the same again is the same"
    writer.abort()
    with pytest.raises(EpisodeError, match="committed or aborted"):
        writer.append(step(1))
    with pytest.raises(EpisodeError, match="it is committed, has 1 steps, outcome 'failure'"):
        writer.commit("failure")
    assert store.read(store.ids()[0]).outcome == "success"


def test_an_aborted_episode_is_discarded(
    store: EpisodeStore, writer: EpisodeWriter, rewards: Rewards, step: Any
) -> None:
    for number in range(7):
        writer.append(step(number))
    assert rewards(writer) == [[0, 1, 2], [3, 4, 5]]
    writer.abort()
    assert rewards(writer) == []
    with pytest.raises(EpisodeError, match="it is aborted"):
        writer.commit("success")
    assert store.ids() == []


def test_a_commit_may_describe_the_episode_anew(
    store: EpisodeStore, writer: EpisodeWriter, step: Any
) -> None:
    for number in range(4):
        writer.append(step(number))
    meta = writer._record.meta
    with pytest.raises(EpisodeError, match="cannot become other of"):
        writer.commit("success", replace(meta, id="other"))
    changed = replace(meta, source="human", seed=9)
    assert changed.source != meta.source
    assert writer.commit("success", changed)
    assert store.read(meta.id).meta == changed
    assert store.ids("human") == [meta.id]
    assert store.ids(meta.source) == []
