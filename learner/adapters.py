"""Low-rank adapters (LoRA, arXiv 2106.09685): the change of a weight is a product of two narrow matrices.

A weight with an adapter is, as a matrix of its outputs and all its other axes,

    weight = base + alpha / rank * up @ down        up (outputs, rank), down (rank, inputs)

The network holds this sum, so that training and acting know nothing of adapters. The gradients of `up` and
`down` follow from that of the weight by the rule for products.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from longview.learner.config import AdaptersConfig
from longview.learner.files import adapter_file
from longview.learner.flat import FlatWeights, flatten, one_vector
from longview.learner.policy import Policy, described, description, untrained
from longview.learner.start import take
from longview.learner.tensors import file_parts

FORMAT = "longview-adapter-1"
"""Format of an adapter's file."""
UP, DOWN = ".up", ".down"
"""Endings of the names of an adapter's matrices in its file, after the name of the weight."""


@dataclass(frozen=True)
class Adapter:
    """Adapter of one weight of a module."""

    name: str
    """Name of the weight."""
    weight: nn.Parameter
    """The weight, in the module."""
    base: Tensor
    """Weight of the base, (outputs, inputs)."""
    up: nn.Parameter
    """Matrix (outputs, rank)."""
    down: nn.Parameter
    """Matrix (rank, inputs)."""


@dataclass(frozen=True)
class AdaptedWeights(FlatWeights):
    """Trained parameters of a module whose other weights stay those of a base, as views of one vector.

    They are `up` and `down` of each adapter, then the weights that are trained as a whole.
    """

    adapters: Sequence[Adapter]
    """Adapters, in the order of the vector."""
    whole: Mapping[str, nn.Parameter]
    """Weights of the module that are trained as a whole, by name."""
    scale: float
    """Factor of each product: alpha / rank."""
    base: str
    """Fingerprint of the base's weights."""

    def backward(self, loss: Tensor) -> None:
        count, weights = len(self.adapters), [adapter.weight for adapter in self.adapters]
        found = torch.autograd.grad(
            loss, [*weights, *self.whole.values()], allow_unused=True, materialize_grads=True
        )
        products = list[Tensor]()
        with torch.no_grad():
            for adapter, gradient in zip(self.adapters, found[:count], strict=True):
                scaled = self.scale * gradient.reshape(adapter.base.shape)
                products += [scaled @ adapter.down.T, adapter.up.T @ scaled]
        torch._foreach_copy_(self.gradients, [*products, *found[count:]])

    def merge(self) -> None:
        for adapter in self.adapters:
            merged = merged_weight(adapter.base, adapter.up.data, adapter.down.data, self.scale)
            adapter.weight.data.copy_(merged.view_as(adapter.weight))


def trained_weights(
    module: nn.Module, config: AdaptersConfig, base: Mapping[str, Tensor], seed: int = 0
) -> FlatWeights:
    """Make the parameters that are trained views of one vector: adapters, or all parameters of a module.

    The vector of adapters begins with a change of zero: `up` is zero, and `down` is random.

    Args:
        module: the module. Its parameters in `base` are those of the base, or are merged later.
        config: settings of the adapters.
        base: the base's parameters by name. The module's others do not fit the base.
        seed: seed of `down`.

    Raises:
        ValueError: a pattern of `layers` names no weight matrix, or no parameter would be trained.
    """
    if not config.rank:
        return flatten(module)
    names = [name for name, weight in module.named_parameters() if weight.dim() > 1]
    if unmatched := [each for each in config.layers if not any(fnmatchcase(name, each) for name in names)]:
        raise ValueError(f"adapters.layers {unmatched} name no weight matrix of the policy")
    adapters, whole = list[Adapter](), dict[str, nn.Parameter]()
    random = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if name not in base:
            whole[name] = weight
        elif weight.dim() > 1 and any(fnmatchcase(name, pattern) for pattern in config.layers):
            outputs, inputs = len(weight), weight[0].numel()
            if config.rank * (outputs + inputs) >= weight.numel():
                whole[name] = weight
                continue
            up = nn.Parameter(weight.new_zeros(outputs, config.rank))
            down = torch.randn(config.rank, inputs, generator=random) / math.sqrt(inputs)
            matrix = base[name].to(weight).reshape(outputs, inputs)
            adapters.append(Adapter(name, weight, matrix, up, nn.Parameter(down.to(weight))))
    parameters = [each for adapter in adapters for each in (adapter.up, adapter.down)] + [*whole.values()]
    if not parameters:
        raise ValueError(f"adapters.layers {list(config.layers)} name no weight matrix of the policy")
    scale = config.alpha / config.rank
    return AdaptedWeights(one_vector(parameters), parameters, adapters, whole, scale, fingerprint(base))


def merged_weight(base: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Return a weight with its adapter, as a matrix (outputs, inputs)."""
    return torch.addmm(base, up, down, alpha=scale)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and numbers of tensors: equal for equal weights, in whatever file they are."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def adapter_parts(policy: Policy, weights: AdaptedWeights) -> list[memoryview]:
    """Return the parts of an adapter's file: all that distinguishes a policy from its base.

    Args:
        policy: the policy, whose config, task and normalisation the file keeps.
        weights: its trained weights, on the CPU.
    """
    about = description(policy) | {"base": weights.base, "scale": weights.scale}
    tensors = {name: buffer.cpu() for name, buffer in policy.named_buffers() if name in policy.state_dict()}
    tensors |= dict(weights.whole) | dict(_matrices(weights.adapters))
    return file_parts(tensors, {FORMAT: json.dumps(about)})


def with_adapter(base: Policy, path: str | Path) -> Policy:
    """Make a policy, ready to act, from a base and an adapter. The base stays as it is.

    Several policies with adapters of one base can act side by side. Each acts as fast as the base.

    Args:
        base: the policy that the training of the adapter began from.
        path: an adapter's file, a checkpoint's folder, or a run by its folder or name, as in
            `files.adapter_file`.

    Raises:
        FileNotFoundError: there is no adapter at the path.
        ValueError: the file holds no adapter, or one of another base or version of Longview.
    """
    file = adapter_file(Path(path))
    try:
        return adapted(base, file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def adapted(base: Policy, data: bytes) -> Policy:
    """Make a policy, ready to act, from a base and the bytes of an adapter's file.

    Raises:
        ValueError: they are no adapter, or one of another base or version of Longview.
    """
    _, about, tensors = described(data, "an adapter", FORMAT)
    try:
        policy = untrained(about)
        state, fit = policy.state_dict(), take(policy, base)
        if fingerprint({name: state[name] for name in fit.taken}) != about["base"]:
            raise ValueError("it was trained from another base than this one")
        for name in dict(policy.named_parameters()).keys() - tensors.keys():
            if name + UP in tensors:
                up, down, weight = tensors.pop(name + UP), tensors.pop(name + DOWN), state[name]
                matrix = weight.reshape(len(up), -1)
                tensors[name] = merged_weight(matrix, up, down, about["scale"]).view_as(weight)
        policy.load_state_dict(state | tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"the adapter does not fit: {error}") from error
    return policy.eval().to(base.device)


def _matrices(adapters: Sequence[Adapter]) -> Iterator[tuple[str, Tensor]]:
    for adapter in adapters:
        yield adapter.name + UP, adapter.up
        yield adapter.name + DOWN, adapter.down
