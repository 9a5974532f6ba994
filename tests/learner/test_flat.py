import torch
from torch import nn

from longview.learner.flat import ALIGNMENT, flatten


def test_flat_weights_are_the_modules_own() -> None:
    module = nn.Linear(3, 2)
    before = torch.cat([module.weight.flatten(), module.bias])
    flat = flatten(module)
    assert torch.equal(flat.dense(flat.vector), before)
    flat.backward(module(torch.ones(1, 3)).sum())
    assert flat.vector.grad is not None
    assert flat.dense(flat.vector.grad).tolist() == [1.0] * 8
    flat.vector.data.zero_()
    assert module(torch.ones(1, 3)).eq(0).all()


def test_every_parameter_is_aligned_and_the_gaps_stay_zero() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    flat = flatten(module)
    starts = [parameter.data.storage_offset() for parameter in module.parameters()]
    assert starts == [0, 16, 24, 32]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert len(flat.vector) == 36
    optimizer = torch.optim.AdamW([flat.vector], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        flat.backward(module(torch.ones(1, 3)).square().sum())
        optimizer.step()
    gap = torch.ones(36)
    for part in flat.parts(gap):
        part.zero_()
    assert gap.sum() == 36 - 26
    assert flat.vector.data[gap.bool()].eq(0).all()


def test_vectors_without_gaps_come_back() -> None:
    flat = flatten(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)))
    dense = torch.arange(26.0)
    spread = flat.spread(dense)
    assert spread.shape == flat.vector.shape
    assert spread.sum() == dense.sum()
    assert torch.equal(flat.dense(spread), dense)


def test_a_parameter_without_influence_has_no_gradient() -> None:
    module = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    flat = flatten(module)
    for used in (1, 0):
        flat.backward(module[used](torch.ones(1, 3)).sum())
        assert [gradient.abs().sum() > 0 for gradient in flat.gradients] == [used == 0] * 2 + [used == 1] * 2
