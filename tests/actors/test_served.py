"""Policies that a server holds: what is sent to it, and what is sent again to a server that has lost it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.served import ServedPolicy

EXECUTE = 3


class Server:
    """A server that loses what it knows before some requests, and then answers None.

    Each simulator's frames are 0, 1, 2, ... and the action after frame n is n, so any gap or repeat shows.
    """

    def __init__(self, loses: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.loses, self.requests = loses, list[dict[str, Any]]()
        self.known: dict[int, list[float]] = {}

    def send(self, **request: Any) -> Callable[[], NDArray[np.float32] | None]:
        if len(self.requests) in self.loses:
            self.known = {}
        self.requests.append(request)
        answer = self._answer(**request)
        return lambda: answer

    def _answer(
        self,
        T_o: int,
        slots: Any,
        reset: Any,
        steps: Any,
        counts: Any,
        frames: Any,
        executed: Any,
        noise: Any,
        decided: Any,
    ) -> NDArray[np.float32] | None:
        assert len(executed) == counts.sum() - reset.sum()
        frames, executed = frames["count"][:, 0].tolist(), executed[:, 0].tolist()
        for slot, fresh, before, count in zip(slots, reset, steps, counts, strict=True):
            new, frames = frames[:count], frames[count:]
            actions, executed = executed[: count - fresh], executed[count - fresh :]
            assert new == list(range(before, before + count))
            assert actions == list(range(before - 1 + fresh, before + count - 1))
            if fresh:
                self.known[slot] = new
            elif slot in self.known:
                self.known[slot] += new
            else:
                return None
            assert len(self.known[slot]) >= min(T_o, before + count), "the whole context is there"
        return np.array([[state["state"]["state"] % 1000] * EXECUTE for state in noise], np.float32)[
            ..., None
        ]


class Player:
    """The simulators of an actor, which ask a policy for decisions."""

    def __init__(self, server: Server) -> None:
        self.policy, self.step = ServedPolicy(EXECUTE, 2, server.send), dict[int, int]()

    def ask(
        self, slots: list[int], reset: list[bool], T_o: int, **told: Any
    ) -> Callable[[], NDArray[np.float32]]:
        frames, executed = [], []
        for slot, fresh in zip(slots, reset, strict=True):
            first = 0 if fresh else self.step[slot]
            self.step[slot] = first + (1 if fresh else EXECUTE)
            frames.append({"count": np.arange(first, self.step[slot], dtype=np.float32)[:, None]})
            executed.append(np.arange(max(0, first - 1), self.step[slot] - 1, dtype=np.float32)[:, None])
        rngs = [np.random.default_rng(slot) for slot in slots]
        return self.policy.ask(slots, frames, executed, np.array(reset), T_o, rngs, **told)


@pytest.mark.parametrize("T_o", [1, 2, 4, 7, 100])
def test_a_server_that_loses_histories_gets_the_newest_frames_again(T_o: int) -> None:
    expected, server = Server(), Server(loses={1, 4, 7})
    for each in (expected, server):
        player = Player(each)
        actions = [player.ask([0, 2], [True, True], T_o)()]
        actions += [player.ask([0, 2], [False, fresh], T_o)() for fresh in (False, False, True, False, False)]
        each.actions = np.concatenate(actions)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(server.actions, expected.actions)  # type: ignore[attr-defined]
    assert len(expected.requests) == 6
    again = [request for request in server.requests[1:] if request["reset"].all()]
    assert len(again) == 3
    assert all(request["counts"].max() <= T_o for request in again)


def test_only_what_is_new_is_sent_while_the_server_knows_the_rest() -> None:
    server = Server()
    player = Player(server)
    player.ask([1], [True], 8)()
    for _ in range(5):
        player.ask([1], [False], 8)()
    assert [request["counts"].tolist() for request in server.requests] == [[1]] + 5 * [[EXECUTE]]


def test_what_is_decided_is_sent_and_sent_again() -> None:
    server = Server(loses={1})
    player, decided = Player(server), [np.ones((2, 1), np.float32)]
    player.ask([1], [True], 8)()
    player.ask([1], [False], 8, decided=decided)()
    assert [request["decided"] for request in server.requests] == [None, decided, decided]


def test_two_requests_can_be_under_way() -> None:
    server = Server()
    player = Player(server)
    waits = [player.ask([slot], [True], 4) for slot in (0, 1)]
    assert len(server.requests) == 2
    first, second = (wait() for wait in waits)
    assert first.shape == second.shape == (1, EXECUTE, 1)
