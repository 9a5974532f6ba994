"""Rollouts on the counting task, where any gap, repeat or swap shows."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.config import CollectConfig
from longview.actors.control import Control
from longview.actors.environment import SimulatedTask
from longview.actors.rollout import Assignment, Clock, EpisodeEnd, Policy, rollout
from longview.actors.task import Task, load_task
from longview.replay.episode import ArraySpec, EpisodeMeta

TASK = load_task("counting")
EXECUTE = 8


class Notes:
    """A recorder that keeps its steps and outcome."""

    def __init__(self, meta: EpisodeMeta) -> None:
        self.meta, self.steps, self.outcome, self.aborted = meta, [], "", False

    def append(self, step: Mapping[str, Any]) -> None:
        self.steps.append(dict(step))

    def finish(self, outcome: str) -> "Notes":
        self.outcome = outcome
        return self

    done = True

    def result(self) -> bool:
        return True

    def abort(self) -> None:
        self.aborted = True

    def column(self, name: str) -> NDArray[np.float32]:
        return np.stack([step[name] for step in self.steps])[:, 0]


class Counter:
    """A policy that answers with the counts to come, and checks that it is told everything once."""

    max_delay = 0

    def __init__(self, execute: int = EXECUTE) -> None:
        self.execute = execute
        self.calls: list[int] = []
        self.seen: dict[int, float] = {}

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, NDArray[Any]]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        assert len(set(slots)) == len(slots) == len(new_frames) == len(executed) == len(reset) == len(rngs)
        self.calls.append(len(slots))
        for slot, frames, actions, fresh in zip(slots, new_frames, executed, reset, strict=True):
            counts = frames["count"][:, 0]
            first = counts[0] if fresh else self.seen[slot] + 1
            assert counts.tolist() == list(range(int(first), int(first) + len(counts)))
            assert len(actions) == len(counts) - fresh
            # The actions respond to the frames before the newest, the last call's newest frame included.
            assert actions[:, 0].tolist() == [count - 1 for count in counts[len(counts) - len(actions) :]]
            self.seen[slot] = counts[-1]
        now = np.array([frames["count"][-1] for frames in new_frames])
        return (now + np.arange(self.execute)).astype(np.float32)[..., None]


def assignments(count: int, **kwargs: Any) -> list[Assignment]:
    return [Assignment(EpisodeMeta(f"demo.{i}", "counting", i, "demo"), **kwargs) for i in range(count)]


def play(
    todo: list[Assignment],
    policy: Policy | None,
    simulators: int = 4,
    clock: Clock | None = None,
    task: Task = TASK,
    context_length: int = 4,
    delay: int = 0,
) -> tuple[list[EpisodeEnd], list[Notes]]:
    notes: list[Notes] = []

    def record(meta: EpisodeMeta) -> Notes:
        notes.append(Notes(meta))
        return notes[-1]

    ends = rollout(
        task,
        [task.make() for _ in range(simulators)],
        todo,
        policy=policy,
        context_length=context_length,
        record=record,
        clock=clock or Clock(),
        delay=delay,
    )
    return list(ends), notes


def length_of(seed: int) -> int:
    env, steps = TASK.make(), 0
    env.reset(seed=seed)
    while True:
        steps += 1
        if env.step(np.zeros(1, np.float32))[2]:
            return steps


@pytest.mark.parametrize("simulators", [1, 4, 30])
def test_every_episode_is_recorded_whole_and_once(simulators: int) -> None:
    clock = Clock()
    ends, notes = play(assignments(20), Counter(), simulators, clock)
    assert sorted(int(end.meta.seed) for end in ends) == list(range(20))
    assert {end.outcome for end in ends} == {"success"}
    for note in notes:
        counts = note.column("observation.count")
        assert len(counts) == length_of(note.meta.seed)
        assert counts.tolist() == list(range(int(counts[0]), int(counts[0]) + len(counts)))
        assert note.column("action").tolist() == counts.tolist()
        assert note.outcome == "success"
    assert clock.steps == sum(end.steps for end in ends) == sum(len(note.steps) for note in notes)


@pytest.mark.parametrize("execute", [1, 3, 8])
def test_one_batched_decision_serves_all_simulators_for_t_a_steps(execute: int) -> None:
    policy = Counter(execute)
    play(assignments(4), policy)
    decisions = [-(-length_of(seed) // execute) for seed in range(4)]
    assert len(policy.calls) == max(decisions)
    assert sum(policy.calls) == sum(decisions)


class Elsewhere(Counter):
    """A counter in another process: what it is asked and when its answers are waited for is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[str, tuple[int, ...]]] = []

    def ask(self, slots: Sequence[int], *arguments: Any) -> Callable[[], NDArray[np.float32]]:
        self.notes.append(("asked", tuple(slots)))
        actions = self.act(slots, *arguments)

        def wait() -> NDArray[np.float32]:
            self.notes.append(("waited", tuple(slots)))
            return actions

        return wait


