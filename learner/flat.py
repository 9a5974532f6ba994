"""Parameters of a module as views of one vector.

Optimizer, average, clipping and the exchange between ranks then take one operation each, instead of one per
parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

ALIGNMENT = 4
"""Numbers to whose multiples the parameters are aligned: 16 bytes, so that kernels can load vectors."""


@dataclass(frozen=True)
class FlatWeights:
    """Parameters of a module as views of one vector, with gaps of zeros between them."""

    vector: nn.Parameter
    """All parameters."""
    parameters: Sequence[nn.Parameter]
    """Parameters in the order of the vector."""

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of the vector."""
        self.vector.grad = torch.zeros_like(self.vector)
        return self.vector.grad

    @cached_property
    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters, as views of the vector's."""
        return self.parts(self.gradient)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """View a vector of this layout as tensors of the shapes of the parameters."""
        return _parts(vector, self.parameters)

    def span(self, module: nn.Module) -> slice:
        """Return the place of a submodule's parameters in the vector. They lie one after the other."""
        inside = {id(parameter) for parameter in module.parameters()}
        numbers = [n for n, parameter in enumerate(self.parameters) if id(parameter) in inside]
        starts = _starts(self.parameters)
        return slice(starts[numbers[0]], starts[numbers[-1] + 1])

    def backward(self, loss: Tensor) -> None:
        """Set the gradient of the vector to that of a loss.

        The gradients are copied together. Adding each to its view would be an operation per parameter.
        """
        found = torch.autograd.grad(loss, list(self.parameters), allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(self.gradients, found)

    def merge(self) -> None:
        """Set the module's parameters from the vector. Views of it, as here, follow by themselves."""

    def dense(self, vector: Tensor) -> Tensor:
        """Return a vector of this layout without its gaps. Checkpoints hold vectors in this form."""
        return torch.cat([part.flatten() for part in self.parts(vector)])

    def spread(self, dense: Tensor) -> Tensor:
        """Return a vector of this layout with the numbers of a vector without gaps."""
        vector = torch.zeros_like(self.vector.data)
        parts = self.parts(vector)
        sizes = [part.numel() for part in parts]
        torch._foreach_copy_([part.flatten() for part in parts], torch.split(dense.to(vector.device), sizes))
        return vector


def flatten(module: nn.Module) -> FlatWeights:
    """Make all parameters of a module views of one vector."""
    parameters = list(module.parameters())
    return FlatWeights(one_vector(parameters), parameters)


def one_vector(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """Make parameters views of one vector, in their order, and return the vector."""
    vector = parameters[0].new_zeros(_starts(parameters)[-1])
    parts = _parts(vector, parameters)
    torch._foreach_copy_(parts, [parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return nn.Parameter(vector)


def _starts(parameters: Sequence[Tensor]) -> list[int]:
    """Return where each parameter starts in the vector, and last the length of the vector."""
    sizes = (-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in parameters)
    return list(accumulate(sizes, initial=0))


def _parts(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    return [
        vector[start : start + parameter.numel()].view(parameter.shape)
        for start, parameter in zip(_starts(parameters), parameters, strict=False)
    ]
