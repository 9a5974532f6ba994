"""Weights on their way from a board to a driver, under real Ray."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from longview.cluster.driver.launch import ray_cluster
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.ray import ALWAYS_BACK, LEAST_OBJECTS, start
from longview.cluster.run.config import RunConfig

LARGE = 300 << 20
"""Bytes of weights of which the smallest object store has room for none."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(RunConfig(), None):
        yield


def refreshed(held: HeldWeights, version: int, keep: set[int]) -> None:
    """Take turns of a driver until it holds a version."""
    deadline = time.monotonic() + 60
    while held.newest != version:
        assert time.monotonic() < deadline
        assert held.refresh(keep) in (None, version)
    assert held.refresh(keep) is None, "nothing newer was published"


class OlderBoard:
    """A board that is started again between calls: first without a checkpoint, later with an older one."""

    def __init__(self) -> None:
        self.newest, self.empty = 2, True

    def version(self) -> int:
        return self.newest

    def latest(self) -> tuple[int, list[Any]] | None:
        if self.empty:
            self.empty = False
            return None
        return self.newest, [ray.put(np.full(4, self.newest, np.uint8))]

    def forget(self) -> None:
        self.newest = 1


def test_a_board_that_comes_back_with_less_is_asked_again_and_not_followed(cluster: None) -> None:
    held = HeldWeights(board := start(OlderBoard, num_cpus=0))
    assert held.refresh(keep=set()) is None
    refreshed(held, 2, keep=set())
    ray.get(board.forget.remote())
    for _ in range(5):
        assert held.refresh(keep=set()) is None
    assert held.newest == 2


def test_the_driver_holds_copies_of_large_weights_that_outlive_the_board(
    cluster: None, tmp_path: Path
) -> None:
    assert LARGE > LEAST_OBJECTS
    weights = {version: np.full(LARGE, version, np.uint8) for version in (1, 2)}
    board = start(WeightBoard, tmp_path, **ALWAYS_BACK)
    held = HeldWeights(board)
    assert held.refresh(keep=set()) is None
    for version, array in weights.items():
        board.publish.remote(version, array)
        refreshed(held, version, keep={1})
    ray.kill(board)
    for version, array in weights.items():
        (reference,), age = held.of(version)
        assert np.array_equal(ray.get(reference), array)
        assert age >= 0
