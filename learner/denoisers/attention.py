"""Attention to tokens whose keys and values are made for all blocks of a network at once.

Legend: B batch, S tokens, T action positions, C channels, E token size, H heads, D channels per head,
N batch times heads, F keys and values of all blocks.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.denoisers.denoiser import placed

Attend = Callable[[Tensor], Tensor]
"""A block's queries (B, T, C) -> what they hear (B, T, C)."""


class Memory(nn.Module):
    """What blocks of these widths attend to, each by keys and values of its own."""

    def __init__(self, size: int, heads: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = [width for width in widths for _ in ("keys", "values")]
        self.project = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.blocks = unit_scale(nn.Linear(size, sum(self.sizes)))

    def tokens(self, token_BSE: Tensor) -> Tensor:
        """Context tokens, oldest first, in the form that `blocks` takes: (B, S, E)."""
        normal_BSE: Tensor = self.norm(self.project(placed(token_BSE)))
        return normal_BSE

    def attends(self, memory_BSF: Tensor, bias_BS: Tensor) -> list[Attend]:
        """For each block, in training: to what `blocks` makes of tokens. The bias is that of the logits."""
        parts = torch.split(memory_BSF, self.sizes, dim=2)
        return [
            partial(attend, key_BSC=key, value_BSC=value, bias_BS=bias_BS, heads=self.heads)
            for key, value in zip(parts[::2], parts[1::2], strict=True)
        ]

    def kept(self, token_BSE: Tensor) -> list[Tensor]:
        """Keys and values (B, C, S), block by block, of tokens that are attended to many times.

        As convolutions, because these are faster than `blocks` on CPUs, and leave each head's in one place.
        """
        token_BES, weight_FE1 = token_BSE.transpose(1, 2).contiguous(), self.blocks.weight.unsqueeze(2)
        maps = zip(
            torch.split(weight_FE1, self.sizes), torch.split(self.blocks.bias, self.sizes), strict=True
        )
        return [functional.conv1d(token_BES, weight, bias) for weight, bias in maps]

    def attends_kept(self, kept: Sequence[Tensor], bias_BS: Tensor) -> list[Attend]:
        """For each block, in acting: to what `kept` has made. No copies, however long the context is, nor
        for several samples, which ask as if they were one with more positions."""
        bias_N1S = bias_BS.repeat_interleave(self.heads, dim=0).unsqueeze(1)
        key_NDS = [part.view(len(bias_N1S), -1, part.shape[2]) for part in kept]
        return [
            partial(attend_kept, key_NDS=key, value_NDS=value, bias_N1S=bias_N1S, heads=self.heads)
            for key, value in zip(key_NDS[::2], key_NDS[1::2], strict=True)
        ]


def attend(
    query_BTC: Tensor, key_BSC: Tensor, value_BSC: Tensor, heads: int, bias_BS: Tensor | None = None
) -> Tensor:
    """What queries hear, (B, T, C). The bias is that of the logits, the same for all queries."""
    query_BHTD, key_BHSD, value_BHSD = (split_heads(part, heads) for part in (query_BTC, key_BSC, value_BSC))
    bias_B11S = None if bias_BS is None else bias_BS[:, None, None]
    heard_BHTD = functional.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, bias_B11S)
    return heard_BHTD.transpose(1, 2).flatten(2)


def attend_kept(
    query_BTC: Tensor, key_NDS: Tensor, value_NDS: Tensor, bias_N1S: Tensor, heads: int
) -> Tensor:
    samples_together = query_BTC.reshape(len(key_NDS) // heads, -1, query_BTC.shape[2])
    query_NTD = split_heads(samples_together, heads).flatten(0, 1)
    logit_NTS = torch.baddbmm(bias_N1S, query_NTD, key_NDS, alpha=query_NTD.shape[2] ** -0.5)
    heard_NTD = torch.bmm(logit_NTS.softmax(dim=2), value_NDS.transpose(1, 2))
    return torch.unflatten(heard_NTD, 0, (-1, heads)).transpose(1, 2).reshape(query_BTC.shape)


def split_heads(x_BSC: Tensor, heads: int) -> Tensor:
    """(B, S, C) -> (B, H, S, D)."""
    return torch.unflatten(x_BSC, 2, (heads, -1)).transpose(1, 2)


def unit_scale(linear: nn.Linear) -> nn.Linear:
    """Outputs as large as inputs: with torch's default, a third of it, attention stays flat for long."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return linear
