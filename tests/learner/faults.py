"""Faults that test_gpu.py plants in the learner, to show that it finds them. Each is a context manager."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from longview.learner import encoder, flat, laps, memory, policy, session, train
from longview.learner.encoder import spatial_softmax
from longview.learner.flat import FlatWeights
from longview.learner.laps import Lap
from longview.learner.policy import Policy


@contextmanager
def replaced(owner: Any, name: str, wrap: Callable[..., Any]) -> Iterator[None]:
    """Replace a function by one that gets it as its first argument."""
    original = getattr(owner, name)
    with mock.patch.object(owner, name, lambda *args, **kwargs: wrap(original, *args, **kwargs)):
        yield
