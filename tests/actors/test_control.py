"""Take-overs, plans and their labels, in real simulators."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.config import CollectConfig
from longview.actors.control import (
    Control,
    Restorable,
    Takeover,
    distance,
    fault,
    needs_saving,
    plan,
    saving_fault,
)
from longview.actors.environment import SimulatedTask
from longview.actors.rollout import Assignment, Clock, EpisodeEnd, rollout
from longview.actors.task import Action, Environment, Expert, Task, load_task
from longview.actors.tasks.return_point import ReturnPoint
from longview.replay.episode import NO_PLAN, ArraySpec, EpisodeMeta

POINT = load_task("return_point")
EXECUTE = 4
Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Function of the present positions (B, 2) that returns one action for each, (B, 2)."""


class Notes:
    """A recorder that keeps its steps."""

    done = True

    def __init__(self, meta: EpisodeMeta) -> None:
        self.meta, self.steps = meta, list[dict[str, Any]]()

    def append(self, step: Mapping[str, Any]) -> None:
        self.steps.append(dict(step))

    def finish(self, outcome: str) -> "Notes":
        return self

    def result(self) -> bool:
        return True

    def abort(self) -> None:
        self.steps.clear()

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.stack([step[name] for step in self.steps])


class Repeats:
    """A policy that repeats one action for each decision. It keeps the history that it is told."""

    execute = EXECUTE

    def __init__(self, act: Act = np.zeros_like) -> None:
        self._act, self.decisions = act, 0
        self.frames: dict[int, list[NDArray[np.float32]]] = {}
        self.executed: dict[int, list[NDArray[np.float32]]] = {}

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, NDArray[Any]]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        *_: Any,
    ) -> NDArray[np.float32]:
        self.decisions += len(slots)
        for slot, frames, actions, fresh in zip(slots, new_frames, executed, reset, strict=True):
            if fresh:
                self.frames[slot], self.executed[slot] = [], []
            self.frames[slot] += list(frames["position"])
            self.executed[slot] += list(actions)
        now = np.stack([frames["position"][-1] for frames in new_frames])
        return np.repeat(self._act(now)[:, None], self.execute, axis=1)


def play(
    control: Control,
    policy: Repeats,
    collect: CollectConfig,
    *,
    episodes: int = 6,
    simulators: int = 1,
    typical_steps: float = 40.0,
    task: Task = POINT,
) -> tuple[list[EpisodeEnd], list[Notes], Clock]:
    todo = [
        Assignment(
            EpisodeMeta(f"correction.{seed}", task.spec.name, seed, "correction"),
            control,
            collect=collect,
            typical_steps=typical_steps,
        )
        for seed in range(episodes)
    ]
    notes, clock = list[Notes](), Clock()

    def record(meta: EpisodeMeta) -> Notes:
        notes.append(Notes(meta))
        return notes[-1]

    ends = rollout(
        task,
        [task.make() for _ in range(simulators)],
        todo,
        policy=policy,
        context_length=4,
        record=record,
        clock=clock,
    )
    return list(ends), notes, clock


def taken_over(note: Notes) -> int:
    """Return the first step that the expert made; the episode's length if it made none."""
    controller = note["controller"]
    assert (np.diff(controller.astype(int)) >= 0).all()
    return int((controller == 0).sum())


