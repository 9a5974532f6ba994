"""What of the history a denoiser is given: every so many steps, keyframes, or a memory of fixed size.

Legend (docs/notation.md): B windows or robots, S observed steps, I items of a memory, E token features.
"""

import torch
from torch import Tensor, nn

from longview.learner.policies.diffusion.denoisers.attention import attend
from longview.learner.policies.diffusion.denoisers.denoiser import placed

RECENT = 2
"""Number of newest steps that `recent_encoder` encodes."""
HEADS = 4
"""Number of heads with which a memory attends to the frames."""


def strided(token_BSE: Tensor, seen_BS: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Keep every so many steps, counted back from now, of tokens and of their mask."""
    first = (seen_BS.shape[1] - 1) % stride
    return token_BSE[:, first::stride], seen_BS[:, first::stride]


def keyframes(token_BSE: Tensor, seen_BS: Tensor, number: int) -> Tensor:
    """Choose the past frames at which what is seen changes its course most.

    Published keyframes, such as those of arXiv 2602.15010, are chosen by a model that understands the task.
    This rule knows only the tokens.

    A frame's change of course is the distance of its token from the middle between the tokens before and
    after it, which a reach, a grasp or a turn makes large, and a steady motion small. The oldest frame has
    none, as a frame beside one that is missing.

    Args:
        token_BSE: tokens, oldest first.
        seen_BS: mask of the frames that are there.
        number: past frames to keep at most.

    Returns:
        The mask (B, S) of the chosen frames and the present one.
    """
    kept_BS = torch.zeros_like(seen_BS)
    kept_BS[:, -1] = True
    inner = seen_BS.shape[1] - 2
    if inner > 0:
        before, here, after = (slice(first, first + inner) for first in range(3))
        turn_BSE = token_BSE.detach()[:, here] - (token_BSE[:, before] + token_BSE[:, after]).detach() / 2
        whole_BS = seen_BS[:, before] & seen_BS[:, here] & seen_BS[:, after]
        turn_BS = turn_BSE.square().sum(dim=2).masked_fill(~whole_BS, -1)
        kept_BS.scatter_(1, 1 + turn_BS.topk(min(number, inner)).indices, True)
        kept_BS[:, here] &= whole_BS
    return kept_BS & seen_BS


def joined(token_BSE: Tensor) -> Tensor:
    """Take the newest steps from the second half of the features, and all others from the first half."""
    older, recent = token_BSE.chunk(2, dim=2)
    return torch.cat((older[:, :-RECENT], recent[:, -RECENT:]), dim=1)


class GatedMemory(nn.Module):
    """Memory of I tokens in place of the tokens of all frames, after the gated memory of arXiv 2604.18933.

    I learned queries attend to all frames that were seen. The present frame decides how much of each token
    passes to the denoiser.
    """

    def __init__(self, tokens: int, size: int) -> None:
        """
        Args:
            tokens: I.
            size: E, a multiple of `HEADS`.
        """
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, tokens, size))
        self.norm = nn.LayerNorm(size)
        self.keys_and_values = nn.Linear(size, 2 * size)
        self.out = nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size))
        self.gate = nn.Linear(size, tokens)

    def forward(self, token_BSE: Tensor, seen_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of memory and present (B, I + 1, E), the present last, and their mask."""
        key_BSE, value_BSE = self.keys_and_values(self.norm(placed(token_BSE))).chunk(2, dim=2)
        query_BIE = self.query.expand(len(token_BSE), -1, -1)
        found_BIE = self.out(attend(query_BIE, key_BSE, value_BSE, HEADS, seen_BS.log()))
        now_B1E = token_BSE[:, -1:]
        kept_BIE = self.gate(now_B1E[:, 0]).sigmoid().unsqueeze(2) * found_BIE
        given_BIE = torch.cat((kept_BIE, now_B1E), dim=1)
        return given_BIE, seen_BS.new_ones(given_BIE.shape[:2])
