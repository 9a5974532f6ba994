"""Episodes of robots in a real store, with who was in control at each step."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from longview.cluster.run.services import redis_server
from longview.cluster.serving.recorder import Recorder
from longview.replay.config import StoreConfig
from longview.replay.episode import Episode, TaskSpec
from longview.replay.store import EpisodeStore
from tests.cluster.serving.serving import Serve, play

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context:DeprecationWarning")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def store(url: str, request: pytest.FixtureRequest) -> Iterator[EpisodeStore]:
    store = EpisodeStore.connect(url, request.node.name, StoreConfig(chunk_steps=4, refresh_seconds=0))
    yield store
    store.close()


@pytest.fixture
def record(store: EpisodeStore) -> Callable[[TaskSpec, Any], Recorder]:
    """Return what `served` makes a recorder with."""
    return lambda spec, metrics: Recorder(store, spec, lambda outcome: metrics.episodes.labels(outcome).inc())


class Person:
    """A robot that plays an episode of the expert, who is in control at some steps, four steps a call."""

    def __init__(self, url: str, seed: int) -> None:
        rows = play(seed)
        self.action = rows.pop("action")
        self.frames = rows
        self.client = WebsocketClientPolicy(url)
        self.answers: list[dict[str, Any]] = []
        self.done = 0

    def call(self, stop: int, controller: int | None = None, **more: Any) -> None:
        """Tell of the steps up to this frame, with the expert's actions before it."""
        executed = self.action[max(0, self.done - 1) : stop - 1]
        said = {} if controller is None else {"controller": np.full(len(executed), controller)}
        frames = {key: rows[self.done : stop] for key, rows in self.frames.items()}
        self.answers.append(self.client.infer({"frames": frames, "executed": executed} | said | more))
        self.done = stop


def stored(store: EpisodeStore, count: int) -> list[Episode]:
    """Wait until the store holds some episodes, and read them."""
    deadline = time.monotonic() + 20
    while len(store) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return [store.read(id) for id in store.ids()]


def test_a_correction_says_who_was_in_control(serve: Serve, store: EpisodeStore, record: Any) -> None:
    robot = Person(serve(recorder=record).url, seed=3)
    robot.call(1)
    robot.call(5)
    robot.call(9, controller=2)
    robot.call(12, outcome="success")
    assert [answer["recording"] for answer in robot.answers] == [True] * 4
    (episode,) = stored(store, 1)
    assert (episode.meta.source, episode.meta.policy_versions, episode.meta.context_length) == (
        "correction",
        (7,),
        64,
    )
    assert (episode.length, episode.outcome) == (11, "success")
    assert episode.arrays["controller"].tolist() == [0] * 4 + [2] * 4 + [0] * 3
    np.testing.assert_array_equal(episode.arrays["action"], robot.action[:11])
    for key, rows in robot.frames.items():
        np.testing.assert_array_equal(episode.arrays[f"observation.{key}"], rows[:11])
    drawn = store.sample({"correction": 1.0}, 40, 3, 3, np.random.default_rng(0))
    assert {segment.now for segment in drawn} == {4, 5, 6, 7}, "only the person's steps are learnt from"


def test_a_person_alone_demonstrates(serve: Serve, store: EpisodeStore, record: Any) -> None:
    robot = Person(serve(recorder=record).url, seed=4)
    robot.call(5, controller=2)
    robot.call(9, controller=2, outcome="success")
    (episode,) = stored(store, 1)
    assert (episode.meta.source, episode.meta.policy_versions, episode.meta.context_length) == (
        "human",
        (),
        0,
    )
    assert episode.meta.id.startswith("serve.return_point.")
    assert episode.arrays["controller"].tolist() == [2] * 8
    assert store.ids("human") == [episode.meta.id]


