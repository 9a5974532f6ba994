"""Tests of the memory that a process may use, with control groups as Linux shows them."""

import os
from pathlib import Path

import pytest

from longview.replay import memory
from longview.replay.config import StoreConfig
from longview.replay.memory import usable_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of control groups that are the process' own from now on."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "LIMITS", tmp_path)
    return tmp_path


def limit(folder: Path, name: str, value: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{value}\n")


def test_without_control_groups_it_is_the_machines(groups: Path) -> None:
    assert usable_memory() == MACHINE


@pytest.mark.parametrize(
    ("line", "folder", "name"),
    [("0::/pods/one", "pods/one", "memory.max"), ("8:memory:/one", "memory/one", "memory.limit_in_bytes")],
)
def test_the_smallest_limit_of_a_group_and_those_above_counts(
    groups: Path, line: str, folder: str, name: str
) -> None:
    (groups / "cgroup").write_text(f"5:cpu:/other\n{line}\n")
    limit(groups / folder, name, "max")
    limit((groups / folder).parent, name, str(1 << 20))
    assert usable_memory() == 1 << 20
    limit(groups / folder, name, str(1 << 19))
    assert usable_memory() == 1 << 19
    limit(groups / "other", name, "4096")
    assert usable_memory() == 1 << 19


def test_a_container_sees_only_its_own_group(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/../outside/of/the/container\n")
    limit(groups, "memory.max", str(1 << 21))
    assert usable_memory() == 1 << 21


def test_a_limit_above_the_machines_memory_is_none(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/\n")
    limit(groups, "memory.max", str(1 << 62))
    assert usable_memory() == MACHINE


def test_ranks_share_an_eighth_of_the_memory_unless_the_config_says_how_much(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/\n")
    limit(groups, "memory.max", str(1 << 20))
    assert StoreConfig().cache() == 1 << 17
    assert StoreConfig().cache(readers=4) == 1 << 15
    assert StoreConfig(cache_bytes=1 << 30).cache(readers=4) == 1 << 30
