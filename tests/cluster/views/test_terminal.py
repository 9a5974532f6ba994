"""Tables in a terminal of 80 columns."""

import re

import pytest
from rich.console import Console
from rich.table import Table

from longview.cluster.views.terminal import metrics_success, metrics_table, success_table
from longview.monitoring.hub import Hub, Totals, encode_report
from longview.monitoring.success import Counts, Success

GUESSED = {1: Counts(48, 96, 100)}
DONE = {64: Counts(100, 100, 100), 128: Counts(0, 0, 100), 256: Counts(0, 0, 0)}
VERSIONS = {1: 2000, 64: 12000, 128: 12000, 256: 12000}


def shown(table: Table) -> list[str]:
    """Print a table, and return its lines with runs of blanks as one."""
    console = Console(width=76)  # the live view has a frame
    with console.capture() as capture:
        console.print(table)
    return [re.sub(r"\s+", " ", line).strip() for line in capture.get().splitlines()]


def test_a_task_that_needs_memory_has_three_rates_with_their_intervals() -> None:
    lines = shown(success_table(GUESSED | DONE, "title", 0.5, VERSIONS))
    assert lines[2] == "success completed contextual weights"
    assert lines[3] == "T_o (95 % interval) (95 % interval) (95 % interval) episodes of step"
    assert lines[5:9] == [
        "1 48.0% (38–58) 96.0% (90–98) 50.0% (40–60) 100 2,000",
        "64 100.0% (96–100) 100.0% (96–100) 100.0% (96–100) 100 12,000",
        "128 0.0% (0–4) 0.0% (0–4) - 100 12,000",
        "256 - - - 0 12,000",
    ]


@pytest.mark.parametrize(
    ("success", "chance", "three"),
    [(DONE, None, False), (DONE, 0.5, True), (GUESSED | DONE, None, True), ({}, None, False)],
)
def test_completion_is_shown_where_it_is_not_success(
    success: Success, chance: float | None, three: bool
) -> None:
    assert ("contextual" in " ".join(shown(success_table(success, "title", chance)))) == three


def test_what_the_hub_knows_is_shown() -> None:
    hub, totals = Hub(), Totals()
    for length, counts in {64: (9, 10, 20), 8: (1, 3, 20)}.items():
        for name, count in zip(("successes", "completed", "episodes"), counts, strict=True):
            totals.set(f"longview_evaluation_{name}", count, task="lift", context_length=length)
    totals.add("longview_invalid_episodes_total", 2, task="lift")
    totals.add("longview_refused_actions_total", 0, task="lift")
    hub.report(encode_report("driver", "driver", 1, totals))
    success = metrics_success(hub.snapshot())
    assert list(success.items()) == [(8, Counts(1, 3, 20)), (64, Counts(9, 10, 20))]
    lines = shown(metrics_table(hub.snapshot()))
    assert "invalid episodes 2" in lines
    assert not any("refused" in line for line in lines)
