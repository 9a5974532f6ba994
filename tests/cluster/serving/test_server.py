"""The server, asked by openpi's client over real connections."""

import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.runtime.agents.policy_agent import PolicyAgent
from openpi_client.runtime.environment import Environment
from openpi_client.runtime.runtime import Runtime
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from longview.cluster.serving import deciding
from longview.cluster.serving.ensemble import ensembled
from longview.learner.policy import Policy
from longview.learner.session import PolicySession
from longview.replay.datasets.convert import as_rgb
from tests.cluster.serving.serving import (
    CAMERA,
    SEED,
    Serve,
    Served,
    make_policy,
    play,
    with_pictures,
    write_adapter,
    write_checkpoint,
)

# openpi's client connects in a way that the newest websockets warns of.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context:DeprecationWarning")

NOTHING = np.empty((0, 2), np.float32)
LONGEST = 64
"""Longest context length of the policy."""


class Own:
    """A session of the test's own, which the server's answers are held against."""

    def __init__(self, policy: Policy) -> None:
        self.session, self.rng = PolicySession(policy, 1), np.random.default_rng(SEED)

    def act(
        self,
        frames: dict[str, Any],
        executed: Any = NOTHING,
        *,
        reset: bool = False,
        skipped: int = 0,
        T_o: int = LONGEST,
        decided: Any = NOTHING,
    ) -> Any:
        fresh = np.array([reset])
        return self.session.act([0], [frames], [executed], fresh, T_o, [self.rng], [skipped], [decided])[0]


@pytest.fixture
def own(policy: Policy) -> Own:
    return Own(policy)


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    """Return an episode's frames, without its actions."""
    found = play(11)
    del found["action"]
    return found


def frame(rows: dict[str, Any], step: int) -> dict[str, Any]:
    """Return one frame, as a plain client sends it."""
    return {key: frames[step] for key, frames in rows.items()}


