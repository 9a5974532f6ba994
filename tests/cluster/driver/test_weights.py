"""Weights on their way from a board to a driver, under real Ray."""

import time
from pathlib import Path

import numpy as np
import ray

from longview.cluster.driver.launch import ray_cluster
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.ray import ALWAYS_BACK, LEAST_OBJECTS, start
from longview.cluster.run.config import RunConfig

LARGE = 300 << 20
"""Bytes of weights of which the smallest object store has room for none."""


def refreshed(held: HeldWeights, version: int, keep: set[int]) -> None:
    """Take turns of a driver until it holds a version."""
    deadline = time.monotonic() + 60
    while held.newest != version:
        assert time.monotonic() < deadline
        assert held.refresh(keep) in (None, version)
    assert held.refresh(keep) is None, "nothing newer was published"


def test_the_driver_holds_copies_of_large_weights_that_outlive_the_board(tmp_path: Path) -> None:
    assert LARGE > LEAST_OBJECTS
    weights = {version: np.full(LARGE, version, np.uint8) for version in (1, 2)}
    with ray_cluster(RunConfig(), None):
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
