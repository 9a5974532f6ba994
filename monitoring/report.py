"""The HTML report of a run, and its plots."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.monitoring.success import Evaluation, Rate, Success, needs_memory, read_success

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("loss", "validation_loss")
"""Names of the losses in series.jsonl."""
EPISODES = ("episodes.mp4", "episodes.png")
"""Names of a video and a contact sheet in a run's folder."""

DPI = 200
BLUE, GREEN, GREY, INK = "#1f5fa8", "#2e8b6f", "#8a94a3", "#1d2733"


def success_plot(success: Success, chance: float | None, path: Path) -> None:
    """Draw success over context length, with 95% intervals, as a PNG.

    Args:
        success: counts by context length; a length without episodes is left out.
        chance: success rate of a policy without memory, drawn as a line; None draws none.
        path: the file to write.
    """
    figure, axes = _figure()
    series = [row["success"] for row in _rates_axis(axes, success, chance)]
    _draw_rates(axes, series, BLUE, "success")
    for position, rate in enumerate(series):
        above = rate.share < 0.9
        axes.annotate(
            f"{rate.share:.0%}",
            (position, rate.interval[above]),
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # the line of chance may run below it
        )
    figure.savefig(path, dpi=DPI)


def completion_plot(success: Success, chance: float | None, path: Path) -> None:
    """Draw completion and contextual success over context length; arguments as for `success_plot`."""
    figure, axes = _figure()
    rows = _rates_axis(axes, success, chance)
    axes.set_ylabel("share")
    _draw_rates(axes, [row["completed"] for row in rows], GREEN, "completed", shift=-0.07)
    _draw_rates(axes, [row["contextual"] for row in rows], BLUE, "contextual", shift=0.07)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=DPI)


def learning_plot(history: Sequence[Evaluation], path: Path) -> None:
    """Draw success of every context length over training, as a PNG.

    Args:
        history: at least one evaluation.
        path: the file to write.
    """
    figure, axes = _figure()
    for length, color in colors(sorted({found.context_length for found in history})).items():
        points = sorted(
            (found.version, found.counts.rates["success"].share)
            for found in history
            if found.context_length == length and found.counts.episodes
        )
        versions, shares = zip(*points, strict=True) if points else ((), ())
        axes.plot(versions, shares, "o-", color=color, linewidth=1.8, markersize=4.5, label=str(length))
    axes.set_xlabel("training steps")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    figure.legend(title="$T_o$", loc="outside right upper", frameon=False, reverse=True)
    figure.savefig(path, dpi=DPI)


def loss_plot(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw training loss and validation loss of every context length over training, as a PNG.

    Args:
        series: rows as for `write_report`, with losses in at least one.
        path: the file to write.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, pair = empty_plots(2, sharey=True)
    for axes, key, title in zip(pair, LOSSES, ("training", "not trained on"), strict=True):
        lengths = sorted({int(length) for row in series for length in row[key]})
        for length, color in colors(lengths).items():
            points = {
                row["training_step"]: row[key][str(length)] for row in series if str(length) in row[key]
            }
            axes.plot(list(points), list(points.values()), color=color, linewidth=1.5, label=str(length))
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_ylabel("squared error")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    pair[-1].set_xlabel("training steps")
    pair[-1].xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    drawn = max(pair, key=lambda axes: len(axes.lines))
    figure.legend(handles=drawn.lines, title="$T_o$", loc="outside right upper", frameon=False, reverse=True)
    figure.savefig(path, dpi=DPI)


def error_plot(held_out: Mapping[str, Any], path: Path) -> None:
    """Draw action error on held-out episodes over context length, with 95% intervals, as a PNG.

    Args:
        held_out: `held_out` of summary.json.
        path: the file to write.
    """
    figure, (axes,) = empty_plots(1, height=2.8)
    rows = held_out["action_error"]
    means = [row["mean"] for row in rows.values()]
    reach = [[abs(row[side] - row["mean"]) for row in rows.values()] for side in ("low", "high")]
    axes.errorbar(range(len(rows)), means, reach, fmt="o", color=BLUE, markersize=7, elinewidth=2, capsize=4)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_xlabel("context length $T_o$ (observations that the policy sees)")
    axes.set_ylabel("action error")
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=DPI)


