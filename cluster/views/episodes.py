"""Stored episodes to look at: their seeds and actions make them happen again, before a camera."""

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
from longview.replay.store import EpisodeStore

log = logging.getLogger(__name__)

SHOWN = 4
"""How many episodes a report shows: the newest collected ones."""
PATIENCE_SECONDS = 60.0


def stage(task: Task) -> Environment:
    """A simulator that renders; one that does not is found out before anything else is done.

    Raises:
        ConfigError: the task draws no pictures.
        SimulatorError: this machine lacks what the task needs for it.
    """
    env = make_simulator(task, "rgb_array")
    if "rgb_array" not in env.metadata["render_modes"]:
        raise ConfigError(f"task {task.spec.name} cannot be shown: it draws no pictures")
    env.reset(seed=0)
    env.render()
    return env


def film_of(env: Environment, episode: Episode, only: Container[int] | None = None) -> Film:
    """Frames of a stored episode: one before every step, and one at the end.

    Args:
        env: where it happens.
        episode: the episode.
        only: the frames that are needed; the others are None.
    """
    env.reset(seed=episode.meta.seed)
    frames: list[Any] = []
    for step, action in enumerate(chain(episode.arrays[ACTION], [None])):
        frames.append(env.render() if only is None or step in only else None)
        if action is not None:
            env.step(action)
    return frames


def show_newest(config: RunConfig, store: tuple[str, str], sheet: Path) -> None:
    """Draw a contact sheet of the newest collected episodes, or else demonstrations, if the task draws
    pictures. Done by a Ray worker: a renderer that dies, or takes too long, does no harm.

    Args:
        config: the run's.
        store: URL and namespace.
        sheet: where the PNG goes.
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


def _draw(config: RunConfig, store: tuple[str, str]) -> bytes:
    task, png = task_of(config), BytesIO()
    env = stage(task)
    episodes = EpisodeStore.connect(*store, config.replay)
    ids = [id for source in ("demo", "import", "dagger", "rollout") for id in episodes.ids(source)]
    films = []
    for episode in map(episodes.read, ids[-SHOWN:]):
        films.append(film_of(env, episode, only=moments(len(episode.arrays[ACTION]) + 1)))
    write_sheet(png, films, task.spec.control_hz)
    return png.getvalue()