def cut(rows: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Return consecutive frames."""
    return {key: frames[start:stop] for key, frames in rows.items()}


def same(answer: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)


def client(url: str, key: str | None = None) -> WebsocketClientPolicy:
    return WebsocketClientPolicy(url, api_key=key)


@pytest.mark.parametrize("between", [1, 3, 4])
def test_a_plain_client_acts_with_history(serve: Serve, own: Own, rows: dict[str, Any], between: int) -> None:
    """The frames between two calls are masked; what was sent counts as executed."""
    plain = client(f"{serve().url}?steps_per_call={between}")
    about = plain.get_server_metadata()
    assert (about["steps_per_call"], about["actions_per_call"], about["T_o"]) == (between, 4, LONGEST)
    assert (about["policy_version"], about["task"]) == (7, "return_point")
    assert about["observation"].keys() == rows.keys()
    sent = own.act(cut(rows, 0, 1), reset=True)
    same(plain.infer(frame(rows, 0)), sent)
    for step in range(between, 5 * between, between):
        sent = own.act(cut(rows, step, step + 1), sent[:between], skipped=between - 1)
        answer = plain.infer(frame(rows, step))
        same(answer, sent)
        assert answer["steps"] == step + 1
        assert 0 < answer["server_timing"]["infer_ms"] < 60_000


def test_without_a_number_of_steps_a_call_is_a_chunk(serve: Serve) -> None:
    assert client(serve().url).get_server_metadata()["steps_per_call"] == 4


def test_frames_and_executed_actions_complete_the_memory(
    serve: Serve, own: Own, rows: dict[str, Any]
) -> None:
    robot, rng = client(serve().url), np.random.default_rng(0)
    same(robot.infer({"frames": cut(rows, 0, 1), "T_o": 5}), own.act(cut(rows, 0, 1), reset=True, T_o=5))
    executed = rng.normal(size=(4, 2)).astype(np.float32)
    answer = robot.infer({"frames": cut(rows, 1, 5), "executed": executed})
    same(answer, own.act(cut(rows, 1, 5), executed))
    # Three frames are lost, and with them what was executed in between.
    answer = robot.infer({"frames": cut(rows, 8, 10), "executed": executed[:1], "skipped": 3, "T_o": 12})
    same(answer, own.act(cut(rows, 8, 10), executed[:1], skipped=3, T_o=12))
    assert answer["steps"] == 10
    with pytest.raises(
        RuntimeError, match=r"0 executed actions do not fit 6 new frames.* which 6 were executed"
    ):
        robot.infer({"frames": cut(rows, 10, 16), "executed": executed[:0]})
    # An error has changed nothing.
    answer = robot.infer({"frames": cut(rows, 10, 12), "executed": executed[2:]})
    same(answer, own.act(cut(rows, 10, 12), executed[2:]))


def test_a_key_begins_an_episode(serve: Serve, rows: dict[str, Any]) -> None:
    robot = client(f"{serve().url}?steps_per_call=1")
    for step in range(3):
        answer = robot.infer(frame(rows, step) | {"reset": step == 2})
    assert answer["steps"] == 1
    # An outcome ends the episode, so the next call begins one.
    assert robot.infer(frame(rows, 3) | {"outcome": "success"})["steps"] == 2
    assert robot.infer(frame(rows, 4))["steps"] == 1


def test_a_pause_begins_an_episode(serve: Serve, rows: dict[str, Any]) -> None:
    robot = client(f"{serve().url}?steps_per_call=1&idle_reset=0.5")
    assert [robot.infer(frame(rows, step))["steps"] for step in range(2)] == [1, 2]
    time.sleep(0.6)
    assert robot.infer(frame(rows, 2))["steps"] == 1


def test_a_robot_that_sends_all_goes_on_after_a_pause(serve: Serve, own: Own, rows: dict[str, Any]) -> None:
    """Each call has as many actions as frames, because the robot knows nothing of the new episode."""
    robot, rng = client(f"{serve().url}?idle_reset=1e-9"), np.random.default_rng(0)
    executed = rng.normal(size=(4, 2)).astype(np.float32)
    for _ in range(2):
        call = {"frames": cut(rows, 1, 5), "executed": executed, "controller": np.array([2, 0, 0, 1])}
        answer = robot.infer(call)
        assert answer["steps"] == 4
        same(answer, own.act(cut(rows, 1, 5), executed[1:], reset=True))
    answer = robot.infer(frame(rows, 0) | {"executed": executed, "skipped": 3})
    assert answer["steps"] == 1
    same(answer, own.act(cut(rows, 0, 1), reset=True))


def test_a_connection_begins_an_episode_unless_it_brings_a_token(
    serve: Serve, own: Own, rows: dict[str, Any]
) -> None:
    url = serve().url
    first = client(url)
    same(first.infer({"frames": cut(rows, 0, 1)}), own.act(cut(rows, 0, 1), reset=True))
    token = first.get_server_metadata()["token"]
    first._ws.close()
    assert client(url).infer(frame(rows, 0))["steps"] == 1
    again = client(f"{url}?token={token}")
    about = again.get_server_metadata()
    assert (about["token"], about["steps"]) == (token, 1)
    executed = np.ones((2, 2), np.float32)
    answer = again.infer({"frames": cut(rows, 1, 3), "executed": executed})
    same(answer, own.act(cut(rows, 1, 3), executed))
    # Its old connection may seem to be open when it comes back.
    third = client(f"{url}?token={token}")
    assert third.get_server_metadata()["steps"] == 3
    with pytest.raises(ConnectionClosed, match="another connection came with this token"):
        again.infer(frame(rows, 3))
    assert third.infer({"frames": cut(rows, 3, 4), "executed": executed[:1]})["steps"] == 4


class Playback(Environment):
    """A robot that shows recorded frames, for two episodes of some steps."""

    def __init__(self, rows: dict[str, Any], steps: int) -> None:
        self.rows, self.steps, self.step = rows, steps, 0
        self.applied: list[list[Any]] = []

    def reset(self) -> None:
        self.step = 0
        self.applied.append([])

    def is_episode_complete(self) -> bool:
        return self.step >= self.steps

    def get_observation(self) -> dict[str, Any]:
        return frame(self.rows, self.step) | {"reset": self.step == 0}

    def apply_action(self, action: dict[str, Any]) -> None:
        self.applied[-1].append(action["actions"])
        self.step += 1


def test_the_runtime_of_openpi_plays_two_episodes(serve: Serve, own: Own, rows: dict[str, Any]) -> None:
    robot, steps = Playback(rows, 10), 10
    policy = client(serve().url)
    broker = ActionChunkBroker(policy, policy.get_server_metadata()["steps_per_call"])
    Runtime(robot, PolicyAgent(broker), [], num_episodes=2, max_episode_steps=steps).run()
    assert [len(actions) for actions in robot.applied] == [10, 10, 0]
    for actions in robot.applied[:2]:
        sent = own.act(cut(rows, 0, 1), reset=True)
        for step in range(steps):
            if step and step % 4 == 0:
                sent = own.act(cut(rows, step, step + 1), sent, skipped=3)
            np.testing.assert_allclose(actions[step], sent[step % 4], atol=1e-5)


class Paper:
    """The robot of docs/serve.md, which shows recorded frames."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.rows, self.executed = rows, []

    def observe(self) -> dict[str, Any]:
        return frame(self.rows, len(self.executed))

    def step(self, action: Any) -> Any:
        self.executed.append(action)
        return action

    def done(self) -> bool:
        return len(self.executed) >= 12


def test_the_loops_of_the_page_work(serve: Serve, own: Own, rows: dict[str, Any]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
    memory, plain, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    url = serve(key="...").url
    first, second = Paper(rows), Paper(rows)
    names: dict[str, Any] = {"robot": first}
    exec(memory.replace("ws://gpu-machine:8000", url), names)
    sent = own.act(cut(rows, 0, 1), reset=True)
    for step in range(12):
        if step and step % 4 == 0:
            sent = own.act(cut(rows, step - 3, step + 1), sent)
        np.testing.assert_allclose(first.executed[step], sent[step % 4], atol=1e-5)
    exec(plain.replace("ws://gpu-machine:8000", url), names | {"robot": second})
    np.testing.assert_allclose(second.executed[:4], first.executed[:4], atol=1e-5)
    assert len(second.executed) == 12


def test_tls_and_a_key(
    serve: Serve, rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    server = serve(tls=tls, key="open sesame")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    url = f"wss://localhost:{server.port}"
    assert client(url, "open sesame").infer(frame(rows, 0))["actions"].shape == (4, 2)
    for wrong in ("open", "Open sesame", None, "öffne dich"):
        headers = {} if wrong is None else {"Authorization": f"Api-Key {wrong}".encode().decode("latin-1")}
        with pytest.raises(InvalidStatus, match="HTTP 401") as refused:
            connect(url, additional_headers=headers, open_timeout=120)
        assert b"sesame" not in (refused.value.response.body or b"")
    headers = {"Authorization": "Api-Key open sesame"}
    with pytest.raises(InvalidStatus, match="HTTP 403"):
        connect(url, origin="https://localhost", additional_headers=headers, open_timeout=120)
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    health = urllib.request.urlopen(f"https://localhost:{server.port}/healthz", context=context)
    assert health.read() == b"OK\n"
    plain = socket.create_connection(("localhost", server.port))
    with context.wrap_socket(plain, server_hostname="localhost") as secure:
        secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert secure.recv(1024).startswith(b"HTTP/1.1 200")
        assert not (secure.session and secure.session.has_ticket)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("steps_per_call=5", "steps_per_call must lie in 1..4"),
        ("steps_per_call=0", "steps_per_call must lie in 1..4"),
        ("steps_per_call=x", "are numbers"),
        ("idle_reset=0", "idle_reset must be a positive number"),
        ("idle_reset=nan", "idle_reset must be a positive number"),
        ("step_per_call=1", "takes steps_per_call, delay, idle_reset, token and adapter, not step_per_call"),
        ("delay=1", "delay must lie in 0..0, for which the policy was trained, not 1"),
        ("delay=x", "are numbers"),
    ],
)
def test_terms_that_make_no_sense_are_refused(serve: Serve, query: str, message: str) -> None:
    with pytest.raises(InvalidStatus, match="HTTP 400") as refused:
        client(f"{serve().url}?{query}")
    assert message in (refused.value.response.body or b"").decode()


def test_what_is_not_right_is_answered(serve: Serve, rows: dict[str, Any]) -> None:
    server = serve(message_bytes=1 << 16)
    robot = client(f"{server.url}?steps_per_call=1")
    good = frame(rows, 0)
    name = next(iter(good))
    assert robot.infer(good)["steps"] == 1
    with pytest.raises(RuntimeError, match=f"observation {name} is missing; the call holds none"):
        robot.infer({})
    with pytest.raises(RuntimeError, match=rf"observation {name} is float64\[99\], expected float32\["):
        robot.infer(good | {name: np.zeros(99)})
    robot._ws.send("hello")
    assert robot._ws.recv() == "a call is a binary frame with msgpack, not a text frame"
    robot._ws.send(b"\xc1")
    assert str(robot._ws.recv()).startswith("not msgpack")
    assert robot.infer(good)["steps"] == 2
    with pytest.raises(ConnectionClosed, match="1009"):
        robot.infer({"padding": np.zeros(1 << 16, np.uint8)})
    assert client(server.url).infer(good)["steps"] == 1


VALUES = st.sampled_from([
    *(None, True, -1, 2**64 - 1, 0.5, float("nan"), "success", [], {}, {"position": 1}),
    *(np.zeros((2, 2)), np.zeros(2, np.float32), np.zeros((0, 2)), np.full((1, 2), np.nan), np.ones(1, bool)),
])  # fmt: skip
"""Values that a key may have, right ones and wrong ones."""


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_is_answered(endless: Any, rows: dict[str, Any], data: st.DataObject) -> None:
    """Whatever is sent, an answer comes, and the next right call is answered with actions."""
    keys = [*rows, "frames", "executed", "skipped", "controller", "T_o", "delay", "reset", "outcome"]
    changed = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, max_size=3))
    message = data.draw(
        st.just(msgpack_numpy.packb(frame(rows, 0) | changed)) | st.binary(max_size=50) | st.text(max_size=9)
    )
    endless.send(message)
    answer = endless.recv(timeout=20)
    assert answer if isinstance(answer, str) else msgpack_numpy.unpackb(answer)["actions"].shape == (4, 2)
    endless.send(msgpack_numpy.packb(frame(rows, 0) | {"reset": True}))
    assert msgpack_numpy.unpackb(endless.recv(timeout=20))["steps"] == 1


