"""Tensors as files of safetensors, written without holding the interpreter's lock.

The library safetensors copies all tensors while it holds the lock, so that training would wait for it.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types of numbers in such a file."""


def file_parts(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> list[memoryview]:
    """Return the parts of a file of tensors, in their order. All but the first are views of the tensors.

    Args:
        tensors: tensors of the CPU, by name.
        about: texts to keep in the file, by name.

    Raises:
        KeyError: a tensor has numbers of another type than `NAMES`.
    """
    header: dict[str, object] = {"__metadata__": dict(about)} if about else {}
    parts, end = list[memoryview](), 0
    # Larger numbers come first, so that all are aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        parts.append(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        places = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *parts]


def joined(parts: Sequence[memoryview]) -> memoryview:
    """Copy parts into one block of memory. `bytes.join` would hold the interpreter's lock meanwhile."""
    block, end = np.empty(sum(part.nbytes for part in parts), np.uint8), 0
    for part in parts:
        block[end : end + part.nbytes] = part
        end += part.nbytes
    return block.data.toreadonly()
