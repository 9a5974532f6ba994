import math

import pytest

from longview.replay.config import StoreConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shards", 0),
        ("chunk_steps", 0),
        ("chunk_bytes", 0),
        ("byte_budget", -5),
        ("max_connections", 0),
        ("queue_bytes", 0),
        ("cache_bytes", -1),
        ("refresh_seconds", math.inf),
        ("patience_seconds", math.nan),
        ("orphan_seconds", 0.0),
        ("call_seconds", -2.0),
        ("compression", 20),
        ("replicas", -1),
        ("samples_per_insert", 0.0),
        ("minimum_steps", -1),
        ("limiter_seconds", math.inf),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must .*not {value}"):
        StoreConfig(**{field: value})  # type: ignore[arg-type]


def test_sources_that_are_none_cannot_be_evicted() -> None:
    with pytest.raises(ValueError, match=r"evict: unknown sources \['demos'\], there are demo, import"):
        StoreConfig(evict=("rollout", "demos"))


def test_shown_without_its_url() -> None:
    assert "hunter2" not in repr(StoreConfig(url="redis://:hunter2@localhost"))