def test_one_half_steps_while_a_policy_elsewhere_decides_for_the_other() -> None:
    policy = Elsewhere()
    ends, notes = play(assignments(20), policy)
    assert {(end.meta.seed, end.outcome, end.steps) for end in ends} == {
        (seed, "success", length_of(seed)) for seed in range(20)
    }
    assert policy.notes[:2] == [("asked", (0, 2)), ("asked", (1, 3))]
    assert {slot % 2 for what, slots in policy.notes for slot in slots} == {0, 1}
    assert all(len({slot % 2 for slot in slots}) == 1 for _, slots in policy.notes)
    under_way = np.cumsum([1 if what == "asked" else -1 for what, _ in policy.notes])
    # The answer for one half is waited for after the other half has asked, until only one half has episodes.
    assert under_way.max() == 2
    assert (under_way[:20] >= 1).all()
    for note in notes:
        assert note.column("action").tolist() == note.column("observation.count").tolist()


def test_a_policy_elsewhere_decides_for_one_simulator() -> None:
    ends, _ = play(assignments(3), Elsewhere(), simulators=1)
    assert [end.outcome for end in ends] == ["success"] * 3


def test_episodes_do_not_depend_on_how_many_simulators_there_are() -> None:
    todo = assignments(12, control="takeover", noise=0.1, typical_steps=20.0)
    _, few = play(todo, Zero(), simulators=1)
    _, many = play(todo, Zero(), simulators=5)
    for one, other in zip(few, sorted(many, key=lambda note: note.meta.seed), strict=True):
        assert one.column("action").tolist() == other.column("action").tolist()


class Chunks:
    """A policy whose actions are the counts to come, plus the decision's number in hundreds."""

    execute = EXECUTE

    def __init__(self, max_delay: int) -> None:
        self.max_delay, self.told = max_delay, list[list[float] | None]()

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, NDArray[Any]]],
        executed: Sequence[NDArray[np.float32]],
        *_: Any,
        **told: Any,
    ) -> NDArray[np.float32]:
        assert len(executed[0]) == (6 if self.told else 0), "a decision is due every T_a steps less the delay"
        now, number = new_frames[0]["count"][-1, 0], len(self.told)
        self.told.append(told["decided"][0][:, 0].tolist() if told else None)
        return (now + np.arange(self.execute) + 100 * number).astype(np.float32)[None, :, None]


class ChunksElsewhere(Chunks):
    """A policy that does so in another process."""

    def ask(self, *arguments: Any, **told: Any) -> Callable[[], NDArray[np.float32]]:
        return partial(self.act, *arguments, **told)


@pytest.mark.parametrize("kind", [Chunks, ChunksElsewhere])
@pytest.mark.parametrize("max_delay", [0, 2, 3])
def test_a_delayed_decision_comes_into_force_while_the_robot_moves(
    kind: type[Chunks], max_delay: int
) -> None:
    """Decisions are made two steps before the actions run out. The next two actions are decided already."""
    policy, longest = kind(max_delay), max(range(20), key=length_of)
    ends, (note,) = play([assignments(20)[longest]], policy, simulators=1, delay=2)
    steps, first = ends[0].steps, note.column("observation.count")[0]
    decision = (note.column("action") - first - np.arange(steps)) / 100
    assert steps > 20
    assert decision.tolist() == ([0] * 8 + [number for number in range(1, 9) for _ in range(6)])[:steps]
    decided = [[first + 6 * k + 100 * (k - 1) + i for i in (0, 1)] for k in range(1, len(policy.told))]
    assert policy.told == ([[], *decided] if max_delay >= 2 else [None] * len(policy.told))


def test_a_delay_that_leaves_no_time_for_a_decision_is_refused() -> None:
    with pytest.raises(ValueError, match="delay must be 0 to half of T_a, not 5 of 8"):
        play(assignments(1), Counter(), delay=5)


class Noise:
    """A policy whose actions are its noise."""

    execute = EXECUTE

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Any],
        executed: Sequence[Any],
        reset: Any,
        T_o: int,
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        return np.array([rng.random((EXECUTE, 1), np.float32) for rng in rngs])


