"""Tests that the first line of every docstring can be understood alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("actors", "cluster", "learner", "monitoring", "replay", "longview"),
    *("k8s", "tests", "benchmarks", "examples"),
)
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts
)
OPENING = re.compile(r"(Of|Those|These|The same|So|Such|Likewise|As)\b")
"""Openings that refer to the line before. A docstring has no line before."""
SECTION = re.compile(r"(Args|Returns|Raises|Yields):$")
"""Beginning of a docstring that has no summary, such as the arguments of a constructor."""


def docstrings(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and text of every public docstring, those of variables and fields included."""
    for node in ast.walk(ast.parse(source)):
        body = (
            node.body
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            else []
        )
        for before, statement in zip([node, *body], body, strict=False):
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    name = name_of(before)
                    if not re.match(r"_(?!_init__$)", name):
                        yield statement.lineno, name, text.strip()


def name_of(node: ast.AST) -> str:
    """Return the name of a definition or of the first variable of an assignment; empty for a module."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.AnnAssign(target=target) | ast.Assign(targets=[target, *_]):
            return ast.unparse(target).removeprefix("self.")
    return ""


def fault(name: str, text: str) -> str | None:
    """Return what is wrong with a docstring, None if nothing is."""
    first = text.partition("\n")[0].strip()
    if SECTION.match(first):
        return None
    if opening := OPENING.match(first):
        return f"opens with {opening[1]!r}"
    words = re.findall(r"[A-Za-z0-9]+", first)
    if len(words) < 2:
        return "has a single word"
    if [word.lower() for word in words if word.lower() not in ("a", "an", "the")] == name.lower().split("_"):
        return "only repeats the name"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_first_lines_are_understood_alone(path: Path) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name or 'module'} {found}: {text.partition(chr(10))[0]}"
        for line, name, text in docstrings(path.read_text())
        if (found := fault(name, text))
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_faults_are_found() -> None:
    """Every rule finds its fault, in every kind of docstring."""
    source = '''"""Of the module."""
class Reader:
    """Reader."""
    size: int
    """As many as fit."""
    def __init__(self):
        """
        Args:
            size: number of bytes.
        """
        self.block_size = 1
        """The block size."""
    def read(self):
        """Ask the file for a block."""
    def _hidden(self):
        """So."""
LIMIT = 3
"""Sources of a run."""
async def stop(): """Likewise."""
'''
    assert {name: fault(name, text) for _, name, text in docstrings(source)} == {
        "": "opens with 'Of'",
        "Reader": "has a single word",
        "size": "opens with 'As'",
        "__init__": None,
        "block_size": "only repeats the name",
        "read": None,
        "LIMIT": None,
        "stop": "opens with 'Likewise'",
    }
