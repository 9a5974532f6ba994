"""Films of stored episodes show what was recorded."""

from pathlib import Path

import numpy as np

from longview.actors.config import ActorsConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.run.services import redis_server
from longview.cluster.views.episodes import film_of, stage
from longview.monitoring.film import moments
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore


def test_an_episode_is_shown_from_its_first_moment_to_its_outcome(tmp_path: Path) -> None:
    task = load_task("return_point")
    with redis_server(tmp_path / "redis") as url:
        store = EpisodeStore.connect(url, "films", StoreConfig())
        store.register(task.spec)
        worker = Worker(task, ActorsConfig(simulators=1), 3, "films", store, lambda _: None)
        worker.work(Order("demo", 0, 2), None)
        episodes = [store.read(id) for id in store.ids("demo")]
        store.close()
    assert len(episodes) == 2
    scene = stage(task)
    for episode in episodes:
        film = film_of(scene, episode)
        assert len(film) == episode.length + 1
        position = scene.unwrapped
        # The point came back to the side that it had left, where the recorded one was rewarded.
        assert episode.outcome == "success"
        assert position.x * position.side > 0
        assert position.y > 0.5
        some = film_of(scene, episode, only=moments(len(film)))
        shown = [index for index, frame in enumerate(some) if frame is not None]
        assert shown == sorted(set(moments(len(film))))
        assert shown[-1] == episode.length
        assert all(np.array_equal(some[index], film[index]) for index in shown)
