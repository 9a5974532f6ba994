from typing import Any

import numpy as np
import pytest

from longview.replay.codec import decode_spec, encode_spec
from longview.replay.episode import ArraySpec, Rows, TaskSpec, difference


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1, "b": {"c": (2, 3)}}, {"a": 1, "b": {"c": (2, 3)}}, None),
        ({"a": 1, "b": {"c": 2, "d": 4}}, {"a": 1, "b": {"c": 3, "d": 5}}, ("b.c", 2, 3)),
        ({"a": {"b": {"c": None}}}, {"a": {"b": {}}}, ("a.b.c", None, "absent")),
        ({"a": 1}, {"a": {"b": 1}}, ("a", 1, {"b": 1})),
        ({}, {"z": 1, "y": 2}, ("y", "absent", 2)),
    ],
)
def test_the_first_difference_is_named(old: Any, new: Any, found: Any) -> None:
    assert difference(old, new) == found


def test_actions_without_limits_are_allowed_and_stored() -> None:
    spec = TaskSpec("pick", {"q": ArraySpec((6,))}, ArraySpec((6,)), 10.0, 15, (1, 2), 4)
    assert (spec.action.low, spec.action.high) == (float("-inf"), float("inf"))
    assert decode_spec(encode_spec(spec)) == spec


def test_rows_in_pieces_are_joined_when_they_are_asked_for() -> None:
    pieces = [np.arange(3), np.arange(3, 5)]
    rows = Rows({"action": pieces, "reward": [np.zeros(5)]})
    assert "action" in rows
    assert "other" not in rows
    assert list(rows) == ["action", "reward"]
    assert rows["action"].tolist() == [0, 1, 2, 3, 4]
    assert rows["action"] is rows["action"]
    assert rows.get("other") is None
    for name in rows:
        assert not rows[name].flags.writeable
    assert rows.pieces["action"] is pieces
