from typing import Any

import numpy as np
import pytest

from replay.codec import Record, decode_chunk
from replay.config import StoreConfig
from replay.episode import EpisodeMeta, TaskSpec
from replay.errors import EpisodeError, StoreUnavailable
from replay.writer import EpisodeWriter, Sink


class Away:
    """A sink that keeps what it is given, and can be away."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.records: list[Record] = []
        self.discarded = 0
        self.away = False

    def put(self, number: int, chunk: bytes) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.chunks[number] = chunk

    def commit(self, record: Record, last: bytes) -> bool:
        self.put(record.chunks - 1, last)
        self.records.append(record)
        return True

    def discard(self) -> None:
        self.discarded += 1

    def rewards(self) -> list[list[float]]:
        return [decode_chunk(self.chunks[number])["reward"].tolist() for number in sorted(self.chunks)]


@pytest.fixture
def sink() -> Away:
    return Away()


@pytest.fixture
def writer(sink: Away, spec: TaskSpec) -> EpisodeWriter:
    meta = EpisodeMeta("x", "walk", 1, "rollout")
    return EpisodeWriter(
        meta, spec, "token", StoreConfig(chunk_steps=3), Sink(sink.put, sink.commit, sink.discard)
    )


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_steps_leave_in_chunks(sink: Away, writer: EpisodeWriter, step: Any, length: int) -> None:
    for number in range(length):
        writer.append(step(number))
        assert len(sink.chunks) == number // 3
    assert writer.commit("failure")
    assert [reward for chunk in sink.rewards() for reward in chunk] == list(range(length))
    (record,) = sink.records
    assert (record.outcome, record.length, record.chunks) == ("failure", length, -(-length // 3))
    assert record.bytes == sum(map(len, sink.chunks.values()))


def test_a_failed_call_may_be_repeated(sink: Away, writer: EpisodeWriter, step: Any) -> None:
    for number in range(3):
        writer.append(step(number))
    sink.away = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            writer.append(step(3))
    sink.away = False
    writer.append(step(3))
    sink.away = True
    with pytest.raises(StoreUnavailable):
        writer.commit("success")
    sink.away = False
    assert writer.commit("success")
    assert sink.rewards() == [[0, 1, 2], [3]]


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
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    sink: Away, writer: EpisodeWriter, step: Any, change: dict[str, Any], message: str
) -> None:
    writer.append(step(0))
    wrong = {name: array for name, array in (step(1) | change).items() if array is not None}
    with pytest.raises(EpisodeError, match=message):
        writer.append(wrong)
    writer.append(step(1))
    writer.commit("success")
    assert sink.rewards() == [[0, 1]]


def test_the_first_step_is_checked_too(writer: EpisodeWriter, step: Any) -> None:
    with pytest.raises(EpisodeError, match=r"action is float32\[1\], expected float32\[3\]"):
        writer.append(step(0) | {"action": np.ones(1, np.float32), "expert_action": np.ones(3, np.float32)})
    with pytest.raises(EpisodeError, match=r"missing arrays \['action'\]"):
        writer.append({name: array for name, array in step(0).items() if name != "action"})
    writer.append(step(0))


def test_expert_actions_are_optional(sink: Away, writer: EpisodeWriter, step: Any) -> None:
    writer.append(step(0) | {"expert_action": np.ones(3, np.float32)})
    with pytest.raises(EpisodeError, match="expert_action must be in all steps of an episode or in none"):
        writer.append(step(1))
    writer.commit("success")
    assert decode_chunk(sink.chunks[0])["expert_action"].tolist() == [[1, 1, 1]]


def test_values_that_are_not_finite_are_refused(sink: Away, writer: EpisodeWriter, step: Any) -> None:
    writer.append(step(0) | {"reward": np.float32("nan")})
    with pytest.raises(EpisodeError, match="reward holds values that are not finite in steps 0 to 0"):
        writer.commit("success")
    assert not sink.records


def test_an_episode_ends_once(sink: Away, writer: EpisodeWriter, step: Any) -> None:
    with pytest.raises(EpisodeError, match="has 0 steps"):
        writer.commit("success")
    writer.append(step(0))
    with pytest.raises(EpisodeError, match="outcome 'won'"):
        writer.commit("won")
    writer.commit("success")
    writer.abort()
    assert sink.discarded == 0
    with pytest.raises(EpisodeError, match="committed or aborted"):
        writer.append(step(1))
    with pytest.raises(EpisodeError, match="committed or aborted"):
        writer.commit("success")


def test_an_aborted_episode_is_discarded(sink: Away, writer: EpisodeWriter, step: Any) -> None:
    writer.append(step(0))
    writer.abort()
    assert sink.discarded == 1
    with pytest.raises(EpisodeError, match="committed or aborted"):
        writer.commit("success")
