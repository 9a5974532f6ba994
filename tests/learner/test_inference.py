"""Batches of requests, and servers that decide for several clients. Threads stand for the clients."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.learner import inference
from longview.learner.inference import Actions, Gatherer, PolicyServer, Request
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.replay.episode import Episode


def request(
    client: str, slots: int = 1, version: int = 0, T_o: int = 1, arrived: float | None = None
) -> Request:
    """Make a request of which only the kind and the size matter."""
    nothing = np.zeros(0)
    return Request(
        client=client,
        version=version,
        T_o=T_o,
        slots=range(slots),
        reset=nothing.astype(np.bool_),
        steps=nothing.astype(np.int64),
        counts=nothing.astype(np.int64),
        frames={},
        executed=nothing.astype(np.float32),
        noise=[],
        arrived=time.monotonic() if arrived is None else arrived,
    )


def test_a_full_batch_does_not_wait() -> None:
    gatherer, started = Gatherer(max_batch=4, wait_seconds=60), time.monotonic()
    for name in "abc":
        gatherer.put(request(name, slots=2))
    assert [each.client for each in gatherer.take()] == ["a", "b"]
    gatherer.put(request("d", slots=3))
    assert [each.client for each in gatherer.take()] == ["c"]
    gatherer.put(request("large", slots=9))
    assert [each.client for each in gatherer.take()] == ["d"]
    assert [each.client for each in gatherer.take()] == ["large"]
    assert time.monotonic() - started < 30


def test_a_request_waits_for_others_but_not_for_long() -> None:
    gatherer = Gatherer(max_batch=64, wait_seconds=0.5)
    late = threading.Timer(0.1, lambda: gatherer.put(request("late")))
    gatherer.put(request("early"))
    started = time.monotonic()
    late.start()
    assert [each.client for each in gatherer.take()] == ["early", "late"]
    assert 0.3 < time.monotonic() - started < 5
    # It has waited while the batch before was decided.
    gatherer.put(request("old", arrived=time.monotonic() - 1))
    started = time.monotonic()
    assert [each.client for each in gatherer.take()] == ["old"]
    assert time.monotonic() - started < 0.3


def test_versions_and_context_lengths_have_batches_of_their_own() -> None:
    gatherer = Gatherer(max_batch=64, wait_seconds=0)
    for name, version, T_o in (("a", 1, 8), ("b", 2, 8), ("c", 1, 4), ("d", 1, 8)):
        gatherer.put(request(name, version=version, T_o=T_o))
    assert [[each.client for each in gatherer.take()] for _ in range(3)] == [["a", "d"], ["b"], ["c"]]


class Client:
    """A client whose simulators play recorded episodes, some steps at a time."""

    def __init__(self, name: str, server: PolicyServer, episodes: list[Episode], version: int = 0) -> None:
        self.name, self.server, self.version, self.episodes, self.step = name, server, version, episodes, 0
        self.decisions = 0

    def parts(self, first: int, last: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Return each simulator's frames of steps `first` to `last`, and the actions before them."""
        arrays = [episode.arrays for episode in self.episodes]
        return (
            [each["observation.position"][first:last] for each in arrays],
            [each["action"][max(first - 1, 0) : last - 1] for each in arrays],
        )

    def rngs(self) -> list[np.random.Generator]:
        return [np.random.default_rng((slot, self.decisions)) for slot in range(len(self.episodes))]

    def ask(self, steps: int, T_o: int, history: int | None = None) -> Future[Actions | None]:
        """Make some steps and ask for a decision, with the arguments of `request`."""
        return self.server.ask(self.request(steps, T_o, history))

    def request(self, steps: int, T_o: int, history: int | None = None) -> Request:
        """Make some steps, and return the request for a decision.

        Args:
            steps: number of steps.
            T_o: context length.
            history: number of the newest frames to send after a reset; None sends the new ones.
        """
        first, self.step = self.step, self.step + steps
        self.decisions += 1
        fresh = history is not None or first == 0
        start = first if history is None else max(0, self.step - history)
        frames, executed = self.parts(start, self.step)
        if fresh:
            executed = [actions[len(actions) - (self.step - start - 1) :] for actions in executed]
        count = len(self.episodes)
        return Request(
            client=self.name,
            version=self.version,
            T_o=T_o,
            slots=range(count),
            reset=np.full(count, fresh),
            steps=np.full(count, start),
            counts=np.full(count, self.step - start),
            frames={"position": np.concatenate(frames)},
            executed=np.concatenate(executed),
            noise=[rng.bit_generator.state for rng in self.rngs()],
        )

    def alone(self, session: PolicySession, first: int, T_o: int) -> Actions:
        """Decide as in the last request, by a session of the client's own that was asked the same before."""
        frames, executed = self.parts(first, self.step)
        slots, fresh = range(len(frames)), np.full(len(frames), first == 0)
        return session.act(slots, [{"position": each} for each in frames], executed, fresh, T_o, self.rngs())


def answer(future: Future[Actions | None]) -> Actions:
    actions = future.result(timeout=60)
    assert actions is not None
    return actions


def assert_close(actions: Actions, expected: Actions) -> None:
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


@pytest.fixture
def batches() -> list[int]:
    """Simulators of each batch."""
    return []


def patient(policy: DiffusionPolicy, simulators: int) -> PolicyServer:
    """Start a server that waits until this many simulators ask."""
    server = PolicyServer(6, simulators, wait_seconds=60)
    server.load(0, lambda: policy)
    return server


