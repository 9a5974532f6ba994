"""The file tree in docs/architecture.md is the tree."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "cluster", "k8s", "learner", "monitoring", "replay")


def documented() -> set[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = text.partition("<!-- tree -->\n```\n")[2].partition("```")[0]
    paths, parents = set(), [""]
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents[depth + 1 :] = [parents[depth] + name]
        if not name.endswith("/"):
            paths.add(parents[depth] + name)
    return paths


def present() -> set[str]:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(ROOT))
        for path in files
        if path.name != "__init__.py" and "__pycache__" not in path.parts
    }


def test_the_documented_tree_is_the_tree() -> None:
    assert documented() == present()