@pytest.fixture
def endless(serve: Serve) -> Iterator[Any]:
    """Return a connection that has received its metadata."""
    with connect(serve(calls_per_second=1e6).url) as connection:
        assert msgpack.unpackb(connection.recv())["server"] == "longview"
        yield connection


@pytest.fixture(scope="module")
def camera(episodes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """Return a policy that sees pictures, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("camera")
    policy = make_policy([with_pictures(each) for each in episodes], seed=3, spec=CAMERA)
    write_checkpoint(folder, policy, 7)
    return policy, folder


@pytest.fixture
def seeing(camera: tuple[Policy, Path]) -> Iterator[Serve]:
    """Return a function that starts a server of a policy with a camera, which resizes pictures."""
    with ExitStack() as servers:

        def start(**settings: Any) -> Served:
            server = Served(camera[1], resize=True, **settings)
            servers.callback(server.stop)
            return server

        yield start


PICTURES = st.tuples(
    st.sampled_from(["u1", "<f4", "<f8", "?", "<i8", ">u2"]),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 17, 40, 44]), max_size=5).filter(
        lambda shape: np.prod(shape) <= 40 * 44 * 4  # so that 100 of them fit into a message
    ),
).map(lambda drawn: np.zeros(drawn[1], drawn[0]))
"""Arrays that may be pictures, of any size, and arrays that are none."""


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_with_pictures_is_answered(
    watching: Any, rows: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever pictures are sent, the answer is actions or says what is wrong with them."""
    front, count = data.draw(PICTURES), data.draw(st.none() | st.integers(0, 100))
    if count is None:
        message = frame(rows, 0) | {"front": front}
    else:
        position = np.zeros((count, 2), np.float32)
        message = {"frames": {"position": position, "front": np.zeros((count, *front.shape), front.dtype)}}
    watching.send(msgpack_numpy.packb(message | {"reset": True}))
    answer = watching.recv(timeout=60)
    if isinstance(answer, str):
        assert "frames" in answer or "front" in answer
    else:
        assert msgpack_numpy.unpackb(answer)["actions"].shape == (4, 2)


@pytest.fixture
def watching(seeing: Serve) -> Iterator[Any]:
    """Return a connection to a policy with a camera, that has received its metadata."""
    with connect(seeing(calls_per_second=1e6).url) as connection:
        assert msgpack.unpackb(connection.recv())["server"] == "longview"
        yield connection


def test_more_frames_than_any_context_are_counted_and_decided_for(
    camera: tuple[Policy, Path], seeing: Serve
) -> None:
    own, robot, rng = Own(camera[0]), client(seeing().url), np.random.default_rng(0)
    count = LONGEST + 40
    frames = {
        "position": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "front": np.repeat(rng.integers(0, 256, (count, 1, 1, 3), np.uint8), 4, axis=1),
    }
    executed = rng.normal(size=(count, 2)).astype(np.float32)
    shown = frames | {"front": as_rgb("", frames["front"], "HWC", (44, 40))}
    answer = robot.infer({"frames": frames, "executed": executed[1:]})
    assert answer["steps"] == count
    same(answer, own.act(shown, executed[1:], reset=True))
    answer = robot.infer({"frames": frames, "executed": executed, "T_o": 3})
    assert answer["steps"] == 2 * count
    same(answer, own.act(shown, executed, T_o=3))
    answer = robot.infer({"frames": frames, "executed": executed[1:], "skipped": 5})
    assert answer["steps"] == 3 * count + 5
    same(answer, own.act(shown, executed[1:], skipped=5))


class HeldNames(dict[str, str]):
    """Names of observations, which are looked up when a call is converted: a call can be held there."""

    def __init__(self) -> None:
        super().__init__()
        self.hold, self.converting, self.go_on = False, threading.Event(), threading.Event()

    def items(self) -> Any:
        if self.hold:
            self.hold = False
            self.converting.set()
            self.go_on.wait()
        return super().items()


def test_a_call_that_is_converted_makes_no_other_robot_wait(serve: Serve, rows: dict[str, Any]) -> None:
    names = HeldNames()
    url = serve(names=names).url
    with connect(url) as first, connect(url) as second:
        for robot in (first, second):
            robot.recv(timeout=60)
        try:
            names.hold = True
            first.send(msgpack_numpy.packb(frame(rows, 0)))
            assert names.converting.wait(60)
            second.send(msgpack_numpy.packb(frame(rows, 0)))
            assert msgpack_numpy.unpackb(second.recv(timeout=20))["steps"] == 1
        finally:
            names.go_on.set()
        assert msgpack_numpy.unpackb(first.recv(timeout=60))["steps"] == 1


def test_calls_are_answered_within_a_bound(serve: Serve, rows: dict[str, Any]) -> None:
    """A robot whose answer comes too late goes on, with the history that it has told of."""
    robot = client(f"{serve(answer_seconds=1e-4).url}?steps_per_call=1")
    for step in range(3):
        with pytest.raises(RuntimeError, match=r"no decision within 0\.0001 s"):
            robot.infer(frame(rows, step))
    token = robot.get_server_metadata()["token"]

    def steps() -> int:
        again = eventually(lambda: client(f"{robot._uri}&token={token}"))
        return int(again.get_server_metadata()["steps"])

    deadline = time.monotonic() + 20
    while steps() < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert steps() == 3


def test_connections_are_answered_within_a_bound(serve: Serve, rows: dict[str, Any]) -> None:
    """A robot that comes back while its last call is worked on is told so, and can come back later."""
    names = HeldNames()
    url = serve(names=names, answer_seconds=0.1).url
    robot = client(url)
    again = f"{url}?token={robot.get_server_metadata()['token']}"
    try:
        names.hold = True
        with pytest.raises(RuntimeError, match=r"no decision within 0\.1 s"):
            robot.infer(frame(rows, 0))
        with pytest.raises(ConnectionClosed, match=r"1013 .* last call is still worked on after 0\.1 s"):
            client(again)
    finally:
        names.go_on.set()
    assert eventually(lambda: client(again)).get_server_metadata()["steps"] == 1


def test_calls_that_come_too_fast_wait(serve: Serve, rows: dict[str, Any]) -> None:
    robot, started = client(serve(calls_per_second=10).url), time.monotonic()
    for _ in range(4):
        robot.infer(frame(rows, 0))
    assert time.monotonic() - started > 0.29


def test_many_robots_are_decided_for_in_one_batch(
    serve: Serve, policy: Policy, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A batch waits until all have asked, however slow the machine is.
    monkeypatch.setattr(deciding, "WAIT_SECONDS", 60.0)
    robots, steps = 6, 5
    server = serve(robots=robots)

    def act(robot: int) -> list[Any]:
        connection, found = client(f"{server.url}?steps_per_call=1"), []
        for step in range(steps):
            found.append(connection.infer(frame(rows, steps * robot + step))["actions"])
        return found

    with ThreadPoolExecutor(robots) as threads:
        answers = list(threads.map(act, range(robots)))
    for robot, found in enumerate(answers):
        own, sent = Own(policy), NOTHING
        for step, actions in enumerate(found):
            at = steps * robot + step
            sent = own.act(cut(rows, at, at + 1), sent[:1], reset=not step)
            np.testing.assert_allclose(actions, sent, atol=1e-5)
    (batches,) = server.metrics.batch_size.collect()
    values = {sample.name.rpartition("_")[2]: sample.value for sample in batches.samples}
    assert values["sum"] == steps * robots
    assert values["count"] == steps


def test_a_robot_without_a_place_is_told(serve: Serve, rows: dict[str, Any]) -> None:
    server = serve(robots=1)
    first = client(server.url)
    with pytest.raises(ConnectionClosed, match="all 1 places are taken"):
        client(server.url)
    first._ws.close()
    second = eventually(lambda: client(server.url))
    assert second.infer(frame(rows, 0))["steps"] == 1


def test_a_robot_that_stays_away_loses_its_place(serve: Serve, rows: dict[str, Any]) -> None:
    server = serve(keep_seconds=0.1)
    robot = client(server.url)
    robot.infer(frame(rows, 0))
    token = robot.get_server_metadata()["token"]
    robot._ws.close()
    time.sleep(2.5)
    assert client(f"{server.url}?token={token}").get_server_metadata()["steps"] == 0


def eventually(attempt: Callable[[], Any]) -> Any:
    """Try again until it succeeds: a server learns of a closed connection a little later."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(ConnectionClosed):
            return attempt()
        time.sleep(0.05)
    return attempt()


def test_newer_weights_act_in_the_next_episode(
    serve: Serve, checkpoints: Path, episodes: Any, rows: dict[str, Any]
) -> None:
    server = serve()
    robot = client(f"{server.url}?steps_per_call=1")
    assert robot.infer(frame(rows, 0))["policy_version"] == 7
    newer = make_policy(episodes, seed=1)
    write_checkpoint(checkpoints, newer, 9)
    eventually_true(lambda: client(server.url).get_server_metadata()["policy_version"] == 9)
    assert robot.infer(frame(rows, 1))["policy_version"] == 7, "the episode goes on with its weights"
    answer = client(server.url).infer(frame(rows, 0))
    assert answer["policy_version"] == 9
    same(answer, Own(newer).act(cut(rows, 0, 1), reset=True))
    assert robot.infer(frame(rows, 2) | {"reset": True})["policy_version"] == 9
    # A damaged file changes nothing.
    (checkpoints / "step-000000011").mkdir()
    (checkpoints / "step-000000011" / "policy.safetensors").write_bytes(b"no policy")
    time.sleep(1.5)
    assert robot.infer(frame(rows, 2) | {"reset": True})["policy_version"] == 9


def eventually_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_adapters_of_one_policy_act_side_by_side(
    serve: Serve, policy: Policy, rows: dict[str, Any], tmp_path: Path
) -> None:
    """Robots that ask at the same moment, each for its own adapter, are not mixed up."""
    files = {name: tmp_path / f"{name}.safetensors" for name in ("left", "right")}
    policies = {"": policy} | {
        name: write_adapter(file, policy, seed) for seed, (name, file) in enumerate(files.items())
    }
    server = serve(adapters=files)
    ready = threading.Barrier(len(policies))

    def act(name: str) -> list[Any]:
        connection = client(f"{server.url}?steps_per_call=1" + (f"&adapter={name}" if name else ""))
        about = connection.get_server_metadata()
        assert (about["adapter"], about["adapters"]) == (name, ["left", "right"])
        found = []
        for step in range(5):
            ready.wait()
            found.append(connection.infer(frame(rows, step)))
        return found

    with ThreadPoolExecutor(len(policies)) as threads:
        answers = dict(zip(policies, threads.map(act, policies), strict=True))
    for name, found in answers.items():
        own, sent = Own(policies[name]), NOTHING
        for step, answer in enumerate(found):
            sent = own.act(cut(rows, step, step + 1), sent[:1], reset=not step)
            same(answer, sent)
    first = [found[0]["actions"] for found in answers.values()]
    assert not np.allclose(first[0], first[1], atol=1e-2)
    assert not np.allclose(first[1], first[2], atol=1e-2)
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.url}?adapter=middle")
    assert refused.value.response.body == b"there is no adapter middle; there are: left, right\n"


def test_a_robot_goes_on_with_its_adapter(
    serve: Serve, policy: Policy, rows: dict[str, Any], tmp_path: Path
) -> None:
    """A token goes on with the episode; the next one is acted in by what the new connection asks for."""
    left = write_adapter(tmp_path / "left.safetensors", policy, 0)
    server = serve(adapters={"left": tmp_path / "left.safetensors"})
    robot = client(f"{server.url}?steps_per_call=1&adapter=left")
    own, token = Own(left), robot.get_server_metadata()["token"]
    sent = own.act(cut(rows, 0, 1), reset=True)
    same(robot.infer(frame(rows, 0)), sent)
    robot = client(f"{server.url}?steps_per_call=1&token={token}")
    same(robot.infer(frame(rows, 1)), own.act(cut(rows, 1, 2), sent[:1]))
    base = Own(policy)
    base.rng = own.rng
    same(robot.infer(frame(rows, 2) | {"reset": True}), base.act(cut(rows, 2, 3), reset=True))


def test_newer_adapters_act_in_the_next_episode(
    serve: Serve, policy: Policy, rows: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "left"
    for step in (3, 5):
        (folder / f"step-{step:09d}").mkdir(parents=True)
    write_adapter(folder / "step-000000003" / "adapter.safetensors", policy, 3)
    server = serve(adapters={"left": folder})
    url = f"{server.url}?adapter=left"
    assert client(url).get_server_metadata()["policy_version"] == 3
    newer = write_adapter(folder / "unfinished", policy, 5)
    (folder / "unfinished").rename(folder / "step-000000005" / "adapter.safetensors")
    eventually_true(lambda: client(url).get_server_metadata()["policy_version"] == 5)
    same(client(url).infer(frame(rows, 0)), Own(newer).act(cut(rows, 0, 1), reset=True))
    assert client(server.url).get_server_metadata()["policy_version"] == 7
    assert server.metrics.version.labels("left")._value.get() == 5


def test_overlapping_decisions_are_averaged_on_request(serve: Serve, own: Own, rows: dict[str, Any]) -> None:
    robot = client(f"{serve(ensemble=0.1).url}?steps_per_call=1")
    chunks: list[Any] = []
    sent = NOTHING
    for step in range(8):
        decided = own.act(cut(rows, step, step + 1), sent[:1], reset=not step)
        chunks = [*chunks, (step, decided)][-4:]
        sent = ensembled(chunks, step, 0.1)
        same(robot.infer(frame(rows, step)), sent)


@pytest.fixture
def continuing(episodes: Any, tmp_path: Path) -> Iterator[tuple[Own, Callable[..., str]]]:
    """Return a session of a policy that continues up to two actions, and a function that serves it."""
    policy = make_policy(episodes, seed=2, max_delay=2)
    write_checkpoint(tmp_path / "continuing", policy, 3)
    with ExitStack() as servers:

        def start(**settings: Any) -> str:
            server = Served(tmp_path / "continuing", **settings)
            servers.callback(server.stop)
            return server.url

        yield Own(policy), start


def test_answers_continue_the_actions_under_way(
    continuing: tuple[Own, Callable[..., str]], rows: dict[str, Any]
) -> None:
    own, serve = continuing
    robot = client(f"{serve()}?delay=2")
    about = robot.get_server_metadata()
    assert (about["max_delay"], about["delay"], about["steps_per_call"]) == (2, 2, 2)
    sent = own.act(cut(rows, 0, 1), reset=True)
    same(robot.infer(frame(rows, 0)), sent)  # nothing is under way yet
    for step in (2, 4, 6):
        under_way = sent[2:]
        sent = own.act(cut(rows, step, step + 1), sent[:2], skipped=1, decided=under_way)
        answer = robot.infer(frame(rows, step))
        same(answer, sent)
        assert (sent[:2] == under_way).all()
    # A call may say another number, and all that memory needs.
    call = {"frames": cut(rows, 7, 10), "executed": sent[:3], "delay": 1}
    expected = own.act(cut(rows, 7, 10), sent[:3], decided=sent[3:])
    same(robot.infer(call), expected)
    assert np.abs(expected[1:] - sent[3:]).max() > 1e-3
    with pytest.raises(
        RuntimeError, match=r"delay 2 needs .* and 1 of the 4 that were sent are left after 3"
    ):
        robot.infer({"frames": cut(rows, 10, 13), "executed": sent[:3]})
    with pytest.raises(RuntimeError, match=r"delay is a whole number in 0\.\.2, not 3"):
        robot.infer({"frames": cut(rows, 10, 11), "executed": sent[:1], "delay": 3})
    with pytest.raises(InvalidStatus, match="HTTP 400"):
        client(f"{serve()}?delay=2&steps_per_call=3")
    # An error has changed nothing, and a new episode has nothing under way.
    answer = robot.infer(frame(rows, 0) | {"reset": True})
    same(answer, own.act(cut(rows, 0, 1), reset=True))


def test_the_loop_with_a_delay_works(
    continuing: tuple[Own, Callable[..., str]], rows: dict[str, Any]
) -> None:
    own, serve = continuing
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
    *_, loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    policy, robot = client(serve()), Paper(rows)
    exec(loop, {"np": np, "policy": policy, "about": policy.get_server_metadata(), "robot": robot})
    sent = own.act(cut(rows, 0, 1), reset=True)
    for step in range(12):
        if step and step % 2 == 0:
            sent = own.act(cut(rows, step - 1, step + 1), sent[:2], decided=sent[2:])
        np.testing.assert_allclose(robot.executed[step], sent[step % 2], atol=1e-5)


def test_averaged_decisions_leave_the_actions_under_way(
    continuing: tuple[Own, Callable[..., str]], rows: dict[str, Any]
) -> None:
    _, serve = continuing
    robot = client(f"{serve(ensemble=0.1)}?delay=1&steps_per_call=1")
    sent = robot.infer(frame(rows, 0))["actions"]
    for step in range(1, 5):
        answer = robot.infer(frame(rows, step))["actions"]
        np.testing.assert_array_equal(answer[0], sent[1])
        assert np.abs(answer[1] - sent[2]).max() > 1e-5
        sent = answer


def test_metrics_are_served(serve: Serve, rows: dict[str, Any]) -> None:
    server = serve()
    robot = client(server.url)
    robot.infer(frame(rows, 0))
    with pytest.raises(RuntimeError):
        robot.infer({})
    port = server.metrics.serve(0, "127.0.0.1")
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    for line in (
        'longview_serving_calls_total{answer="actions"} 1.0',
        'longview_serving_calls_total{answer="error"} 1.0',
        "longview_serving_connections 1.0",
        "longview_serving_batch_size_count 1.0",
        "longview_serving_decision_seconds_count 1.0",
        'longview_serving_policy_version{adapter=""} 7.0',
    ):
        assert line in page
    with pytest.raises(OSError, match="choose another port, or 0"):
        server.metrics.serve(port, "127.0.0.1")
