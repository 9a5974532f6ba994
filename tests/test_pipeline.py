"""The counting task through the whole pipeline: actor, Redis, segments, windows, and a learner that checks
its batches. Any gap, repeat, swap or wrong mask shows as a wrong count."""

from pathlib import Path

import numpy as np
import pytest

from longview.actors.config import ActorsConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.cluster.run.services import redis_server
from longview.learner.config import policy_config
from longview.learner.windows import Batch, build, nows
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore

TASK = load_task("counting")


class CheckingLearner:
    """Trains nothing; asserts continuity, padding and masks of every window."""

    def __init__(self, past: int, future: int) -> None:
        self.offset_T = np.arange(-past, future)
        self.windows = self.starts = self.ends = 0

    def feed(self, batch: Batch, now_B: np.ndarray, length_B: np.ndarray, first_B: np.ndarray) -> None:
        """Check a batch, given the present step, the episode's length and its first count for each window."""
        age_S = np.arange(1 - batch.context_length, 1)
        step_BS, step_BT = now_B[:, None] + age_S, now_B[:, None] + self.offset_T
        np.testing.assert_array_equal(batch.seen_BS, step_BS >= 0)
        seen = batch.observation["count"][batch.frame_BS, 0] == first_B[:, None] + step_BS
        assert (seen | ~batch.seen_BS).all(), "an observed step is not the one it should be"
        inside = (step_BT >= 0) & (step_BT < length_B[:, None]) & (self.offset_T > -batch.context_length)
        np.testing.assert_array_equal(batch.target_BT, inside)
        right = batch.action_BTA[..., 0] == first_B[:, None] + step_BT
        assert (right | ~batch.target_BT).all(), "an action target is not the one it should be"
        self.windows += batch.size
        self.starts += int((~batch.seen_BS).any(axis=1).sum())
        self.ends += int((step_BT >= length_B[:, None]).any(axis=1).sum())


@pytest.mark.parametrize("past", [0, 2, "all"])
def test_every_window_holds_the_steps_it_should(tmp_path: Path, past: int | str) -> None:
    horizon = policy_config(context_length=64, past_actions=past, future_actions=17 if past == "all" else 14)
    horizon = horizon.horizon(TASK.spec)
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig(chunk_steps=7, shards=3, refresh_seconds=0))
        store.register(TASK.spec)
        worker = Worker(TASK, ActorsConfig(simulators=5, noise=0), 0, "actor-0", store, Hub().report)
        worker.work(Order("demo", 0, 40), None)
        first = {id: store.read(id).arrays["observation.count"][0, 0] for id in store.ids()}

        learner, rng = CheckingLearner(horizon.past, horizon.future), np.random.default_rng(0)
        for length in (1, 2, 8, 33, 64):
            segments = store.sample({"demo": 1.0}, 100, length - 1, horizon.after, rng)
            learner.feed(
                build(segments, TASK.spec, horizon, length, nows(segments, 1, rng)),
                np.array([segment.now for segment in segments]),
                np.array([segment.episode_length for segment in segments]),
                np.array([first[segment.meta.id] for segment in segments]),
            )
        store.close()
    assert learner.windows == 500
    assert learner.starts > 100
    assert learner.ends > 100