@pytest.mark.parametrize("first_part", [0.5, 1.0])
def test_the_random_gate_opens_uniformly_in_the_first_part_of_a_demonstration(first_part: float) -> None:
    settings = CollectConfig(kind="takeover", first_part=first_part)
    ends, notes, clock = play("takeover", Repeats(), settings, episodes=300, simulators=10)
    steps = np.array([taken_over(note) for note in notes])
    assert {end.outcome for end in ends} == {"success"}, "the expert goes on from wherever the policy was"
    assert steps.max() < 40 * first_part
    assert abs(np.bincount(steps // int(10 * first_part), minlength=4) - 75).max() < 40
    assert clock.expert_steps == sum(len(note.steps) - taken_over(note) for note in notes)
    _, others, _ = play("takeover", Repeats(), settings, episodes=300, simulators=3)
    by_seed = {note.meta.seed: taken_over(note) for note in others}
    assert by_seed == {note.meta.seed: taken_over(note) for note in notes}, "it follows from the seed"


def test_the_progress_gate_opens_once_nothing_has_moved_for_long_enough() -> None:
    def to_the_middle(now: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(abs(now) > 0.5, -np.sign(now), 0) * np.array((1, 0))

    settings = CollectConfig(kind="takeover", gate="progress", patience=7)
    _, notes, _ = play("takeover", Repeats(to_the_middle), settings)
    for note in notes:
        x = note["observation.position"][:, 0]
        rest = int(np.argmax(np.diff(x, append=x[-1]) == 0))  # the first step that moves nothing
        assert rest > 0
        assert taken_over(note) == rest + 7


def test_slow_movement_is_progress() -> None:
    takeover = Takeover(CollectConfig(kind="takeover", gate="progress", patience=5), POINT.spec, 0)
    limit = 0.01 * 2.4
    for step in range(100):
        position = np.array((limit / 4 * step, 0), np.float32)
        assert not takeover.expert_acts(step, {"position": position})
    takeover.expert_acts(100, {"position": position + 1})
    for step in range(101, 106):
        assert takeover.expert_acts(step, {"position": position + 1}) == (step == 105)


def test_the_distance_gate_opens_at_the_decision_whose_plan_differs() -> None:
    """The policy goes to the middle as the expert does, but never rises."""

    def never_up(now: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(abs(now) > 0.12, -np.sign(now), 0) * np.array((1, 0))

    settings = CollectConfig(kind="takeover", gate="distance", distance=0.2)
    ends, notes, clock = play("takeover", Repeats(never_up), settings)
    for note in notes:
        step = taken_over(note)
        assert step % EXECUTE == 0
        assert abs(note["observation.position"][step, 0]) < 4 * 0.08, "it was on its way until then"
        assert (note["plan_step"] == np.where(note["controller"] == 0, NO_PLAN, 0)).all()
    assert {end.outcome for end in ends} == {"success"}
    decisions = sum(taken_over(note) // EXECUTE + 1 for note in notes)
    acted = sum(int(note["controller"].sum()) for note in notes)
    assert clock.expert_steps == acted + EXECUTE * decisions, "plans are steps of the expert"


def test_the_expert_hands_back_once_the_plans_agree() -> None:
    """The policy knows the way but for the lane below, where it stands still."""

    def lost_below(now: NDArray[np.float32]) -> NDArray[np.float32]:
        inside = abs(now[:, 0]) < 0.1
        return np.stack((np.zeros(len(now)), np.where(inside, 1.0, 0.0)), axis=1)

    settings = CollectConfig(kind="takeover", gate="random", distance=0.3, hand_back=True)
    policy = Repeats(lost_below)
    _, notes, _ = play("takeover", policy, settings, episodes=1, typical_steps=1.0)
    (note,) = notes
    controller = note["controller"]
    changes = np.flatnonzero(np.diff(controller)) + 1
    assert controller[0] == 1, "the gate opens at step 0"
    assert len(changes) == 1, "it opens once"
    assert changes[0] % EXECUTE == 0
    assert changes[0] >= EXECUTE
    assert abs(note["observation.position"][changes[0], 0]) < 0.12, "on the lift both go up"
    assert set(note["plan_step"][changes[0] :]) == {NO_PLAN}

    seen, done = np.stack(policy.frames[0]), np.stack(policy.executed[0])
    assert (seen == note["observation.position"][: len(seen)]).all(), "the history is whole"
    assert (done == note["action"][: len(done)]).all()
    assert len(seen) > changes[0]


def test_a_plan_is_what_the_expert_then_does() -> None:
    ends, notes, clock = play("labels", Repeats(), CollectConfig(kind="labels"), simulators=2)
    env = POINT.make()
    assert POINT.expert is not None
    for note in notes:
        env.reset(seed=note.meta.seed)
        expert = POINT.expert(env, np.random.default_rng((note.meta.seed, 2)))
        expected = plan(env, expert, EXECUTE)
        assert (note["expert_action"][:EXECUTE] == expected).all()
        assert (expected == [_stepped(env, expert()) for _ in range(EXECUTE)]).all()
    assert clock.expert_steps == sum(end.steps for end in ends)


def _stepped(env: Environment, action: Action) -> Action:
    env.step(action)
    return action


def test_a_plan_ends_with_the_episode() -> None:
    env = load_task("counting").make()
    env.reset(seed=0)
    task = load_task("counting")
    assert task.expert is not None
    expert = task.expert(env, np.random.default_rng(0))
    counts = plan(env, expert, 100)[:, 0]
    assert len(counts) <= 41
    assert expert()[0] == counts[0], "the simulator is where it was"
    assert env.step(expert())[0]["count"][0] == counts[1]


def test_a_step_beyond_the_end_of_a_plan_has_no_label() -> None:
    """The policy creeps along the upper lane, where the expert would arrive before its plan is full."""

    def creep(now: NDArray[np.float32]) -> NDArray[np.float32]:
        x, y = now.T
        across = np.where(y > 0.9, 0.15, np.where(abs(x) > 0.1, -np.sign(x), 0))
        return np.stack((across, np.where((y < 0.9) & (abs(x) < 0.15), 1.0, 0.0)), axis=1)

    spec = replace(POINT.spec, max_steps=200)
    task = SimulatedTask(spec, Longer, POINT.expert)
    _, notes, _ = play("labels", Repeats(creep), CollectConfig(kind="labels"), task=task)
    unlabelled = 0
    for note in notes:
        beyond = note["plan_step"] == NO_PLAN
        assert (note["expert_action"][beyond] == note["action"][beyond]).all()
        assert (note["plan_step"][~beyond] == np.arange(len(beyond))[~beyond] % EXECUTE).all()
        unlabelled += int(beyond.sum())
    assert unlabelled


class Longer(ReturnPoint):
    """A return_point with time for a slow policy."""

    def start(self, rng: np.random.Generator) -> None:
        super().start(rng)
        self._drift *= 2


@pytest.mark.parametrize(
    "name",
    ["return_point", "counting", "lift", "square", "grasp_and_return", "push_and_return", "count_scoops"],
)
def test_a_state_is_restored_to_the_last_bit(name: str) -> None:
    """The expert acts until it is in contact with something. Its steps are then played twice."""
    task = load_task(name)
    env = task.make()
    assert saving_fault(task, env) == ""
    assert isinstance(env, Restorable)
    assert task.expert is not None
    env.reset(seed=3)
    expert = task.expert(env, np.random.default_rng(0))
    before = 2 if name == "counting" else 35
    for _ in range(before):
        env.step(expert())
    state, first = env.save(), list[Any]()
    for _ in range(10):
        action = expert()
        first.append((action, env.step(action)))
    for _ in range(2):  # a state may be restored again
        env.restore(state)
        for action, (observation, *end) in first:
            assert (expert() == action).all()
            again, *also = env.step(action)
            assert all((again[key] == observation[key]).all() for key in observation)
            assert also == end
    env.close()


def test_push_t_says_why_it_cannot_be_restored() -> None:
    task = load_task("push_t")
    assert "forces of the last step's contacts" in saving_fault(task, task.make())


class Forgetful:
    """A simulator whose `restore` leaves out a part of its state."""

    def __init__(self) -> None:
        self._env = POINT.make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def save(self) -> Any:
        return self._env.steps  # type: ignore[attr-defined]

    def restore(self, state: Any) -> None:
        self._env.steps = state  # type: ignore[attr-defined]


def test_a_state_that_is_not_whole_is_found_out(fragile: Any) -> None:
    assert "the same 10 actions give other observations" in saving_fault(POINT, Forgetful())  # type: ignore[arg-type]
    assert "FragileEnv has no `save` and `restore`" in saving_fault(fragile, fragile.make())


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"kind": "labels"}, True),
        ({"kind": "takeover"}, False),
        ({"kind": "takeover", "gate": "progress"}, False),
        ({"kind": "takeover", "gate": "distance"}, True),
        ({"kind": "takeover", "hand_back": True}, True),
        ({"kind": "rollout", "gate": "distance"}, False),
    ],
)
def test_plans_need_a_state_that_can_be_restored(settings: dict[str, Any], needs: bool, fragile: Any) -> None:
    collect = CollectConfig(**settings)
    assert needs_saving(collect.kind, collect) == needs
    if needs:
        with pytest.raises(ValueError, match="task fragile cannot save its state"):
            play(collect.kind, Repeats(), collect, task=fragile)  # type: ignore[arg-type]


def test_what_a_task_lacks_for_a_kind_of_collection_is_told() -> None:
    push_t = load_task("push_t")
    spec = replace(POINT.spec, observation={"position": ArraySpec((2,))}, action=ArraySpec((2,)))
    boundless = SimulatedTask(spec, POINT.make, _expert)
    for task, settings, message in [
        (push_t, {"kind": "takeover"}, "collect.kind=takeover needs an expert, which task push_t does not"),
        (push_t, {"kind": "rollout"}, ""),
        (boundless, {"kind": "takeover"}, ""),
        (boundless, {"kind": "labels"}, ""),
        (boundless, {"kind": "takeover", "gate": "distance"}, "has no action range to measure plans by"),
        (boundless, {"kind": "takeover", "hand_back": True}, "has no action range to measure plans by"),
        (boundless, {"kind": "takeover", "gate": "progress"}, "observes nothing with a range"),
        (POINT, {"kind": "takeover", "gate": "progress", "hand_back": True}, ""),
    ]:
        found = fault(task, CollectConfig(**settings))  # type: ignore[arg-type]
        assert message in found
        assert bool(message) == bool(found)


def _expert(env: Environment, rng: np.random.Generator) -> Expert:
    return lambda: np.zeros(2, np.float32)


def test_the_distance_of_plans_is_a_share_of_the_action_range() -> None:
    one, other = np.zeros((4, 2), np.float32), np.full((3, 2), 0.5, np.float32)
    assert distance(one, other, POINT.spec) == distance(other, one, POINT.spec) == 0.25
    assert distance(one, other[:0], POINT.spec) == 0.0


class Strays:
    """A policy that goes where the expert would, with an error that lasts for a whole decision."""

    execute = 8

    def __init__(self, task: Task, env: Environment) -> None:
        self._task, self._env = task, env

    def act(
        self,
        slots: Sequence[int],
        new_frames: Any,
        executed: Any,
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        assert self._task.expert is not None
        if reset[0]:
            self._expert = self._task.expert(self._env, rngs[0])
        action = self._expert()
        wrong = action + rngs[0].normal(0, 0.2, action.shape)
        return np.repeat(wrong[None, None], self.execute, axis=1).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *("lift", "grasp_and_return"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("push_and_return", "count_scoops", "square")
        ),
    ],
)
def test_experts_go_on_from_where_a_policy_strayed(name: str) -> None:
    """Whatever stage the task is in, it follows from the simulator, whoever brought it there."""
    task = load_task(name)
    env = task.make()
    todo = [
        Assignment(
            EpisodeMeta(f"correction.{seed}", name, seed, "correction"),
            "takeover",
            noise=0.02,
            collect=CollectConfig(kind="takeover"),
            typical_steps=50.0,
        )
        for seed in range(4)
    ]
    clock = Clock()
    ends = list(
        rollout(task, [env], todo, policy=Strays(task, env), context_length=4, record=None, clock=clock)
    )
    assert 0 < clock.expert_steps < clock.steps
    assert [end.outcome for end in ends].count("success") >= 3
    env.close()
