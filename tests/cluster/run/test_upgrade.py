from typing import Any

import pytest

from longview.cluster.run.upgrade import is_old, upgraded


def test_sources_get_their_present_names_and_all_else_stays() -> None:
    tree = {
        "task": "lift",
        "learner": {"mix": {"demo": 3, "dagger/success": 1, "*/*/dagger": 2}, "steps": 100},
        "replay": {"evict": ["dagger", "rollout"], "url": None},
    }
    assert is_old(tree)
    new = upgraded(tree)
    assert new == {
        "task": "lift",
        "learner": {"mix": {"demo": 3, "correction/success": 1, "*/*/dagger": 2}, "steps": 100},
        "replay": {"evict": ["correction", "rollout"], "url": None},
    }
    assert tree["replay"] == {"evict": ["dagger", "rollout"], "url": None}
    assert not is_old(new)


def test_keys_without_a_successor_are_dropped() -> None:
    tree = {"actors": {"count": 2, "episodes_per_version": 32, "beta_until": 0.5}}
    assert is_old(tree)
    assert upgraded(tree) == {"actors": {"count": 2}}
    assert not is_old(upgraded(tree))


@pytest.mark.parametrize(
    "tree",
    [{}, {"actors": None}, {"learner": None}, {"learner": {"mix": "dagger"}}, {"replay": {"evict": [3]}}],
)
def test_what_is_no_valid_config_stays_for_its_own_error(tree: dict[str, Any]) -> None:
    assert not is_old(tree)
