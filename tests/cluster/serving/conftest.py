"""Fixtures of the tests of serving: a policy, its checkpoint, and servers of it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from longview.learner.policy import Policy
from longview.replay.episode import Episode
from tests.cluster.serving.serving import Serve, Served, episode, make_policy, write_checkpoint


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    """Return some episodes of the expert."""
    return [episode(seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: tiny tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def policy(episodes: list[Episode]) -> Policy:
    return make_policy(episodes, seed=0)


@pytest.fixture
def checkpoints(policy: Policy, tmp_path: Path) -> Path:
    """Return a folder with the checkpoint of step 7."""
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, policy, 7)
    return folder


@pytest.fixture
def serve(checkpoints: Path) -> Iterator[Serve]:
    """Return a function that starts a server of `checkpoints`, with the settings of `Served`."""
    with ExitStack() as servers:

        def start(**settings: Any) -> Served:
            server = Served(checkpoints, **settings)
            servers.callback(server.stop)
            return server

        yield start
