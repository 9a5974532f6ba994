"""The HTML report of an audit."""

import base64
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from longview.monitoring.report import BLUE, DPI, GREEN, colors, empty_plots, templates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS: Final = {
    "single frame": "nothing",
    "time alone": "how long the episode has lasted",
    "truncated": "a short past",
    "past of another episode": "what happened elsewhere at the same time",
    "past reversed": "the long past in the wrong order",
    "past actions alone": "what was done, not what was seen",
}
"""Meaning of each control."""
DRAWN: Final = 5
"""Context lengths that the plot over positions shows."""


def audit_page(result: Mapping[str, Any]) -> str:
    """Make the report of an audit: one HTML page that needs no other file.

    Args:
        result: what `longview audit --json` prints.
    """
    plots = {"error": _embedded(_error_plot(result)), "position": _embedded(_position_plot(result))}
    return templates().get_template("audit.html").render(result=result, meanings=MEANINGS, plots=plots)


def _error_plot(result: Mapping[str, Any]) -> "Figure":
    """Draw error over context length: over whole episodes, and where a longer past helps."""
    figure, (axes,) = empty_plots(1, height=2.8)
    for rows, color, label in (
        (result["action_error"], BLUE, "whole episode"),
        (result["in_parts"], GREEN, "where a longer past helps"),
    ):
        if rows:
            means = [row["mean"] for row in rows.values()]
            reach = [[abs(row[side] - row["mean"]) for row in rows.values()] for side in ("low", "high")]
            axes.errorbar(range(len(rows)), means, reach, fmt="o-", color=color, capsize=3, label=label)
    lengths = list(result["action_error"])
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    chosen = min(range(len(lengths)), key=lambda place: abs(int(lengths[place]) - result["T_o"]))
    axes.axvline(chosen, color="#c9d1da", linewidth=6, zorder=0)
    axes.annotate(
        "recommended", (chosen, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8
    )
    axes.set_xlabel("context length $T_o$, in steps")
    axes.set_ylabel("action error")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return figure


def _position_plot(result: Mapping[str, Any]) -> "Figure":
    """Draw error from the start to the end of an episode, a line for some of the context lengths."""
    figure, (axes,) = empty_plots(1, height=2.8)
    lengths = [int(length) for length in result["by_part"]]
    places = {round(rank * (len(lengths) - 1) / (DRAWN - 1)) for rank in range(DRAWN)}
    shown = sorted({lengths[place] for place in places} | {result["T_o"]})
    by_part = {int(length): row for length, row in result["by_part"].items()}
    for length, color in colors(shown).items():
        # A part without a frame is None in JSON, and NaN leaves a gap in the line.
        row = [math.nan if value is None else value for value in by_part[length]]
        at = [100 * (place + 0.5) / len(row) for place in range(len(row))]
        axes.plot(at, row, color=color, linewidth=1.5, label=str(length))
    for first, last in result["parts"]:
        axes.axvspan(100 * first, 100 * last, color="#eef3f8", zorder=0)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the episode (%)")
    axes.set_ylabel("action error")
    figure.legend(title="$T_o$", loc="outside right upper", frameon=False, reverse=True)
    return figure


def _embedded(figure: "Figure") -> str:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI)
    return base64.b64encode(picture.getvalue()).decode()
