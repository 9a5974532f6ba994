"""What a run's driver reads in its store: whether the learner has enough to draw, and what was collected."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longview.actors.config import ActorsConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.driver.launch import collection_of
from longview.cluster.roles.rank import limiter_of, share_out
from longview.cluster.run.config import read_config
from longview.cluster.run.services import redis_server
from longview.monitoring.hub import Hub
from longview.replay.episode import BY_EXPERT, BY_POLICY, CONTROLLER, EXPERT_ACTION, Episode
from longview.replay.store import StoreAddress

TASK = load_task("return_point")
SETTINGS = ["replay.refresh_seconds=0", "learner.validation_episodes=2"]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[StoreAddress]:
    """A store with six demonstrations."""
    with redis_server(tmp_path / "redis") as url:
        address = StoreAddress(url, "feeding")
        store = address.connect(read_config(None, SETTINGS).replay)
        store.register(TASK.spec)
        worker = Worker(TASK, ActorsConfig(), 0, "expert", store, Hub().report)
        worker.work(Order("demo", 0, 6), None)
        store.close()
        yield address


def test_actors_collect_for_a_learner_that_may_not_draw_what_is_held_out(address: StoreAddress) -> None:
    """If the driver counted steps that the learner may not draw, both would wait for each other."""
    config = read_config(None, [*SETTINGS, "collect.kind=rollout"])
    selection = config.learner.selection(TASK.spec.name)
    driver, rank = address.connect(config.replay), address.connect(config.replay)
    _, everything = driver.sizes(selection)
    config = replace(config, replay=replace(config.replay, minimum_steps=everything))
    collection = collection_of(config, TASK.spec, driver)
    rank.hold_out(share_out(driver, TASK.spec, config.learner.validation_episodes).held_out)
    limiter = limiter_of(config, TASK.spec, 0, lambda: False)
    limiter.drawn = limiter.free
    assert "minimum_steps" in limiter.refusal(1, *rank.sizes(selection)), "the learner waits"
    newest = config.learner.publish_every
    given = [collection.take(newest, newest) for _ in range(50)]
    assert None not in given, collection.held
    driver.close()
    rank.close()


@pytest.mark.parametrize(("kind", "steps"), [("takeover", 5), ("labels", 12)])
def test_a_run_that_goes_on_counts_the_experts_steps_in_the_store(
    address: StoreAddress, kind: str, steps: int
) -> None:
    """A run that is killed has committed episodes of orders that nobody has counted."""
    config = read_config(None, [*SETTINGS, f"collect.kind={kind}"])
    store = address.connect(config.replay)
    demonstration = store.read(store.ids("demo")[0])
    arrays = {name: rows[:12] for name, rows in demonstration.arrays.items() if name != EXPERT_ACTION}
    arrays[CONTROLLER] = np.repeat([BY_POLICY, BY_EXPERT], [7, 5]).astype(arrays[CONTROLLER].dtype)
    meta = replace(demonstration.meta, id="correction.return_point.0", source="correction")
    store.add(Episode(meta, "success", arrays))
    found = [collection_of(config, TASK.spec, store, known).expert_steps for known in (None, 3, 900)]
    assert found == [steps, steps, 900]
    store.close()