def position_plot(held_out: Mapping[str, Any], path: Path) -> None:
    """Draw action error from the start to the end of an episode, a line and its 95% interval for every
    context length; arguments as for `error_plot`."""
    figure, (axes,) = empty_plots(1, height=2.8)
    rows = held_out["by_position"]
    for length, color in colors(sorted(map(int, rows))).items():
        places = rows[str(length)]
        at = [100 * (index + 0.5) / len(places) for index in range(len(places))]
        # What no episode tells is None in JSON, and NaN leaves a gap in the line.
        mean, low, high = (
            [math.nan if place[side] is None else place[side] for place in places]
            for side in ("mean", "low", "high")
        )
        axes.plot(at, mean, color=color, linewidth=1.5, label=str(length))
        axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the episode (%)")
    axes.set_ylabel("action error")
    figure.legend(title="$T_o$", loc="outside right upper", frameon=False, reverse=True)
    figure.savefig(path, dpi=DPI)


def throughput_plot(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw simulated steps and trained windows per second over time; `series` as for `write_report`."""
    figure, pair = empty_plots(2)
    for axes, key, title, color in zip(
        pair,
        ("steps_per_second", "windows_per_second"),
        ("simulated steps per second", "trained windows per second"),
        (BLUE, GREEN),
        strict=True,
    ):
        _draw_over_time(axes, series, key, color)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    pair[0].set_xlabel("")
    figure.savefig(path, dpi=DPI)


def staleness_plot(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the staleness of collected episodes over time, as a PNG; `series` as for `write_report`."""
    figure, (axes,) = empty_plots(1)
    _draw_over_time(axes, [row for row in series if row["staleness"] is not None], "staleness", BLUE, "o-")
    axes.set_ylabel("training steps")
    figure.savefig(path, dpi=DPI)


def write_report(run_dir: Path, summary: Mapping[str, Any], series: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write report.html, one file that needs no other, and its plots beside it.

    The report shows the video or contact sheet of episodes that the run's folder has. A run on recorded data
    has action errors in place of success.

    Args:
        run_dir: the run's folder.
        summary: content of summary.json. `config` must be free of secrets: the report shows it in full.
        series: rows of series.jsonl: `seconds` since the start, `steps_per_second`, `windows_per_second`,
            `training_step`, `staleness` in training steps or None, and each of `LOSSES` by context length.

    Returns:
        Path of the report.
    """
    chance, plots = summary["chance"], []
    tasks = {task: read_success(rows) for task, rows in summary["success"].items()}
    with_memory = [task for task, success in tasks.items() if needs_memory(success.values(), chance)]
    for task, success in tasks.items():
        if any(counts.episodes for counts in success.values()):
            plots.append(run_dir / f"success-{task}.png")
            success_plot(success, chance, plots[-1])
            if task in with_memory:
                plots.append(run_dir / f"completion-{task}.png")
                completion_plot(success, chance, plots[-1])
    if summary["history"]:
        plots.append(run_dir / "learning.png")
        learning_plot([Evaluation.from_dict(line) for line in summary["history"]], plots[-1])
    held_out = summary.get("held_out")
    if held_out:
        plots += [run_dir / "error.png", run_dir / "position.png"]
        error_plot(held_out, plots[-2])
        position_plot(held_out, plots[-1])
    for name, draw, drawable in (
        ("loss", loss_plot, any(row[key] for row in series for key in LOSSES)),
        ("throughput", throughput_plot, len(series) > 1 and not held_out),
        ("staleness", staleness_plot, any(row["staleness"] is not None for row in series)),
    ):
        if drawable:
            plots.append(run_dir / f"{name}.png")
            draw(series, plots[-1])
    seconds = sum(summary["phases"].values())
    page = (
        templates()
        .get_template("recorded.html" if held_out else "report.html")
        .render(
            summary=summary,
            success={
                task: {length: counts.rates for length, counts in success.items()}
                for task, success in tasks.items()
            },
            with_memory=with_memory,
            plots={path.stem: embedded(path) for path in plots},
            films={path.suffix: embedded(path) for name in EPISODES if (path := run_dir / name).exists()},
            phases={name: _duration(length) for name, length in summary["phases"].items()},
            total=_duration(seconds),
            steps_per_second=summary["environment_steps"] / seconds if seconds else 0.0,
            config="\n".join(_assignments(summary["config"])),
        )
    )
    report = run_dir / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _rates_axis(axes: "Axes", success: Success, chance: float | None) -> list[dict[str, Rate]]:
    """Lay out an axis of the context lengths that have episodes, and return the rates of each."""
    rows = {length: counts.rates for length, counts in success.items() if counts.episodes}
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(
            "chance",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            color=GREY,
        )
    axes.set_xticks(range(len(rows)), [str(length) for length in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_xlabel("context length $T_o$ (observations that the policy sees)")
    return list(rows.values())


def _draw_rates(axes: "Axes", series: Sequence[Rate], color: str, label: str, shift: float = 0.0) -> None:
    """Draw one rate over the context lengths, with its interval."""
    points = [(position + shift, rate) for position, rate in enumerate(series) if rate.of]
    positions, shares = [position for position, _ in points], [rate.share for _, rate in points]
    reach = [[abs(rate.interval[side] - rate.share) for _, rate in points] for side in (0, 1)]
    axes.plot(positions, shares, color=color, linewidth=1.6, alpha=0.45, zorder=2)
    axes.errorbar(
        positions, shares, reach, fmt="o", color=color, markersize=7, elinewidth=2, capsize=4, label=label
    )


def _draw_over_time(
    axes: "Axes", series: Sequence[Mapping[str, Any]], key: str, color: str, style: str = "-"
) -> None:
    from matplotlib.ticker import MaxNLocator

    hours = series[-1]["seconds"] > 3 * 3600
    at, values = [row["seconds"] / (3600 if hours else 60) for row in series], [row[key] for row in series]
    axes.plot(at, values, style, color=color, linewidth=1.5, markersize=4)
    axes.set_xlabel("hours" if hours else "minutes")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05 * max(1.0, *values))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def colors(lengths: Sequence[int]) -> dict[int, Any]:
    """Choose a colour for each context length of an ascending sequence: the longer, the darker."""
    from matplotlib import colormaps

    last = max(1, len(lengths) - 1)
    return {length: colormaps["viridis"](0.88 * (1 - rank / last)) for rank, length in enumerate(lengths)}


def templates() -> "Environment":
    """Open the templates of all reports."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )


def embedded(file: Path) -> str:
    """Return a file in base64, as a page embeds it."""
    return base64.b64encode(file.read_bytes()).decode()


def _figure() -> "tuple[Figure, Axes]":
    """Make a figure with an empty plot of rates."""
    figure, (axes,) = empty_plots(1, height=3.2)
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("success")
    return figure, axes


def empty_plots(
    count: int, height: float = 2.1, *, sharey: bool = False, heights: Sequence[float] = ()
) -> "tuple[Figure, list[Axes]]":
    """Make a figure with empty plots, one above the other, narrow enough for a phone. It does not touch
    pyplot's global state.

    Args:
        count: number of plots.
        height: height of each in inches.
        sharey: whether they have the y axis in common; the x axis they have.
        heights: different heights in inches, of plots that have no axis in common.
    """
    from matplotlib.figure import Figure

    ratios = heights or [height] * count
    figure = Figure(figsize=(5.6, sum(ratios)), layout="constrained")
    grid = figure.subplots(
        count, 1, squeeze=False, sharex=not heights, sharey=sharey, gridspec_kw={"height_ratios": ratios}
    )
    column = list(grid[:, 0])
    for axes in column:
        axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, which="both")
    return figure, column


def _assignments(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Write a config as the command line takes it: a line `key=value` for each key."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
