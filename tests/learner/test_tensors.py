"""Tests of files of tensors against the library that reads them."""

import json

import pytest
import torch
from safetensors.torch import load

from longview.learner.tensors import file_parts, joined

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "weights": torch.arange(6.0).reshape(2, 3),
    "step": torch.tensor(3.0),
    "none": torch.empty(0, 4),
    "counts": torch.tensor([1, 2**40]),
    "pixels": torch.tensor([[7], [255]], dtype=torch.uint8),
}


def test_the_library_reads_them_back() -> None:
    data = bytes(joined(file_parts(TENSORS, {"about": "a test"})))
    found = load(data)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    size = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + size])["__metadata__"] == {"about": "a test"}
    assert size % 8 == 0


def test_parts_are_views_and_a_joined_file_is_not() -> None:
    weights = torch.zeros(1000)
    parts = file_parts({"weights": weights})
    data = joined(parts)
    weights.fill_(1.0)
    assert load(b"".join(parts))["weights"].sum() == 1000
    assert load(bytes(data))["weights"].sum() == 0


def test_numbers_of_an_unknown_type_are_refused() -> None:
    with pytest.raises(KeyError, match="complex64"):
        file_parts({"weights": torch.zeros(2, dtype=torch.complex64)})
