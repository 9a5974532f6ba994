import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from longview.replay.errors import LimiterTimeout
from longview.replay.limiter import Limiter
from longview.replay.store import EpisodeStore

Connect = Callable[..., EpisodeStore]


def sample(store: EpisodeStore, count: int) -> int:
    return len(store.sample({"rollout/success": 1}, count, 0, 0, np.random.default_rng(0)))


def test_off_at_first(connect: Connect, write: Any) -> None:
    write(store := connect(), 1)
    assert sample(store, 1000) == 1000
    assert store.limiter == Limiter(drawn=1000)


def test_no_more_is_drawn_than_was_committed_times_the_ratio(connect: Connect, write: Any) -> None:
    store = connect()
    store.limiter = Limiter(samples_per_insert=2.5, timeout_seconds=0.1)
    write(store, 1)
    write(store, 2, source="demo")  # not in the selection
    assert sample(store, 20) == 20
    with pytest.raises(
        LimiterTimeout,
        match=r"waited 0\.\d+ s to draw 6 steps: 20 steps were drawn and 6 are wanted for 10 committed ones: "
        r"2\.6 for each, samples_per_insert is 2\.5",
    ):
        sample(store, 6)
    assert sample(store, 5) == 5
    write(connect(), 3)
    assert sample(store, 25) == 25
    assert store.limiter.drawn == 50
    assert store.limiter.waited_seconds >= 0.1


def test_what_was_evicted_counts_as_committed(connect: Connect, write: Any) -> None:
    write(store := connect(shards=1), 0)
    small = connect(byte_budget=store.stats().total.bytes)
    for number in range(1, 4):
        write(small, number)
    store.limiter = Limiter(samples_per_insert=1.0, timeout_seconds=0.05)
    assert sample(store, 40) == 40
    with pytest.raises(LimiterTimeout, match="for 40 committed"):
        sample(store, 1)


def test_nothing_is_drawn_before_there_is_enough(connect: Connect, write: Any) -> None:
    store = connect()
    store.limiter = Limiter(minimum_steps=25, timeout_seconds=0.1)
    for number, stored in enumerate([0, 10, 20]):
        with pytest.raises(
            LimiterTimeout, match=rf"{stored} steps are stored to draw from, minimum_steps is 25"
        ):
            sample(store, 1)
        write(store, number)
    assert sample(store, 1000) == 1000


def test_whoever_waits_goes_on_when_there_is_more_or_the_limit_is_another(
    connect: Connect, write: Any
) -> None:
    store, writer = connect(), connect()
    write(writer, 0)
    ways: list[Callable[[], object]] = [
        lambda: write(writer, 1),
        lambda: setattr(store.limiter, "samples_per_insert", None),
        lambda: setattr(store, "limiter", Limiter()),
    ]
    with ThreadPoolExecutor(1) as pool:
        for way in ways:
            store.limiter = Limiter(samples_per_insert=1.0)
            sample(store, 10 * len(store.ids()))
            waiting = pool.submit(sample, store, 10)
            time.sleep(0.15)
            assert not waiting.done()
            way()
            assert waiting.result(10) == 10


def test_a_cancelled_wait_goes_on(connect: Connect, write: Any) -> None:
    write(store := connect(), 0)
    stop = threading.Event()
    store.limiter = Limiter(samples_per_insert=0.1, cancelled=stop.is_set)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sample, store, 10)
        time.sleep(0.15)
        assert not waiting.done()
        stop.set()
        assert waiting.result(10) == 10


def test_a_store_does_not_remember_limits(connect: Connect, write: Any) -> None:
    write(store := connect(), 0)
    store.limiter = Limiter(samples_per_insert=1.0, minimum_steps=10**6, timeout_seconds=0.05)
    with pytest.raises(LimiterTimeout):
        sample(store, 1)
    assert sample(connect(), 100) == 100
