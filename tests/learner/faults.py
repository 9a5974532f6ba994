"""Faults that test_gpu.py plants in the learner, to show that it would find them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from longview.learner import memory, train
from longview.learner.flat import FlatWeights
from longview.learner.laps import Lap
from longview.learner.windows import Batch


def arange_on_the_cpu() -> AbstractContextManager[Any]:
    """Make positions on the CPU, whatever the device of what they are added to."""
    arange = torch.arange

    def on_the_cpu(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return arange(*args, **kwargs)

    return mock.patch.object(torch, "arange", on_the_cpu)


def number_in_a_step() -> AbstractContextManager[Any]:
    """Read the loss of every step."""
    return before(FlatWeights, "backward", lambda weights, loss: loss.item())


def truth_in_a_step() -> AbstractContextManager[Any]:
    """Ask at every step whether the gradient is finite."""
    return before(Lap, "add", lambda lap, taken, error_BT, target_BT, loss_B, norm: bool(norm.isfinite()))


def mask_in_a_step() -> AbstractContextManager[Any]:
    """Select the errors that count by a mask, at every step."""
    return before(Lap, "add", lambda lap, taken, error_BT, target_BT, loss_B, norm: error_BT[target_BT])


def pageable_batch() -> AbstractContextManager[Any]:
    """Copy each array of a batch on its own, and wait for each copy."""

    def send(batch: Batch[Tensor], device: torch.device) -> Batch[Tensor]:
        return batch.with_arrays(tensor.to(device) for tensor in batch.arrays)

    return mock.patch.object(train, "send", send)


def gradient_by_gradient() -> AbstractContextManager[Any]:
    """Add the gradient of each parameter to the vector's with an operation of its own."""

    def backward(weights: FlatWeights, loss: Tensor) -> None:
        weights.gradient.zero_()
        for parameter, gradient in zip(weights.parameters, weights.gradients, strict=True):
            parameter.grad = gradient
        loss.backward()  # type: ignore[no-untyped-call]

    return mock.patch.object(FlatWeights, "backward", backward)


def constants_in_a_decision() -> AbstractContextManager[Any]:
    """Compute the constants of the sampler for every decision."""

    def prepare(self: Any, *args: Any) -> None:
        self._sample = self._policy.sampler()

    return before(memory.Tokens, "sample", prepare)


def before(owner: Any, name: str, act: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Do something with the arguments of a function before it is called."""
    original = getattr(owner, name)

    def replacement(*args: Any) -> Any:
        act(*args)
        return original(*args)

    return mock.patch.object(owner, name, replacement)
