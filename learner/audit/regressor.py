"""Prediction of the next actions from any view of the past, by one network.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, S observed steps, T
action positions, A action dimensions, D dimensions of a frame, E token features, K key heads, V channels of
one attention head.
"""

import math

import torch
from torch import Tensor, nn

from longview.learner.audit.views import Looks

WIDTH, HEADS, BLOCKS = 64, 4, 2


class Regressor(nn.Module):
    """Network that predicts the mean of the next actions, given what is seen.

    The present frame asks, and the past answers: the query is made of the present frame and the time, and
    attends to a token of every past frame that is seen. Tokens are made of single frames, so that nothing
    older than the view reaches back through them. Squared error makes the prediction a conditional mean: what
    a longer view takes off the error is what it knows about the actions.
    """

    def __init__(self, frame_size: int, action_size: int, positions: int, longest: int, time: float) -> None:
        """
        Args:
            frame_size: D.
            action_size: A.
            positions: T.
            longest: number of frames that a view reaches back, at most.
            time: frames that are counted as one unit of time.
        """
        super().__init__()
        self.positions, self.time = positions, time
        self.frame, self.action = _mlp(frame_size, WIDTH), _mlp(action_size, WIDTH)
        self.present = _mlp(frame_size + 2, WIDTH)
        self.blocks = nn.ModuleList(Look(longest) for _ in range(BLOCKS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), _mlp(WIDTH, positions * action_size))

    def forward(self, frame_GSD: Tensor, past_GSD: Tensor, past_GSA: Tensor, looks: Looks) -> Tensor:
        """Predict the actions (G, J, T, A).

        Args:
            frame_GSD: the episodes.
            past_GSD: where the past is looked up: the episodes themselves, or other ones.
            past_GSA: the actions of that past, one of each frame.
            looks: the views.
        """
        index_GJD = looks.now_GJ.unsqueeze(2).expand(-1, -1, frame_GSD.shape[2])
        time_GJ = looks.now_GJ / self.time * looks.time_GJ
        known_GJ2 = torch.stack((time_GJ, looks.time_GJ.float()), dim=2)
        query_GJE = self.present(torch.cat((frame_GSD.gather(1, index_GJD), known_GJ2), dim=2))
        token_GSE = self.action(past_GSA) if looks.actions else self.frame(past_GSD)
        age_GJS, seen_GJS = looks.ages(past_GSD.shape[1])
        for block in self.blocks:
            query_GJE = block(query_GJE, token_GSE, age_GJS, seen_GJS)
        action_GJTA: Tensor = self.head(query_GJE).unflatten(2, (self.positions, -1))
        return action_GJTA


class Look(nn.Module):
    """One look at the past: attention to its tokens by content and age, or to nothing."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.past = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH))
        self.age_SKV = nn.Parameter(torch.randn(longest + 1, HEADS, WIDTH // HEADS) / 20)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), _mlp(WIDTH, WIDTH, 4 * WIDTH))

    def forward(self, query_GJE: Tensor, token_GSE: Tensor, age_GJS: Tensor, seen_GJS: Tensor) -> Tensor:
        """Return the queries (G, J, E) with what they have seen."""
        heads = (HEADS, WIDTH // HEADS)
        key_GSKV, value_GSKV = self.past(token_GSE).unflatten(2, (2, *heads)).unbind(2)
        query_GJKV = self.query(query_GJE).unflatten(2, heads)
        content_GKJS = torch.einsum("gjkv,gskv->gkjs", query_GJKV, key_GSKV)
        by_age_GKJS = torch.einsum("gjkv,skv->gkjs", query_GJKV, self.age_SKV)
        index_GKJS = age_GJS.clamp(max=len(self.age_SKV) - 1).unsqueeze(1).expand(-1, HEADS, -1, -1)
        age_GKJS = by_age_GKJS.gather(3, index_GKJS)
        logit_GKJS = (content_GKJS + age_GKJS).masked_fill(~seen_GJS.unsqueeze(1), -math.inf) / math.sqrt(
            heads[1]
        )
        # A last token of value 0 stands for nothing, to which a query attends where the past tells nothing.
        share_GKJS = nn.functional.pad(logit_GKJS, (0, 1)).softmax(dim=3)[..., :-1]
        found_GJKV = torch.einsum("gkjs,gskv->gjkv", share_GKJS, value_GSKV)
        query_GJE = query_GJE + self.out(found_GJKV.flatten(2))
        after_GJE: Tensor = query_GJE + self.layers(query_GJE)
        return after_GJE


def _mlp(inputs: int, outputs: int, hidden: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