def test_noise_follows_from_episode_version_context_length_and_decision() -> None:
    def noise(simulators: int, version: int, context_length: int) -> dict[int, list[float]]:
        todo = [replace(each, meta=replace(each.meta, policy_versions=(version,))) for each in assignments(9)]
        _, notes = play(todo, Noise(), simulators, context_length=context_length)
        return {note.meta.seed: note.column("action").tolist() for note in notes}

    found = noise(simulators=4, version=100, context_length=4)
    assert found == noise(simulators=9, version=100, context_length=4)
    values = [*found.values()]
    for other in (noise(4, version=200, context_length=4), noise(4, version=100, context_length=8)):
        assert other.keys() == found.keys()
        values += other.values()
    drawn = [value for episode in values for value in episode]
    assert len(set(drawn)) > 0.99 * len(drawn)


class Zero:
    """Always answers zero, whatever happens."""

    execute = EXECUTE

    def act(self, slots: Sequence[int], *_: Any) -> NDArray[np.float32]:
        return np.zeros((len(slots), EXECUTE, 1), np.float32)


def test_the_expert_alone_needs_no_policy_and_its_noise_is_not_in_the_label() -> None:
    _, notes = play(assignments(5, control="expert", noise=1e-6), None)
    for note in notes:
        assert {int(step["controller"]) for step in note.steps} == {1}
        counts = note.column("observation.count")
        assert note.column("expert_action").tolist() == counts.tolist()
        assert not np.allclose(note.column("action"), counts, rtol=0, atol=1e-3)


@pytest.mark.parametrize("control", ["expert", "takeover"])
def test_what_no_policy_will_ask_for_is_not_kept(monkeypatch: pytest.MonkeyPatch, control: Control) -> None:
    """Pictures of an expert's episode would fill an actor's memory."""
    env, seen, kept = TASK.make(), list[weakref.ref[NDArray[Any]]](), list[int]()
    step = env.step

    def watched(action: Any) -> Any:
        kept.append(sum(each() is not None for each in seen))
        observation, *others = step(action)
        seen.append(weakref.ref(observation["count"]))
        return observation, *others

    monkeypatch.setattr(env, "step", watched)
    at_once = CollectConfig(kind="takeover", first_part=1e-9)
    todo = assignments(1, control=control, collect=at_once)
    list(rollout(TASK, [env], todo, policy=Zero(), context_length=4, record=None, clock=Clock()))
    assert len(kept) > EXECUTE + 2
    assert max(kept) <= 1, "the last one alone"


def test_noise_needs_a_range_of_actions() -> None:
    spec = replace(TASK.spec, action=ArraySpec((1,)))
    task = SimulatedTask(spec, lambda spec, render_mode: TASK.make(render_mode), TASK.expert)
    with pytest.raises(ValueError, match="task counting: noise is a share of the action range, which has no"):
        play(assignments(1, control="expert", noise=0.1), None, task=task)


def test_episodes_under_way_are_aborted_when_a_rollout_ends_early() -> None:
    notes: list[Notes] = []

    def record(meta: EpisodeMeta) -> Notes:
        notes.append(Notes(meta))
        return notes[-1]

    ends = rollout(
        TASK,
        [TASK.make() for _ in range(3)],
        assignments(9),
        policy=Counter(),
        context_length=1,
        record=record,
        clock=Clock(),
    )
    first = next(ends)
    ends.close()  # type: ignore[attr-defined]
    finished = [note for note in notes if note.outcome]
    assert first.meta in [note.meta for note in finished]
    assert [note.aborted for note in notes] == [not note.outcome for note in notes]


def test_a_policy_is_missed_where_one_is_needed() -> None:
    with pytest.raises(ValueError, match="needs a policy"):
        play(assignments(1), None)


@pytest.mark.parametrize("simulators", [1, 3, 50])
@pytest.mark.parametrize("control", ["policy", "expert", "takeover"])
def test_an_episode_that_ends_badly_is_the_only_one_to_end(
    fragile: Any, simulators: int, control: Control
) -> None:
    clock, seeds = Clock(), range(0, 80, 2)
    todo = [Assignment(EpisodeMeta(f"demo.{seed}", "fragile", seed, "demo"), control) for seed in seeds]
    ends, notes = play(todo, Zero(), simulators, clock, fragile)
    assert sorted(end.meta.seed for end in ends) == list(seeds)
    for end in ends:
        case = fragile.case(end.meta.seed)
        assert (end.outcome, end.steps, end.receipt is not None) == (case.outcome, case.steps, case.steps > 0)
        assert end.refusal == ("action[0] is refused: 0.0" if case.event == "action refused" else None)
    for note in notes:
        case = fragile.case(note.meta.seed)
        assert [step["observation.count"] for step in note.steps] == list(range(case.steps))
        assert all(np.isfinite(step["reward"]) for step in note.steps)
        assert (note.outcome, note.aborted) == ((case.outcome, False) if case.steps else ("", True))
    simulated = [case.steps + case.event.endswith("not finite") for case in map(fragile.case, seeds)]
    assert clock.steps == sum(simulated)