@pytest.fixture
def server(policy: DiffusionPolicy, batches: list[int]) -> PolicyServer:
    server = PolicyServer(6, 64, wait_seconds=0.2, count=lambda simulators, waits: batches.append(simulators))
    server.load(0, lambda: policy)
    return server


def test_clients_in_threads_get_the_actions_of_a_session_of_their_own(
    policy: DiffusionPolicy, returning: list[Episode], server: PolicyServer, batches: list[int]
) -> None:
    clients = [Client(name, server, returning[2 * row : 2 * row + 2]) for row, name in enumerate("abc")]

    def play(client: Client) -> None:
        session = PolicySession(policy, 2)
        for steps, T_o in ((1, 4), (8, 4), (8, 4), (3, 8)):
            first = client.step
            assert_close(answer(client.ask(steps, T_o)), client.alone(session, first, T_o))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(play, clients))
    assert sum(batches) == 24
    assert max(batches) > 2, "requests of several clients are decided together"


def test_a_lost_history_is_asked_for_and_its_newest_frames_do(
    policy: DiffusionPolicy, returning: list[Episode], server: PolicyServer
) -> None:
    client, session = Client("a", server, returning[:2]), PolicySession(policy, 2)
    client.step = 1  # whatever was before, this server has not seen it
    assert client.ask(8, 4).result(timeout=60) is None
    client.step = 0
    for steps in (1, 8):
        first = client.step
        expected = answer(client.ask(steps, 4)), client.alone(session, first, 4)
        assert_close(*expected)
    # A request that the server has answered already does not fit: it must not be taken in twice.
    client.step -= 8
    assert client.ask(8, 4).result(timeout=60) is None
    client.step -= 8
    client.decisions -= 2
    assert_close(answer(client.ask(8, 4, history=4)), expected[1])
    first = client.step
    assert_close(answer(client.ask(8, 4)), client.alone(session, first, 4))


def test_more_simulators_than_expected_find_room(policy: DiffusionPolicy, returning: list[Episode]) -> None:
    server = PolicyServer(2, 64, wait_seconds=0)
    server.load(0, lambda: policy)
    first, second = (Client(name, server, returning[:2]) for name in "ab")
    answer(first.ask(1, 4))
    answer(second.ask(1, 4))
    assert first.ask(8, 4).result(timeout=60) is None, "the first histories had to go"
    assert second.ask(8, 4).result(timeout=60) is not None
    first.step -= 8
    assert answer(first.ask(8, 4, history=4)).shape[:2] == (2, policy.horizon.execute)


def test_versions_act_side_by_side_until_one_is_not_used(
    policy: DiffusionPolicy, returning: list[Episode], server: PolicyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, fetched = policy_from_bytes(policy_to_bytes(policy)), []
    for parameter in newer.parameters():
        parameter.data += 0.1

    def fetch() -> DiffusionPolicy:
        fetched.append(1)
        return newer  # type: ignore[return-value]

    clients = [Client("a", server, returning[:2], version) for version in (0, 1)]
    assert clients[1].ask(1, 4).result(timeout=60) is None, "version 1 is not loaded yet"
    clients[1].step = 0
    for _ in range(2):
        assert server.load(1, fetch) == policy.horizon
    assert len(fetched) == 1
    sessions = [PolicySession(each, 2) for each in (policy, newer)]
    asked = [
        (client.ask(1, 4), client.alone(session, 0, 4))
        for client, session in zip(clients, sessions, strict=True)
    ]
    for future, expected in asked:
        assert_close(answer(future), expected)
    monkeypatch.setattr(inference, "UNUSED_SECONDS", 0.0)
    server.load(2, lambda: policy)
    assert clients[0].ask(8, 4).result(timeout=60) is None


def test_an_error_reaches_those_who_asked_and_the_server_goes_on(
    returning: list[Episode], server: PolicyServer
) -> None:
    client = Client("a", server, returning[:2])
    with pytest.raises(ValueError, match="T_o must be in 1"):
        client.ask(1, 1000).result(timeout=60)
    client.step = 0
    answer(client.ask(1, 4))


def test_a_wrong_request_does_not_spoil_those_of_other_clients(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    server, session = patient(policy, 4), PolicySession(policy, 2)
    wrong, right = (Client(name, server, returning[2 * row : 2 * row + 2]) for row, name in enumerate("ab"))
    for steps in (1, 8):
        first, wrong.name = right.step, f"new at step {right.step}"
        wrong.step = 0
        request = wrong.request(steps, 4)
        refused = server.ask(replace(request, executed=np.zeros((5 * steps, 1), np.float32)))
        expected = answer(right.ask(steps, 4)), right.alone(session, first, 4)
        with pytest.raises(ValueError, match="executed actions"):
            refused.result(timeout=60)
        assert_close(*expected)


def test_a_client_that_asks_anew_is_answered_beside_its_earlier_request(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    server = patient(policy, 6)
    again, other = (Client(name, server, returning[2 * row : 2 * row + 2]) for row, name in enumerate("ab"))
    given_up = again.ask(1, 4)
    again.step = 0
    answers = again.ask(1, 4), other.ask(1, 4)
    assert given_up.result(timeout=60) is None
    for client, future in zip((again, other), answers, strict=True):
        assert_close(answer(future), client.alone(PolicySession(policy, 2), 0, 4))
