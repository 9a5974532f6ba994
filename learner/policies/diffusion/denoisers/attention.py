"""Attention to tokens whose keys and values are made for all blocks of a network at once.

Several heads may share keys and values (grouped-query attention, arXiv 2305.13245): they ask as if they were
one with more positions.

Legend: B batch, S tokens, T action positions, C channels, E token size, G groups of heads that share keys and
values, D channels per head, Q queries of a group, N batch times groups, F keys and values of all blocks.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.policies.diffusion.config import DiTConfig, UNetCrossConfig
from longview.learner.policies.diffusion.denoisers.denoiser import placed

Attend = Callable[[Tensor], Tensor]
"""A block's queries (B, T, C) -> what they hear (B, T, C)."""


class ContextMemory(nn.Module):
    """What blocks of these widths attend to, each by keys and values of its own."""

    def __init__(self, config: UNetCrossConfig | DiTConfig, widths: Sequence[int]) -> None:
        super().__init__()
        size, self.groups = config.token_size, config.heads // config.heads_per_key
        self.sizes = [width // config.heads_per_key for width in widths for _ in ("keys", "values")]
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
            partial(attend, key_BSC=key, value_BSC=value, bias_BS=bias_BS, groups=self.groups)
            for key, value in zip(parts[::2], parts[1::2], strict=True)
        ]

    def kept(self, token_BSE: Tensor) -> list[Tensor]:
        """Keys and values (B, C, S), block by block, of tokens that are attended to many times.

        As convolutions, because these are faster than `blocks` on CPUs, and leave each group's in one place.
        """
        token_BES, weight_FE1 = token_BSE.transpose(1, 2).contiguous(), self.blocks.weight.unsqueeze(2)
        maps = zip(
            torch.split(weight_FE1, self.sizes), torch.split(self.blocks.bias, self.sizes), strict=True
        )
        return [functional.conv1d(token_BES, weight, bias) for weight, bias in maps]

    def attends_kept(self, kept: Sequence[Tensor], bias_BS: Tensor) -> list[Attend]:
        """For each block, in acting: to what `kept` has made. No copies, however long the context is, nor
        for several samples, which ask as if they were one with more positions."""
        bias_N1S = bias_BS.repeat_interleave(self.groups, dim=0).unsqueeze(1)
        key_NDS = [part.view(len(bias_N1S), -1, part.shape[2]) for part in kept]
        return [
            partial(attend_kept, key_NDS=key, value_NDS=value, bias_N1S=bias_N1S, groups=self.groups)
            for key, value in zip(key_NDS[::2], key_NDS[1::2], strict=True)
        ]


def attend(
    query_BTC: Tensor, key_BSC: Tensor, value_BSC: Tensor, groups: int, bias_BS: Tensor | None = None
) -> Tensor:
    """What queries hear, (B, T, C). The bias is that of the logits, the same for all queries."""
    key_BGSD, value_BGSD = (grouped(part, groups) for part in (key_BSC, value_BSC))
    query_BGQD = grouped(query_BTC, groups).reshape(*key_BGSD.shape[:2], -1, key_BGSD.shape[3])
    bias_B11S = None if bias_BS is None else bias_BS[:, None, None]
    heard_BGQD = functional.scaled_dot_product_attention(query_BGQD, key_BGSD, value_BGSD, bias_B11S)
    return ungrouped(heard_BGQD, query_BTC)


def attend_kept(
    query_BTC: Tensor, key_NDS: Tensor, value_NDS: Tensor, bias_N1S: Tensor, groups: int
) -> Tensor:
    samples_together = query_BTC.reshape(len(key_NDS) // groups, -1, query_BTC.shape[2])
    query_NQD = grouped(samples_together, groups).reshape(len(key_NDS), -1, key_NDS.shape[1])
    logit_NQS = torch.baddbmm(bias_N1S, query_NQD, key_NDS, alpha=query_NQD.shape[2] ** -0.5)
    heard_NQD = torch.bmm(logit_NQS.softmax(dim=2), value_NDS.transpose(1, 2))
    return ungrouped(torch.unflatten(heard_NQD, 0, (-1, groups)), query_BTC)


def grouped(x_BSC: Tensor, groups: int) -> Tensor:
    """(B, S, C) -> (B, G, S, C / G)."""
    return torch.unflatten(x_BSC, 2, (groups, -1)).transpose(1, 2)


def ungrouped(heard_BGQD: Tensor, query_BTC: Tensor) -> Tensor:
    """What each group's queries hear, as the queries (B, T, C) were."""
    batch, groups, width = len(heard_BGQD), heard_BGQD.shape[1], query_BTC.shape[2]
    return heard_BGQD.reshape(batch, groups, -1, width // groups).transpose(1, 2).reshape(query_BTC.shape)


def unit_scale(linear: nn.Linear) -> nn.Linear:
    """Outputs as large as inputs: with torch's default, a third of it, attention stays flat for long."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return linear
