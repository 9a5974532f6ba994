"""Tests of publishing and saving beside the training."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longview.learner import checkpoint, files
from longview.learner.config import LearnerConfig
from longview.learner.flat import flatten
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.snapshots import writing
from longview.learner.train import train
from tests.conftest import FullDisk

PATIENCE = 30.0


def test_training_goes_on_while_a_snapshot_is_written_and_the_next_one_waits(
    tiny: LearnerConfig, policy: DiffusionPolicy, tmp_path: Path
) -> None:
    published: dict[int, bytes] = {}
    saved: list[list[int]] = []
    begun, may_end = threading.Event(), threading.Event()

    def publish(version: int, data: memoryview) -> None:
        published[version] = bytes(data)
        saved.append(files.steps(tmp_path))
        begun.set()
        assert may_end.wait(PATIENCE)

    before, average = policy_to_bytes(policy), flatten(policy).vector.data
    with writing(tiny, before, publish, tmp_path) as snapshots:
        snapshots.take(1, average, {"weights": average}, publishing=True)
        assert begun.wait(PATIENCE)
        average.fill_(0.5)  # the next training steps do not change what is being written
        following = threading.Thread(target=snapshots.take, args=(2, average, {}, True))
        following.start()
        following.join(0.2)
        assert following.is_alive(), "it does not overwrite the copy that is being written"
        may_end.set()
        following.join(PATIENCE)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.policy) == (1, before)
    assert published[1] == before
    assert saved == [[1], [1]], "what is published is saved already"
    assert all((each == 0.5).all() for each in policy_from_bytes(published[2]).parameters())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snapshots")]


def test_an_error_while_publishing_ends_the_training(tiny: LearnerConfig, arguments: dict[str, Any]) -> None:
    def publish(version: int, data: memoryview) -> None:
        raise ConnectionError(f"version {version} has no board")

    steps = itertools.count()
    arguments |= {"publish": publish, "should_stop": lambda: next(steps) > 100}
    with pytest.raises(ConnectionError, match="version 10 has no board"):
        train(replace(tiny, steps=40, publish_every=10, checkpoint_every=40), **arguments)
    assert next(steps) == 20, "the next snapshot raises the error of the last one"


def test_a_disk_that_is_full_at_the_end_of_training_is_said(
    tiny: LearnerConfig, arguments: dict[str, Any], full_disk: FullDisk
) -> None:
    full_disk.fill(leaving=4096)
    with pytest.raises(OSError, match="No space left"):
        train(tiny, **arguments | {"checkpoints": full_disk.folder})


def test_a_training_that_is_killed_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """The process saves all the time, so that it is killed while it writes."""
    script = f"""
import torch
from pathlib import Path
from longview.learner.snapshots import writing
from longview.learner.config import LearnerConfig, policy_config
from longview.actors.task import load_task
from longview.learner.policy import policy_to_bytes
from longview.learner.flat import flatten
policy = policy_config().make(load_task("return_point").spec)
data, vector = policy_to_bytes(policy), flatten(policy).vector.data
with writing(LearnerConfig(), data, lambda version, data: None, Path({str(tmp_path)!r})) as snapshots:
    for step in range(1, 10**6):
        vector.fill_(step)
        snapshots.take(step, vector, {{"weights": vector}}, publishing=False)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while len(files.steps(tmp_path)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    newest = files.folders(tmp_path)[-1]
    found = checkpoint.load(newest)
    assert (found.training["weights"] == found.step).all()
    assert all((each == found.step).all() for each in policy_from_bytes(found.policy).parameters())
