from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from longview.replay.episode import OUTCOMES, SOURCES, Selection
from longview.replay.errors import StoreError
from longview.replay.sampling import Stratum, Table, draw, plan

EPISODES = [
    # id, learnable steps, source, outcome, task, committed, priority
    ("a", 3, "demo", "success", "walk", 10, 1.0),
    ("b", 1, "demo", "failure", "walk", 20, 3.0),
    ("c", 10, "rollout", "success", "walk", 30, 0.0),
    ("d", 2, "rollout", "failure", "walk", 50, 0.5),
    ("e", 4, "rollout", "success", "run", 40, 2.0),
]


def table(episodes: Sequence[tuple[Any, ...]] = EPISODES, others: int = 0) -> Table:
    """Return a table of these episodes, each with as many `others`, steps with nothing to learn."""
    ids, lengths, sources, outcomes, tasks, committed, priorities = zip(*episodes, strict=True)
    known = sorted(set(tasks))
    return Table(
        order=np.argsort(np.array(ids, np.bytes_)),
        id=np.array(ids, np.bytes_),
        length=np.array(lengths, np.int32) + others,
        learnable=np.array(lengths, np.int32),
        source=np.array([SOURCES.index(source) for source in sources], np.int8),
        outcome=np.array([OUTCOMES.index(outcome) for outcome in outcomes], np.int8),
        task=np.array([known.index(task) for task in tasks], np.int32),
        committed=np.array(committed, np.int64),
        priority=np.array(priorities),
        task_names=known,
    )


DEMO, ROLLOUT = {"demo": 1}, {"rollout": 1}
CASES: list[tuple[Selection, dict[str, float]]] = [
    # The selection, and the probability of each step of an episode.
    (Selection({"demo": 3, "rollout": 1}), {"a": 3 / 16, "b": 3 / 16, "c": 1 / 64, "d": 1 / 64, "e": 1 / 64}),
    (Selection(DEMO, by="episodes"), {"a": 1 / 6, "b": 1 / 2}),
    (Selection(DEMO, by="priority"), {"a": 1 / 12, "b": 3 / 4}),
    (Selection(ROLLOUT, by="priority"), {"d": 1 / 10, "e": 1 / 5}),
    (
        Selection(ROLLOUT, by="recency", half_life=1),  # from newest to oldest: d, e, c, with weights 4, 2, 1
        {"c": 1 / 70, "e": 1 / 14, "d": 2 / 7},
    ),
    (Selection({"*": 1}, outcomes=("success",)), {"a": 1 / 17, "c": 1 / 17, "e": 1 / 17}),
    (Selection({"*": 1}, task="run"), {"e": 1 / 4}),
    (
        Selection({"*/success": 1, "*/failure": 1}, task="walk"),
        {"a": 1 / 26, "c": 1 / 26, "b": 1 / 6, "d": 1 / 6},
    ),
    (Selection({"demo": 1, "rollout/success": 1}), {"a": 1 / 8, "b": 1 / 8, "c": 1 / 28, "e": 1 / 28}),
    (
        Selection({"*/*/run": 1, "*/*/walk": 3}, by="episodes"),
        {"e": 1 / 16, "a": 1 / 16, "b": 3 / 16, "c": 3 / 160, "d": 3 / 32},
    ),
    (Selection({"demo": 1, "demo/failure": 1}), {"a": 1 / 8, "b": 5 / 8}),  # b is in both
    (Selection({"demo": 0, "correction": 5, "rollout/failure": 1}), {"d": 1 / 2}),
]  # fmt: skip


@pytest.mark.parametrize(("selection", "expected"), CASES)
def test_every_step_is_drawn_as_often_as_its_probability_says(
    selection: Selection, expected: dict[str, float]
) -> None:
    count = 20_000
    draws = draw(plan(table(), selection), count, np.random.default_rng(0))
    seen = Counter((drawn.id, drawn.number) for drawn in draws)
    lengths = {id: length for id, length, *_ in EPISODES}
    steps = {(id, now): chance for id, chance in expected.items() for now in range(lengths[id])}
    assert sum(steps.values()) == pytest.approx(1)
    assert seen.keys() == steps.keys()
    for drawn in draws:
        assert drawn.chance + drawn.added == pytest.approx(expected[drawn.id])
    for step, probability in steps.items():
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(seen[step] - count * probability) < 5 * deviation


@pytest.mark.parametrize("by", ["steps", "episodes", "recency", "priority"])
def test_steps_with_nothing_to_learn_change_nothing(by: str) -> None:
    selection = Selection({"demo": 1, "rollout": 2}, by)
    plain, with_others = plan(table(), selection), plan(table(others=5), selection)
    assert plain.steps == with_others.steps == 4 + (16 if by != "priority" else 6)
    draws = [draw(planned, 200, np.random.default_rng(3)) for planned in (plain, with_others)]
    assert draws[0] == draws[1]
    assert not any(drawn.imitated for drawn in draws[0])