def test_an_episode_that_a_person_begins_and_the_policy_ends_is_a_correction(
    serve: Serve, store: EpisodeStore, record: Any
) -> None:
    robot = Person(serve(recorder=record).url, seed=4)
    robot.call(7, controller=2)
    robot.call(9, outcome="success")
    (episode,) = stored(store, 1)
    assert (episode.meta.source, episode.meta.policy_versions, episode.meta.context_length) == (
        "correction",
        (7,),
        64,
    )
    assert episode.arrays["controller"].tolist() == [2] * 6 + [0] * 2
    assert (store.ids("correction"), store.ids("human")) == ([episode.meta.id], [])
    drawn = store.sample({"correction": 1.0}, 40, 3, 3, np.random.default_rng(0))
    assert {segment.now for segment in drawn} == set(range(6)), "only the person's steps are learnt from"


def test_a_pause_divides_a_recording_where_a_frame_begins_anew(
    serve: Serve, store: EpisodeStore, record: Any
) -> None:
    robot = Person(f"{serve(recorder=record).url}?idle_reset=1e-9", seed=4)
    robot.call(1)
    robot.call(5, controller=2)
    robot.call(9, controller=2, outcome="success")
    assert [answer["recording"] for answer in robot.answers] == [True] * 3
    first, second = sorted(stored(store, 2), key=lambda episode: episode.outcome)
    assert (first.outcome, second.outcome) == ("failure", "success")
    for episode, start in ((first, 1), (second, 5)):
        assert episode.arrays["controller"].tolist() == [2] * 3
        np.testing.assert_array_equal(episode.arrays["action"], robot.action[start : start + 3])


@pytest.mark.parametrize("ended", ["reset", "left", "stopped"])
def test_an_episode_without_an_outcome_counts_as_a_failure(
    serve: Serve, store: EpisodeStore, record: Any, ended: str
) -> None:
    server = serve(recorder=record, keep_seconds=0.1)
    robot = Person(server.url, seed=5)
    robot.call(1)
    robot.call(5)
    if ended == "reset":
        robot.client.infer({key: rows[9] for key, rows in robot.frames.items()} | {"reset": True})
    elif ended == "left":
        robot.client._ws.close()
    else:
        server.stop()
    (episode,) = stored(store, 1)
    assert (episode.outcome, episode.length) == ("failure", 4)


def test_an_episode_with_a_gap_is_not_recorded(serve: Serve, store: EpisodeStore, record: Any) -> None:
    server = serve(recorder=record)
    robot = Person(server.url, seed=6)
    robot.call(1)
    robot.call(9)
    robot.client.infer({key: rows[9] for key, rows in robot.frames.items()})  # three frames are missing
    answer = robot.client.infer({key: rows[13] for key, rows in robot.frames.items()})
    assert answer["recording"] is False
    assert answer["actions"].shape == (4, 2), "the robot goes on"
    answer = robot.client.infer({key: rows[14] for key, rows in robot.frames.items()} | {"reset": True})
    assert answer["recording"] is True
    assert len(store) == 0
    assert lost(server.metrics) == 1


def test_a_store_that_fails_stops_no_robot(serve: Serve, record: Any, tmp_path: Path) -> None:
    with redis_server(tmp_path / "other") as url:
        config = StoreConfig(chunk_steps=1, queue_bytes=1, call_seconds=0.3, patience_seconds=0.3)
        store = EpisodeStore.connect(url, "fails", config)
        server = serve(recorder=lambda spec, metrics: Recorder(
            store, spec, lambda outcome: metrics.episodes.labels(outcome).inc()
        ))  # fmt: skip
        robot = Person(server.url, seed=7)
        robot.call(1)
        robot.call(5)
    for stop in range(6, 14):
        robot.call(stop)
        time.sleep(0.1)
    assert robot.answers[-1]["recording"] is False
    assert robot.answers[-1]["actions"].shape == (4, 2)
    assert lost(server.metrics) == 1
    with pytest.raises(Exception, match="Redis"):
        store.close()


def lost(metrics: Any) -> float:
    """Return how many episodes were lost."""
    (counted,) = metrics.episodes.collect()
    return sum(float(sample.value) for sample in counted.samples if sample.name.endswith("_total"))
