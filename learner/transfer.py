"""Transfer of arrays from the host to a policy's device, for which the host does not wait.

Legend (docs/notation.md): B windows, S observed steps.
"""

from itertools import accumulate, pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from longview.learner.windows import Batch

ALIGNMENT = 16
"""Bytes to whose multiples the arrays of a packed batch are aligned, so that kernels can load vectors."""


def pack(batch: Batch[NDArray[Any]], device: torch.device) -> Batch[Tensor]:
    """Return a batch as tensors of the host, ready for `send`.

    For a GPU, the tensors are views of one pinned buffer, so that a single copy takes them there. The CPU
    takes the arrays as they are.
    """
    tensors = [torch.from_numpy(array) for array in batch.arrays]
    if device.type == "cpu":
        return batch.with_arrays(tensors)
    ends = accumulate((-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors), initial=0)
    places = list(pairwise(ends))
    buffer = torch.empty(places[-1][1], dtype=torch.uint8, pin_memory=True)
    return batch.with_arrays(
        _view(buffer, start, tensor).copy_(tensor) for (start, _), tensor in zip(places, tensors, strict=True)
    )


def send(batch: Batch[Tensor], device: torch.device) -> Batch[Tensor]:
    """Start the copy of a packed batch to its device, and return the tensors there.

    The copy lines up behind the work that the device has, and the host goes on at once. A host that is ahead
    of its device thus sends a batch while the step before it is computed.
    """
    if device.type == "cpu":
        return batch
    storage = batch.frame_BS.untyped_storage()
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage).to(device, non_blocking=True)
    return batch.with_arrays(_view(buffer, int(x.storage_offset()) * x.itemsize, x) for x in batch.arrays)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """Start the copy of one array to a device, and return the tensor there."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """View a part of a buffer of bytes, with the type and shape of another tensor."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
