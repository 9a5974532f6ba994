"""Episodes for the viewer of Rerun: cameras, numbers, who was in control, and a policy's decisions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Array = Any
"""A numpy array."""

JPEG_QUALITY: Final = 90
"""Quality of the pictures, at which they take a tenth of their bytes."""
STEP, TIME = "step", "time"
"""Timelines: steps of an episode, and seconds since its beginning."""


@dataclass(frozen=True)
class Decision:
    """One decision of a policy along a recorded episode."""

    step: int
    """Step of the episode at which the policy decides."""
    action_TA: Array
    """Chosen actions, (T_a, A), the first of them for this step."""
    attention_S: Array | None
    """Share of the attention that each of the last T_o steps gets, (T_o,), the present one last; 0 for steps
    before the episode. None if the policy attends to no single frames."""


@dataclass(frozen=True)
class Scene:
    """One episode as the viewer shows it."""

    name: str
    """Name of the episode, from which its entities' paths begin."""
    pictures: Mapping[str, Array]
    """Pictures by camera, (T, H, W, 3) uint8."""
    numbers: Mapping[str, Array]
    """Curves by name, (T, D): states, actions, reward."""
    controllers: Sequence[str]
    """Who was in control, for each step."""
    outcome: str
    """How the episode ended."""
    facts: str
    """Further facts about the episode, as Markdown."""
    decisions: Sequence[Decision] = ()
    """Decisions of a policy, by ascending step."""


def write_rrd(file: Path, title: str, scenes: Iterable[Scene], hz: float) -> int:
    """Write episodes as a recording of Rerun, with a layout: a tab for each episode.

    Args:
        file: the file to write, `.rrd`.
        title: name of what is shown, such as the task.
        scenes: the episodes, one after the other; each needs another name.
        hz: steps per second.

    Returns:
        Number of episodes.
    """
    import rerun as rr
    from rerun import blueprint as layout

    with rr.RecordingStream(f"longview {title}") as stream:
        stream.save(file)
        tabs = []
        for scene in scenes:
            _write_scene(stream, scene, hz)
            tabs.append(_tab(scene))
        stream.send_blueprint(layout.Blueprint(layout.Tabs(*tabs)))
        stream.flush(blocking=True)
    return len(tabs)


def _write_scene(stream: Any, scene: Scene, hz: float) -> None:
    import rerun as rr

    def at(step: int) -> None:
        stream.set_time(STEP, sequence=step)
        stream.set_time(TIME, duration=step / hz)

    def curves(rows: Array, *path: str, start: int = 0) -> None:
        """Log rows (T, D), or (T,), from a step on."""
        steps = range(start, start + len(rows))
        seconds = [step / hz for step in steps]
        index = [rr.TimeColumn(STEP, sequence=steps), rr.TimeColumn(TIME, duration=seconds)]
        scalars = rows.reshape(len(rows), -1).astype("float64")
        stream.send_columns(_path(scene, *path), index, rr.Scalars.columns(scalars=scalars))

    stream.log(_path(scene, "facts"), rr.TextDocument(scene.facts, media_type="text/markdown"), static=True)
    for camera, frames in scene.pictures.items():
        for step, frame in enumerate(frames):
            at(step)
            picture = rr.Image(frame).compress(jpeg_quality=JPEG_QUALITY)
            stream.log(_path(scene, "cameras", camera), picture)
    for name, rows in scene.numbers.items():
        curves(rows, "numbers", name)
    for step, (before, now) in enumerate(zip((None, *scene.controllers), scene.controllers, strict=False)):
        if now != before:
            at(step)
            stream.log(_path(scene, "controller"), rr.TextLog(now))
    at(len(scene.controllers) - 1)
    stream.log(_path(scene, "outcome"), rr.TextLog(scene.outcome))
    for decision in scene.decisions:
        curves(decision.action_TA, "policy", "action", start=decision.step)
        if decision.attention_S is not None:
            at(decision.step)
            stream.log(_path(scene, "policy", "attention"), rr.BarChart(decision.attention_S))
            steps_back = sum(age * share for age, share in enumerate(decision.attention_S[::-1].tolist()))
            stream.log(_path(scene, "policy", "seconds_back"), rr.Scalars(steps_back / hz))
    stream.reset_time()


def _tab(scene: Scene) -> Any:
    """Lay out one episode: cameras, the policy beside them, then curves, then words."""
    from rerun import blueprint as layout

    top = [layout.Spatial2DView(origin=_path(scene, "cameras", name), name=name) for name in scene.pictures]
    if any(decision.attention_S is not None for decision in scene.decisions):
        top.append(layout.BarChartView(origin=_path(scene, "policy", "attention"), name="attention by frame"))
        look = _path(scene, "policy", "seconds_back")
        top.append(layout.TimeSeriesView(origin=look, name="attention: seconds back"))
    plots = []
    for name in scene.numbers:
        chosen = [_path(scene, "policy", "action")] if name == "action" and scene.decisions else []
        shown = [_path(scene, "numbers", name), *chosen]
        plots.append(layout.TimeSeriesView(origin=_path(scene), contents=shown, name=name))
    words = [
        layout.TextLogView(
            origin=_path(scene),
            contents=[_path(scene, "controller"), _path(scene, "outcome")],
            name="in control, outcome",
        ),
        layout.TextDocumentView(origin=_path(scene, "facts"), name="episode"),
    ]
    rows = [layout.Horizontal(*part) for part in (top, plots, words) if part]
    return layout.Vertical(*rows, name=scene.name)


def _path(scene: Scene, *parts: str) -> str:
    """Make the path of an entity, in which names may hold any character."""
    from rerun import new_entity_path

    return str(new_entity_path([scene.name, *parts]))
