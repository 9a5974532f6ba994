"""Films of stored episodes: their seeds and actions are simulated again, before a camera."""

import logging
from collections.abc import Container
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

from longview.actors.task import Environment, Task, make_simulator
from longview.cluster.run.config import ConfigError, RunConfig, task_of
from longview.monitoring.film import Film, moments, write_sheet
from longview.replay.episode import ACTION, Episode
from longview.replay.store import StoreAddress

log = logging.getLogger(__name__)

SHOWN = 4
"""Episodes that a report shows."""
PATIENCE_SECONDS = 60.0
"""Longest time that drawing them may take."""


def stage(task: Task) -> Environment:
    """Make a simulator that renders, and check that it does.

    Raises:
        ConfigError: the task draws no pictures.
        SimulatorError: this machine lacks something that the task needs for rendering.
    """
    env = make_simulator(task, "rgb_array")
    if "rgb_array" not in env.metadata["render_modes"]:
        raise ConfigError(f"task {task.spec.name} cannot be shown: it draws no pictures")
    env.reset(seed=0)
    env.render()
    return env


def film_of(env: Environment, episode: Episode, only: Container[int] | None = None) -> Film:
    """Simulate a stored episode again, and render a frame before every step and one at the end.

    Args:
        env: a simulator from `stage`.
        episode: the episode.
        only: indices of the frames to render; the others are None. By default all.
    """
    env.reset(seed=episode.meta.seed)
    frames: list[Any] = []
    for step, action in enumerate(chain(episode.arrays[ACTION], [None])):
        frames.append(env.render() if only is None or step in only else None)
        if action is not None:
            env.step(action)
    return frames


def show_newest(config: RunConfig, store: StoreAddress, sheet: Path) -> None:
    """Draw a contact sheet of the newest collected episodes, or of demonstrations if nothing was collected.

    A Ray worker does it, so that a renderer that dies or takes too long does no harm. There is no sheet if
    the task draws no pictures.

    Args:
        config: the run's config.
        store: store of the episodes.
        sheet: the PNG to write.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    drawn = ray.remote(num_cpus=0, max_retries=0)(_draw).remote(config, store)
    try:
        sheet.write_bytes(ray.get(drawn, timeout=PATIENCE_SECONDS))
    except GetTimeoutError:
        ray.cancel(drawn, force=True)
        log.info("no episodes are shown: to render them takes longer than %g s", PATIENCE_SECONDS)
    except (RayError, OSError) as error:
        log.info("no episodes are shown: %s", error)


def _draw(config: RunConfig, store: StoreAddress) -> bytes:
    task, png = task_of(config), BytesIO()
    env = stage(task)
    episodes = store.connect(config.replay)
    sources = ("demo", "import", "human", "correction", "rollout")
    ids = [id for source in sources for id in episodes.ids(source)]
    films = []
    for episode in map(episodes.read, ids[-SHOWN:]):
        films.append(film_of(env, episode, only=moments(len(episode.arrays[ACTION]) + 1)))
    write_sheet(png, films, task.spec.control_hz)
    return png.getvalue()
