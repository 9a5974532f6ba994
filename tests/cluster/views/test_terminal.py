"""Tables in the terminal, as 80 columns show them."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from longview.cluster.views.terminal import metrics_success, metrics_table, success_table
from longview.monitoring.hub import Hub, Totals, encode_report

ROWS = [
    {"context_length": 1, "version": 2000, "successes": 48, "completed": 96, "episodes": 100},
    {"context_length": 64, "version": 12000, "successes": 100, "completed": 100, "episodes": 100},
    {"context_length": 128, "version": 12000, "successes": 0, "completed": 0, "episodes": 100},
    {"context_length": 256, "version": 12000, "successes": 0, "completed": 0, "episodes": 0},
]


def shown(table: Table) -> list[str]:
    """Its lines, each run of blanks as one."""
    console = Console(width=76)  # the live view has a frame
    with console.capture() as capture:
        console.print(table)
    return [re.sub(r"\s+", " ", line).strip() for line in capture.get().splitlines()]


def test_a_task_that_needs_memory_has_three_rates_with_their_intervals() -> None:
    lines = shown(success_table(ROWS, "title", chance=0.5))
    assert lines[2] == "success completed contextual weights"
    assert lines[3] == "T_o (95 % interval) (95 % interval) (95 % interval) episodes of step"
    assert lines[5:9] == [
        "1 48.0% (38–58) 96.0% (90–98) 50.0% (40–60) 100 2,000",
        "64 100.0% (96–100) 100.0% (96–100) 100.0% (96–100) 100 12,000",
        "128 0.0% (0–4) 0.0% (0–4) - 100 12,000",
        "256 - - - 0 12,000",
    ]


@pytest.mark.parametrize(
    ("rows", "chance", "three"),
    [(ROWS[1:], None, False), (ROWS[1:], 0.5, True), (ROWS, None, True), ([], None, False)],
)
def test_completion_is_shown_where_it_is_not_success(
    rows: Sequence[dict[str, Any]], chance: float | None, three: bool
) -> None:
    assert ("contextual" in " ".join(shown(success_table(rows, "title", chance)))) == three


def test_what_the_hub_knows_is_shown() -> None:
    hub, totals = Hub(), Totals()
    for length, counts in {64: (9, 10, 20), 8: (1, 3, 20)}.items():
        for name, count in zip(("successes", "completed", "episodes"), counts, strict=True):
            totals.set(f"longview_evaluation_{name}", count, task="lift", context_length=length)
    totals.add("longview_invalid_episodes_total", 2, task="lift")
    totals.add("longview_refused_actions_total", 0, task="lift")
    hub.report(encode_report("driver", "driver", 1, totals))
    assert metrics_success(hub.snapshot()) == [
        {"context_length": 8, "successes": 1, "completed": 3, "episodes": 20},
        {"context_length": 64, "successes": 9, "completed": 10, "episodes": 20},
    ]
    lines = shown(metrics_table(hub.snapshot()))
    assert "invalid episodes 2" in lines
    assert not any("refused" in line for line in lines)