def test_a_success_to_imitate_is_drawn_from_whole() -> None:
    """Episode e has 4 learnable steps of 9, and is in both strata."""
    planned = plan(table(others=5), Selection({"rollout": 1, "rollout/success/run": 3}))
    draws = draw(planned, 20_000, np.random.default_rng(0))
    assert planned.steps == 10 + 2 + 9
    whole = [drawn for drawn in draws if drawn.imitated]
    assert {(drawn.id, drawn.stratum) for drawn in whole} == {("e", "rollout/success/run")}
    assert {(drawn.chance, drawn.added) for drawn in whole} == {(3 / 4 / 9, 1 / 4 / 16)}
    numbers = Counter(drawn.number for drawn in whole)
    assert numbers.keys() == set(range(9))
    assert max(numbers.values()) - min(numbers.values()) < 5 * (15_000 / 9) ** 0.5
    rest = [drawn for drawn in draws if not drawn.imitated]
    assert {drawn.number for drawn in rest if drawn.id == "e"} == set(range(4))


@pytest.mark.parametrize("by", ["steps", "episodes", "recency", "priority"])
def test_an_episode_without_anything_to_learn_is_drawn_only_to_be_imitated(by: str) -> None:
    nothing = replace(table(), learnable=np.zeros(5, np.int32))
    with pytest.raises(StoreError, match=r"no steps to learn from: mix is {'rollout': 1}"):
        plan(nothing, Selection({"rollout": 1}, by))
    draws = draw(plan(nothing, Selection({"*": 1, "rollout/success": 1}, by)), 50, np.random.default_rng(0))
    assert {drawn.stratum for drawn in draws} == {"rollout/success"}


def test_a_draw_says_what_it_was_drawn_for() -> None:
    draws = draw(plan(table(), Selection({"demo": 1, "rollout/success": 1})), 100, np.random.default_rng(0))
    assert {(drawn.id, drawn.stratum) for drawn in draws} == {
        ("a", "demo"), ("b", "demo"), ("c", "rollout/success"), ("e", "rollout/success"),
    }  # fmt: skip


@pytest.mark.parametrize("by", ["steps", "episodes", "recency", "priority"])
def test_draws_follow_from_contents_and_generator_alone(by: str) -> None:
    mix = {"demo": 1, "rollout": 2}
    first = draw(plan(table(), Selection(mix, by)), 50, np.random.default_rng(7))
    shuffled = table([EPISODES[number] for number in (3, 0, 4, 2, 1)])
    other = Selection(dict(reversed(mix.items())), by)
    assert draw(plan(shuffled, other), 50, np.random.default_rng(7)) == first
    assert draw(plan(table(), Selection(mix, by)), 50, np.random.default_rng(8)) != first


@pytest.mark.parametrize(
    "weights",
    [
        np.full(1, 3.0),
        np.random.default_rng(0).integers(1, 400, 3000).astype(float),
        0.5 ** (np.arange(3000) / 20),
        np.append(np.full(500, 1e-9), np.full(500, 1e9)),
    ],
)
def test_the_episode_at_a_point_is_the_one_that_a_search_finds(weights: Any) -> None:
    stratum = Stratum.of("demo", np.arange(len(weights)) + 7, weights)
    ends = np.cumsum(weights)
    points = np.concatenate(
        ([0.0, 1 - 2**-53], np.random.default_rng(1).random(5000), (ends / ends[-1])[:-1], [2**-1074])
    )
    for some in (points, *np.split(points[: len(points) // 8 * 8], 8)):
        expected = np.minimum(np.searchsorted(ends, some * ends[-1], side="right"), len(ends) - 1) + 7
        assert stratum.rows(some).tolist() == expected.tolist()


def test_nothing_to_draw_from_says_what_there_is() -> None:
    with pytest.raises(
        StoreError,
        match=r"mix is {'correction': 1}, outcomes are success, task is walk; .*'import': 0, 'rollout': 3",
    ):
        plan(table(), Selection({"correction": 1}, outcomes=("success",), task="walk"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mix": {}}, "mix needs"),
        ({"mix": {"demo": 0}}, "mix needs"),
        ({"mix": {"demo": -1, "rollout": 2}}, "mix needs"),
        ({"mix": {"demo": np.inf}}, "mix needs"),
        ({"mix": {"dmo": 1}}, r"unknown sources \['dmo'\], there are demo"),
        (
            {"mix": {"dagger/success": 1}},
            "mix: source dagger is called correction now; `longview",
        ),
        ({"mix": {"demo/won": 1}}, r"outcomes: \['won'\] cannot be drawn, only success"),
        ({"mix": {"demo/invalid": 1}}, r"\['invalid'\] cannot be drawn"),
        ({"outcomes": ("invalid",)}, r"\['invalid'\] cannot be drawn"),
        ({"by": "chance"}, "draw_by must be one of steps, episodes, recency, priority, not 'chance'"),
        ({"half_life": 0.0}, "half_life must be finite and positive, not 0.0"),
    ],
)
def test_a_selection_that_is_none_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection(**{"mix": {"demo": 1}, **fields})
