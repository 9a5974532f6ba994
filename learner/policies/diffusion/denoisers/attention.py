"""Attention to tokens of the context. One linear map makes the keys and values of all blocks of a network.

Several heads may share keys and values (grouped-query attention, arXiv 2305.13245). Their queries are then
computed as those of one head with more positions.

Legend (docs/notation.md): B windows or robots, S observed steps, T action positions, C channels, E token
features, K key heads, V channels of a head, Q queries of a key head, R rows: key heads of all windows,
L outputs for all blocks.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.attention import Attending, Watch
from longview.learner.policies.diffusion.config import AttentionConfig
from longview.learner.policies.diffusion.denoisers.denoiser import placed

Attend = Callable[[Tensor], Tensor]
"""Attention of one block to the context: a function of queries (B, T, C) with outputs (B, T, C)."""


class ContextMemory(Attending):
    """Keys and values of the context for all blocks of a network."""

    def __init__(self, config: AttentionConfig, widths: Sequence[int]) -> None:
        """
        Args:
            config: settings of the attention.
            widths: channels of each block.
        """
        super().__init__()
        size, self.key_heads = config.token_size, config.heads // config.heads_per_key
        self.sizes = [width // config.heads_per_key for width in widths for _ in ("keys", "values")]
        self.project = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.blocks = unit_scale(nn.Linear(size, sum(self.sizes)))
        self.attended = len(widths)

    def tokens(self, token_BSE: Tensor) -> Tensor:
        """Transform context tokens, oldest first, to the input of `blocks`: (B, S, E)."""
        normal_BSE: Tensor = self.norm(self.project(placed(token_BSE)))
        return normal_BSE

    def attentions(self, memory_BSL: Tensor, bias_BS: Tensor) -> list[Attend]:
        """Return each block's attention for training.

        Args:
            memory_BSL: keys and values of all blocks, as `blocks` makes them.
            bias_BS: bias of the logits.
        """
        parts = torch.split(memory_BSL, self.sizes, dim=2)
        return [
            partial(
                attend,
                key_BSC=key,
                value_BSC=value,
                bias_BS=bias_BS,
                key_heads=self.key_heads,
                watch=self.watch,
            )
            for key, value in zip(parts[::2], parts[1::2], strict=True)
        ]

    def cache(self, token_BSE: Tensor) -> list[Tensor]:
        """Make keys and values (B, C, S) of tokens that are attended to many times, block by block.

        One product makes them all. `cached_attentions` needs the numbers of each key head in one place: with
        several heads that takes a copy.
        """
        weight_BLE = self.blocks.weight.expand(len(token_BSE), -1, -1)
        memory_BLS = torch.baddbmm(self.blocks.bias.unsqueeze(1), weight_BLE, token_BSE.transpose(1, 2))
        parts = torch.split(memory_BLS, self.sizes, dim=1)
        return list(parts) if self.key_heads == 1 else [part.contiguous() for part in parts]

    def cached_attentions(self, cached: Sequence[Tensor], bias_BS: Tensor) -> list[Attend]:
        """Return each block's attention for acting, without copies at any context length.

        Args:
            cached: keys and values that `cache` made.
            bias_BS: bias of the logits.
        """
        bias_R1S = bias_BS.repeat_interleave(self.key_heads, dim=0).unsqueeze(1)
        key_RVS = [part.view(len(bias_R1S), -1, part.shape[2]) for part in cached]
        return [
            partial(
                attend_cached,
                key_RVS=key,
                value_RVS=value,
                bias_R1S=bias_R1S,
                key_heads=self.key_heads,
                watch=self.watch,
            )
            for key, value in zip(key_RVS[::2], key_RVS[1::2], strict=True)
        ]


def attend(
    query_BTC: Tensor,
    key_BSC: Tensor,
    value_BSC: Tensor,
    key_heads: int,
    bias_BS: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Attend from queries to keys and values: (B, T, C). The bias of the logits is equal for all queries.

    `watch` is given the mean weights of all heads and positions.
    """
    key_BKSV, value_BKSV = (split_heads(part, key_heads) for part in (key_BSC, value_BSC))
    query_BKQV = split_heads(query_BTC, key_heads).reshape(*key_BKSV.shape[:2], -1, key_BKSV.shape[3])
    bias_B11S = None if bias_BS is None else bias_BS[:, None, None]
    if watch is not None:
        logit_BKQS = query_BKQV @ key_BKSV.transpose(2, 3) * query_BKQV.shape[3] ** -0.5
        watch((logit_BKQS if bias_B11S is None else logit_BKQS + bias_B11S).softmax(dim=3).mean(dim=(1, 2)))
    output_BKQV = functional.scaled_dot_product_attention(query_BKQV, key_BKSV, value_BKSV, bias_B11S)
    return join_heads(output_BKQV, query_BTC)


def attend_cached(
    query_BTC: Tensor,
    key_RVS: Tensor,
    value_RVS: Tensor,
    bias_R1S: Tensor,
    key_heads: int,
    watch: Watch | None = None,
) -> Tensor:
    """Attend from queries to cached keys and values: (B, T, C).

    Queries may be those of several candidates per context. They are computed as one query with more
    positions. `watch` is given the mean weights of all heads and positions.
    """
    one_per_context = query_BTC.reshape(len(key_RVS) // key_heads, -1, query_BTC.shape[2])
    query_RQV = split_heads(one_per_context, key_heads).reshape(len(key_RVS), -1, key_RVS.shape[1])
    logit_RQS = torch.baddbmm(bias_R1S, query_RQV, key_RVS, alpha=query_RQV.shape[2] ** -0.5)
    weight_RQS = logit_RQS.softmax(dim=2)
    if watch is not None:
        watch(torch.unflatten(weight_RQS.mean(dim=1), 0, (-1, key_heads)).mean(dim=1))
    output_RQV = torch.bmm(weight_RQS, value_RVS.transpose(1, 2))
    return join_heads(torch.unflatten(output_RQV, 0, (-1, key_heads)), query_BTC)


def split_heads(x_BSC: Tensor, key_heads: int) -> Tensor:
    """Split channels into key heads: (B, S, C) -> (B, K, S, C / K)."""
    return torch.unflatten(x_BSC, 2, (key_heads, -1)).transpose(1, 2)


def join_heads(output_BKQV: Tensor, query_BTC: Tensor) -> Tensor:
    """Join the outputs of the key heads to the shape of the queries, (B, T, C)."""
    batch, key_heads, width = len(output_BKQV), output_BKQV.shape[1], query_BTC.shape[2]
    parts = output_BKQV.reshape(batch, key_heads, -1, width // key_heads)  # (B, K, T, C / K)
    return parts.transpose(1, 2).reshape(query_BTC.shape)


def unit_scale(linear: nn.Linear) -> nn.Linear:
    """Initialise a layer so that its outputs are as large as its inputs, and return it.

    With torch's default they are a third as large, and attention stays flat for long.
    """
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return linear
