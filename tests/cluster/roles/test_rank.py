"""Tests of a learner rank in this process, with a real store."""

from pathlib import Path

import pytest

from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.roles.rank import share_out, train_rank
from longview.cluster.run.config import read_config
from longview.cluster.run.services import redis_server
from longview.monitoring.hub import Hub
from longview.replay.store import StoreAddress

TINY = ["learner.steps=2", "learner.warmup=1", "learner.batch_size=4", "learner.validation_episodes=0"]


def test_weights_follow_from_the_seed_and_come_early_where_actors_collect(tmp_path: Path) -> None:
    task = load_task("return_point")
    with redis_server(tmp_path / "redis") as url:
        address = StoreAddress(url, "rank")
        store = address.connect(read_config(None, TINY).replay)
        store.register(task.spec)
        Worker(task, read_config(None, TINY).actors, 0, "actor-0", store, Hub().report).work(
            Order("demo", 0, 2), None
        )

        def trained(name: str, *settings: str) -> bytes:
            weights.clear()
            train_rank(
                read_config(None, [*TINY, *settings]),
                tmp_path / name,
                address,
                share_out(store, task.spec, 0),
                publish=lambda version, found: weights.update({version: bytes(found)}),
                send=lambda _: None,
                should_stop=lambda: False,
            )
            return weights[max(weights)]

        weights = dict[int, bytes]()
        run_s = trained("run's")
        assert trained("again") == run_s
        assert trained("same", "seed=5", "learner.seed=0") == run_s
        assert trained("other", "learner.seed=1") != run_s
        assert list(weights) == [2]
        assert trained("collecting", "collect.kind=takeover") == run_s, "equal draws, since nobody collects"
        assert list(weights) == [1, 2]
        store.close()
    with pytest.raises(ValueError, match=r"learner\.seed must not be negative"):
        read_config(None, ["learner.seed=-1"])
