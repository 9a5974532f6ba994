"""The past of another episode, shown to a policy in place of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.config import ActorsConfig
from longview.actors.donors import Donor
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker

TASK = load_task("return_point")


class Drifting:
    """A policy whose actions follow from every number that it is shown, and from nothing else."""

    execute, max_delay = 4, 0

    def __init__(self) -> None:
        self.shown: list[NDArray[Any]] = []
        """States (n, ...) that each decision was told, oldest first."""

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, NDArray[Any]]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        shown = [np.concatenate([frames[key] for key in sorted(frames)], axis=1) for frames in new_frames]
        assert all(
            len(actions) == len(states) - fresh
            for states, actions, fresh in zip(shown, executed, reset, strict=True)
        )
        self.shown += shown
        chosen = [np.sin(37 * states.sum() + np.arange(self.execute)) for states in shown]
        shape = TASK.spec.action.shape
        return np.stack(chosen).astype(np.float32)[..., None] * np.ones(shape, np.float32)


def evaluated(simulators: int, *orders: Order) -> tuple[dict[int, str], Drifting]:
    policy = Drifting()
    worker = Worker(
        TASK, ActorsConfig(simulators=simulators), 7, "actor-0", None, lambda _: None, history="other"
    )
    endings: dict[int, str] = {}
    for order in orders:
        endings |= worker.work(order, policy).endings
    return endings, policy


def order(first: int, count: int) -> Order:
    return Order("evaluation", first, count, context_length=6, version=3)


def test_an_outcome_does_not_depend_on_simulators_and_orders() -> None:
    together, policy = evaluated(3, order(0, 5))
    one_by_one, alone = evaluated(1, *(order(index, 1) for index in (4, 2, 0, 1, 3)))
    assert together == one_by_one
    assert Counter(map(np.ndarray.tobytes, policy.shown)) == Counter(map(np.ndarray.tobytes, alone.shown))


def test_a_policy_is_shown_the_next_episode_up_to_the_present_step() -> None:
    _, policy = evaluated(1, order(0, 1))
    shown = policy.shown
    second = next(index for index, states in enumerate(shown) if index and len(states) == 1)
    donor, own = np.concatenate(shown[:second]), shown[second:]
    assert not np.array_equal(donor[0], own[0][0]), "the donor is another episode"
    for decision, states in enumerate(own):
        step = decision * policy.execute
        assert np.array_equal(states[:-1], donor[max(0, step - 5) : step])


@pytest.mark.parametrize(
    ("step", "T_o", "past"),
    [(0, 4, []), (2, 4, [0, 1]), (5, 4, [2, 3, 4]), (9, 4, [3, 4, 5]), (5, 1, [])],
)
def test_an_episode_that_has_ended_goes_on_showing_its_last_steps(
    step: int, T_o: int, past: list[int]
) -> None:
    donor = Donor()
    for count in range(6):
        now = np.full(1, count, np.float32)
        donor.append({"observation.count": now, "action": now + 0.5})
    shown = donor.past(step, T_o)
    assert [seen["count"].item() for seen, _ in shown] == past
    assert [action.item() for _, action in shown] == [count + 0.5 for count in past]
