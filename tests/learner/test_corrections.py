"""Targets of episodes that a policy acted in: an expert took over or labelled, or the whole is imitated."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longview.actors.task import load_task
from longview.learner.config import Horizon
from longview.learner.policy import mean_loss
from longview.learner.windows import Batch, build, margin, nows
from longview.replay.episode import BY_EXPERT, BY_PERSON, BY_POLICY, NO_PLAN, Episode, Segment, learnable

HORIZON = Horizon(context=16, past=3, future=6, execute=4)
SPEC = load_task("counting").spec
OFFSETS = np.arange(-HORIZON.past, HORIZON.future)
Cut = Callable[[Episode, int, int, int], Segment]
Array = NDArray[Any]


@pytest.fixture
def long(counting: list[Episode]) -> Episode:
    """Return an episode of the counting task that a policy acted in, without labels."""
    episode = max(counting, key=lambda episode: episode.length)
    arrays = {name: array for name, array in episode.arrays.items() if name != "expert_action"}
    return replace(episode, arrays={**arrays, "controller": np.full(episode.length, BY_POLICY)})


def changed(episode: Episode, **arrays: Array) -> Episode:
    return replace(episode, arrays={**episode.arrays, **arrays})


def windows(segments: list[Segment], context_length: int = 16) -> Batch:
    now_GJ = np.array([[segment.now] for segment in segments])
    return build(segments, SPEC, HORIZON, context_length, now_GJ)


def whole(episode: Episode, now: int, stratum: str = "correction") -> Segment:
    return Segment(episode.meta, episode.length, 0, now, 1.0, episode.arrays, stratum)


@pytest.mark.parametrize("by", [BY_EXPERT, BY_PERSON])
def test_only_steps_of_an_expert_or_a_person_are_targets(long: Episode, by: Array) -> None:
    controller = np.full(long.length, BY_POLICY)
    controller[10:20] = by
    label = long.arrays["action"] + 1000
    place = np.where(controller == by, 0, NO_PLAN).astype(np.uint8)
    episode = changed(long, controller=controller, expert_action=label, plan_step=place)
    for now in range(10, 20):
        batch = windows([whole(episode, now)])
        steps = now + OFFSETS
        assert batch.target_BT[0].tolist() == [10 <= step < 20 for step in steps]
        assert batch.seen_BS.sum() == min(16, now + 1), "everything seen is context"
        past, future = (steps >= 10) & (OFFSETS < 0), (steps < 20) & (OFFSETS >= 0)
        assert (batch.action_BTA[0, past] == long.arrays["action"][steps[past]]).all()
        assert (batch.action_BTA[0, future] == label[steps[future]]).all()


def test_the_labels_of_a_plan_are_targets_of_the_window_that_decides_there(long: Episode) -> None:
    place = (np.arange(long.length) % 4).astype(np.uint8)
    place[[10, 11]] = NO_PLAN  # the plan of step 8 had two steps
    label = long.arrays["action"] + 1000
    episode = changed(long, expert_action=label, plan_step=place)
    assert np.flatnonzero(learnable(episode.arrays)).tolist() == list(range(0, long.length, 4))
    for now, steps in ((4, [4, 5, 6, 7]), (8, [8, 9]), (12, [12, 13, 14, 15])):
        batch = windows([whole(episode, now)])
        found = now + OFFSETS[batch.target_BT[0]]
        assert found.tolist() == steps
        assert (batch.action_BTA[0, batch.target_BT[0]] == label[steps]).all()


def test_labels_without_places_count_for_every_window(long: Episode) -> None:
    label = long.arrays["action"] + 1000
    batch = windows([whole(changed(long, expert_action=label), 7)])
    assert batch.target_BT.all()
    assert (batch.action_BTA[0, :3] == long.arrays["action"][4:7]).all()
    assert (batch.action_BTA[0, 3:] == label[7:13]).all()


@pytest.mark.parametrize(
    ("stratum", "imitated"),
    [
        ("rollout/success", True), ("correction/success/counting", True), ("*/success", True),
        ("rollout", False), ("rollout/failure", False), ("*", False), ("", False),
    ],
)  # fmt: skip
def test_a_success_to_imitate_is_a_target_throughout(long: Episode, stratum: str, imitated: bool) -> None:
    batch = windows([whole(long, 8, stratum)])
    assert batch.target_BT.all() == batch.target_BT.any() == imitated
    assert (batch.action_BTA[0] == long.arrays["action"][8 + OFFSETS]).all()


def test_executed_actions_are_imitated_and_not_the_plans_of_an_expert(long: Episode) -> None:
    """The first steps of a plan and what was executed after them would make no plan."""
    place = (np.arange(long.length) % 4).astype(np.uint8)
    label = long.arrays["action"] + 1000
    episode = changed(long, expert_action=label, plan_step=place)
    batch = windows([whole(episode, 9, "correction/success"), whole(episode, 8, "correction/success")])
    assert batch.target_BT.all()
    for window, now in enumerate((9, 8)):
        assert (batch.action_BTA[window] == long.arrays["action"][now + OFFSETS]).all()


def test_all_windows_of_a_segment_decide_where_there_is_something_to_learn(long: Episode, cut: Cut) -> None:
    controller = np.full(long.length, BY_POLICY)
    controller[14:18] = BY_EXPERT
    segment = cut(changed(long, controller=controller), 15, 15 + margin(4), HORIZON.after + margin(4))
    found = np.concatenate([nows([segment], 4, np.random.default_rng(seed)) for seed in range(50)])
    assert (found[:, 0] == 15).all()
    assert set(found.flat) == {14, 15, 16, 17}
    plain = replace(segment, arrays={**segment.arrays, "controller": np.full_like(controller, BY_EXPERT)})
    others = np.concatenate([nows([plain], 4, np.random.default_rng(seed)) for seed in range(50)])
    assert (found == np.where((others >= 14) & (others < 18), others, 15)).all()
    imitated = replace(segment, stratum="rollout/success")
    again = np.concatenate([nows([imitated], 4, np.random.default_rng(seed)) for seed in range(50)])
    assert (again == others).all()


def test_a_window_without_targets_does_not_count() -> None:
    error = torch.tensor([[2.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = mean_loss(error, torch.tensor([[True, True], [False, False]]))
    assert loss.item() == 1.5
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(error.grad).all()  # type: ignore[arg-type]
