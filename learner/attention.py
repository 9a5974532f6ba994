"""Attention of a policy to the frames of its context, watched while it acts.

Legend (docs/notation.md): B robots, S observed steps.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Watch = Callable[[Tensor], object]
"""Function that is given the weights of one layer, (B, S), whose rows sum to 1. Where a layer also attends to
other tokens, these are further columns."""


class Attending(nn.Module):
    """Module whose layers attend to the tokens of the context, and show their weights when asked."""

    attended: int
    """Number of layers: the calls of `watch` in one pass through the network."""
    watch: Watch | None = None
    """Is given the weights of each layer when the policy acts; None: nobody watches."""


@contextmanager
def watching(policy: nn.Module) -> Iterator[Callable[[int], Tensor | None]]:
    """Watch what a policy attends to while it acts.

    Yields:
        Function that returns the weights of the newest decision: (B, frames), the mean over layers, heads,
        candidates and action positions in the last pass through the network, which chose the actions. A row
        sums to 1, and masked frames have 0. It takes the number of frames, and returns None if nothing in the
        policy attends to single frames.
    """
    modules = [module for module in policy.modules() if isinstance(module, Attending)]
    passes = [deque[Tensor](maxlen=module.attended) for module in modules]

    def weights(frames: int) -> Tensor | None:
        layers = [layer_BS[:, :frames] for layers in passes for layer_BS in layers]
        if not layers or not frames:
            return None
        mean_BS = torch.stack(layers).mean(dim=0)
        return mean_BS / mean_BS.sum(dim=1, keepdim=True)

    for module, layers in zip(modules, passes, strict=True):
        module.watch = layers.append
    try:
        yield weights
    finally:
        for module in modules:
            module.watch = None
