"""Tests of names: which are allowed, and their encoding."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.replay.episode import EpisodeMeta, episode_id
from longview.replay.names import MAX_BYTES, check_name, decode_name, encode_name


@pytest.mark.parametrize("name", ["lift", "My Run", "läuft", "拿起方块", "a:b", "#1 (50%)", "x" * MAX_BYTES])
def test_what_people_type_is_a_name(name: str) -> None:
    assert check_name(name) == name
    assert decode_name(encode_name(name)) == name
    index = 7
    id = episode_id("demo", name, index)
    assert EpisodeMeta(id, name, 0, "demo").id == id
    assert id < episode_id("demo", name, index + 1) < episode_id("demo", name, 10 * index)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the run must have 1 to 128 bytes of UTF-8: ''"),
        ("ü" * 65, "the run must have 1 to 128 bytes"),
        ("..", "the run must be a plain folder name: '..'"),
        ("a/b", "the run must be a plain folder name"),
        ("a\nb", "the run must not hold control characters"),
        ("a\udc80", "the run must not hold control characters"),
        (" a", "the run must not begin or end with a space: ' a'"),
    ],
)
def test_what_cannot_be_a_name(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_name(name, "the run")


@given(st.text())
def test_encoded_names_are_plain_and_differ(name: str) -> None:
    encoded = encode_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]*", encoded)
    assert decode_name(encoded) == name


def test_ids_of_plain_names_are_as_they_always_were() -> None:
    assert episode_id("demo", "return_point", 12) == "demo.return_point.000000012"
    assert episode_id("import", "push-t.v7", 0) == "import.push-t.v7.000000000"
