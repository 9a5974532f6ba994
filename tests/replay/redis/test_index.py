from typing import Any

import numpy as np
import pytest

from longview.replay.episode import SOURCES, Selection
from longview.replay.errors import StoreError
from longview.replay.redis import index
from longview.replay.redis.index import Index
from longview.replay.sampling import draw

EVERYTHING = Selection({"*": 1})


def reply(
    clock: int,
    *,
    everything: bool = False,
    removed: tuple[Any, ...] = (),
    prioritized: tuple[Any, ...] = (),
    **sources: tuple[Any, ...],
) -> list[Any]:
    """Make a shard's reply; each list is given as pairs of entry and time."""
    lists = [removed, prioritized, *(sources.get(source, ()) for source in SOURCES)]
    flat = [[part for entry, time in some for part in (entry.encode(), b"%d" % time)] for some in lists]
    return [int(everything), [b"clock", b"%d" % clock], *flat]


def entries(*ids: str, start: int = 1, length: int = 10) -> tuple[Any, ...]:
    return tuple((f"{id}:{length}:5:success:walk", start + number) for number, id in enumerate(ids))


def totals(**counts: int) -> list[bytes]:
    """Make a shard's totals, as Redis returns them."""
    return [part for field, count in counts.items() for part in (field.encode(), b"%d" % count)]


def drawn(found: Index, selection: Selection = EVERYTHING) -> set[str]:
    return {one.id for one in draw(found.plan(selection), 500, np.random.default_rng(0))}


def test_episodes_come_and_go() -> None:
    found = Index(2)
    assert not found.apply(0, reply(3, everything=True, demo=entries("b", "a")))
    assert not found.apply(1, reply(9, everything=True, rollout=entries("c")))
    assert found.ids() == ["a", "b", "c"]
    assert found.ids("demo") == ["a", "b"]
    assert drawn(found) == {"a", "b", "c"}
    found.apply(0, reply(5, removed=(("b", 4),), demo=entries("d", start=5)))
    assert found.ids() == ["a", "c", "d"]
    assert drawn(found) == {"a", "c", "d"}
    # The row of b is free and used again.
    found.apply(0, reply(7, demo=entries("e", "a-longer-name-than-any-before", start=6)))
    assert drawn(found) == {"a", "c", "d", "e", "a-longer-name-than-any-before"}
    found.apply(0, reply(2, everything=True, correction=entries("f")))
    assert found.ids() == ["c", "f"]
    assert found.known(0) == [2] * 7


def test_an_episode_that_came_again_is_not_removed_by_what_was_before() -> None:
    found = Index(1)
    found.apply(0, reply(9, everything=True, demo=entries("a", start=8)))
    found.apply(0, reply(9, removed=(("a", 5),)))
    assert found.ids() == ["a"]
    found.apply(0, reply(10, removed=(("a", 10),)))
    assert found.ids() == []


def test_a_long_list_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PAGE", 2)
    found = Index(1)
    assert found.apply(0, reply(9, everything=True, demo=entries("a", "b"), rollout=entries("x", start=5)))
    # Demonstrations are known up to b, at time 2, and the other lists up to the clock. Priorities must wait.
    assert found.known(0) == [9, 0, 2, 9, 9, 9, 9]
    assert not found.apply(0, reply(9, prioritized=(("c:0", 9),), demo=entries("c", start=3)))
    assert found.known(0) == [9] * 7
    assert found.ids() == ["a", "b", "c", "x"]
    assert drawn(found, Selection({"*": 1}, by="priority")) == {"a", "b", "x"}


def test_order_does_not_matter() -> None:
    names = [f"{number:03d}" for number in range(300)]
    one, other = Index(1), Index(1)
    one.apply(0, reply(999, everything=True, demo=entries(*names)))
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    for start in range(0, 300, 50):
        some = shuffled[start : start + 50]
        other.apply(0, reply(start + 60, demo=entries(*some, "gone", start=start)))
        drawn(other)
        other.forget("gone")
    first, second = (draw(found.plan(EVERYTHING), 64, np.random.default_rng(1)) for found in (one, other))
    assert first == second


def test_the_table_holds_the_learnable_steps() -> None:
    found = Index(1)
    found.apply(0, reply(9, everything=True, demo=entries("a", "b"), rollout=(("c:10:0:success:walk", 3),)))
    table = found.plan(EVERYTHING).table
    assert dict(zip(table.id[table.order], table.learnable[table.order], strict=True)) == {
        **{b"a": 5, b"b": 5, b"c": 0}
    }


def test_what_is_held_out_or_invalid_is_never_drawn() -> None:
    found = Index(1)
    found.hold_out(["a", "later"])
    found.apply(0, reply(9, everything=True, demo=entries("a", "b"), rollout=(("c:10:10:invalid:walk", 3),)))
    assert drawn(found) == {"b"}
    found.apply(0, reply(12, demo=entries("later", "d", start=10)))
    found.hold_out(["b"])
    assert drawn(found) == {"d"}
    assert (found.steps(EVERYTHING), found.steps(Selection({"*/success": 1}))) == (5, 10)
    found.forget("d")
    assert found.steps(EVERYTHING) == 0


def test_steps_that_were_ever_committed() -> None:
    found = Index(2)
    counts = {
        "ever:demo:success:steps": 30, "ever:demo:success:learnable": 30,
        "ever:demo:failure:steps": 5, "ever:demo:failure:learnable": 5, "live:demo:steps": 99,
    }  # fmt: skip
    found.apply(0, [1, totals(**counts), *([] for _ in range(7))])
    counts = {
        "ever:rollout:success:steps": 8, "ever:demo:invalid:steps": 70, "ever:demo:invalid:learnable": 70,
        "ever:correction:success:steps": 20, "ever:correction:success:learnable": 3,
    }  # fmt: skip
    found.apply(1, [1, totals(**counts), *([] for _ in range(7))])
    for selection, steps in [
        (EVERYTHING, 38), (Selection({"demo": 1}), 35), (Selection({"demo": 1}, outcomes=("success",)), 30),
        (Selection({"demo/failure": 1, "rollout": 0}), 5), (Selection({"demo": 1, "*/success": 1}), 63),
        (Selection({"rollout": 1}), 0), (Selection({"rollout/success": 1}), 8),
        (Selection({"correction": 1}), 3), (Selection({"correction": 1, "correction/success": 1}), 20),
    ]:  # fmt: skip
        assert found.committed_steps(selection) == steps


def test_another_version_of_the_store_is_named() -> None:
    with pytest.raises(StoreError, match=r"'a:10' was written to the index by another version"):
        Index(1).apply(0, reply(9, everything=True, demo=(("a:10", 1),)))
