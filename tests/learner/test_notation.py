"""Tests that shape suffixes and legends in learner/ use the letters of docs/notation.md."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "learner").rglob("*.py"))
SUFFIX = re.compile(r"[a-z0-9_]*[a-z0-9]_([A-Z0-9]*[A-Z][A-Z0-9]*)")
"""Name with a shape suffix. Constants and types have no lower-case part before the suffix."""


def letters() -> dict[str, str]:
    """Return the meaning of every letter in docs/notation.md."""
    rows = re.findall(r"^\| ([A-Z]) \| (.+) \|$", (ROOT / "docs" / "notation.md").read_text(), re.MULTILINE)
    assert len({letter for letter, _ in rows}) == len(rows), "a letter has two meanings"
    return dict(rows)


def suffixes(path: Path) -> dict[str, str]:
    """Return the shape suffix of every name in a file that has one."""
    with path.open("rb") as file:
        names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
    matches = {name: SUFFIX.fullmatch(name) for name in names}
    return {name: match[1] for name, match in matches.items() if match}


def legend(path: Path) -> dict[str, str]:
    """Return the meaning of every letter in a file's legend, empty for a file without one."""
    found = re.search(r"^Legend \(docs/notation\.md\): (.*?)\.\n", path.read_text(), re.MULTILINE | re.DOTALL)
    if found is None:
        return {}
    parts = re.split(r"(?:^|, )([A-Z]) ", " ".join(found[1].split()))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_suffixes_are_letters_of_the_notation(path: Path) -> None:
    known = set(letters())
    unknown = {name for name, suffix in suffixes(path).items() if set(re.sub(r"\d", "", suffix)) - known}
    assert unknown == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_legend_lists_the_letters_of_its_file(path: Path) -> None:
    """A letter of the legend may also occur in a shape that a docstring gives, such as (B, T, A)."""
    listed, named = set(legend(path)), set(re.sub(r"\d", "", "".join(suffixes(path).values())))
    assert named <= listed, "the legend misses letters"
    shapes = set("".join(re.findall(r"\(([A-Z0-9][A-Z0-9, .*/+]*)\)", path.read_text())))
    assert listed <= named | shapes, "the legend lists letters that the file does not use"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_legend_agrees_with_the_notation(path: Path) -> None:
    """The meaning in a legend starts with a word of the page's meaning, in singular or plural."""
    meanings = letters()
    for letter, meaning in legend(path).items():
        words = {word.rstrip("s") for word in re.findall(r"[a-z]+", meanings[letter])}
        assert meaning.split()[0].rstrip(":,s") in words, f"{letter} {meaning}, not {meanings[letter]}"


def test_suffixes_are_told_from_other_names(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("def f(shift_F2, T_o, T_OLD, _state_1U, POLICY_B, Episode_, x_BTA): 'y_Z'  # z_X\n")
    assert suffixes(path) == {"shift_F2": "F2", "_state_1U": "1U", "x_BTA": "BTA"}
