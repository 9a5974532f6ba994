"""Views of an episode: what an auditor may look at before it predicts the next actions.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, S observed steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A view of the past at each frame of an episode. The present frame is always seen."""

    context_length: int
    """T_o, in frames."""
    time: bool = True
    """Whether the frames since the start of the episode are told."""
    sees: Literal["frames", "actions"] = "frames"
    """What is seen of the past: frames, or the executed actions alone."""
    history: Literal["own", "other", "reversed"] = "own"
    """Past that is shown: the episode's own, another episode's at the same time, or the own reversed."""


@dataclass(frozen=True)
class Looks:
    """Views of the windows of a batch."""

    now_GJ: Tensor
    """Frame of each decision, int64."""
    length_GJ: Tensor
    """T_o of each decision, int64."""
    time_GJ: Tensor
    """Whether time is told, bool."""
    actions: bool = False
    """Whether the past is seen as actions, at all decisions."""
    reversed: bool = False
    """Whether the past is seen in reverse order, at all decisions."""

    @classmethod
    def through(cls, view: View, now_GJ: Tensor) -> "Looks":
        """Look through one view at every decision."""
        return cls(
            now_GJ,
            torch.full_like(now_GJ, view.context_length),
            torch.full_like(now_GJ, view.time, dtype=torch.bool),
            view.sees == "actions",
            view.history == "reversed",
        )

    def ages(self, frames: int) -> tuple[Tensor, Tensor]:
        """Return the age (G, J, S) of each frame at each decision, at least 0, and whether it is seen."""
        age_GJS = self.now_GJ.unsqueeze(2) - torch.arange(frames)
        seen_GJS = (age_GJS >= 1) & (age_GJS < self.length_GJ.unsqueeze(2))
        if self.reversed:
            oldest_GJ = torch.minimum(self.length_GJ - 1, self.now_GJ)
            age_GJS = torch.where(seen_GJS, oldest_GJ.unsqueeze(2) + 1 - age_GJS, age_GJS)
        return age_GJS.clamp(min=0), seen_GJS
