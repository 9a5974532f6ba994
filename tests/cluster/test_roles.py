"""What the roles know besides calling others."""

from pathlib import Path

import pytest

from actors.config import ActorsConfig
from actors.task import load_task
from actors.worker import Order, Worker
from cluster.roles import by_position, held_out
from cluster.services import redis_server
from monitoring.hub import Hub
from replay.config import StoreConfig
from replay.episode import Episode, EpisodeMeta, episode_id
from replay.store import EpisodeStore


def test_the_last_demonstrations_are_held_out(tmp_path: Path) -> None:
    task = load_task("counting")
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(task.spec)
        assert held_out(store, 4) == []
        worker = Worker(task, ActorsConfig(simulators=4, noise=0), 0, "actor-0", 8, store, Hub().report)
        for purpose in ("demo", "rollout"):
            worker.work(Order(purpose, 0, 12, beta=1.0), None)
        demos = [episode_id("demo", "counting", index) for index in range(12)]
        assert held_out(store, 4) == demos[8:]
        assert held_out(store, 0) == []

        imported = []
        for index in range(9):
            meta = EpisodeMeta(episode_id("import", "counting", index), "counting", 0, "import")
            store.add(Episode(meta, "success", store.read(demos[index]).arrays))
            imported.append(meta.id)
            of_imported = imported[5:] if index == 8 else []
            assert held_out(store, 4) == [*demos[8:], *of_imported]
        store.close()


def test_positions_of_metrics_are_few() -> None:
    series = by_position({-2: 1.0, -1: 2.0, 0: 3.0, 1: 4.0, 63: 5.0, 64: 7.0, 200: 9.0})
    assert series == pytest.approx({"past": 1.5, "0": 3.0, "1": 4.0, "63": 7.0})
