import math

import pytest

from replay.config import StoreConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shards", 0),
        ("chunk_steps", 0),
        ("byte_budget", -5),
        ("max_connections", 0),
        ("cache_bytes", -1),
        ("refresh_seconds", math.inf),
        ("patience_seconds", math.nan),
        ("orphan_seconds", 0.0),
        ("call_seconds", -2.0),
        ("compression", 20),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"replay\.{field} must .*not {value}"):
        StoreConfig(**{field: value})  # type: ignore[arg-type]


def test_shown_without_its_url() -> None:
    assert "hunter2" not in repr(StoreConfig(url="redis://:hunter2@localhost"))
