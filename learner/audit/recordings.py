"""Recorded episodes as an auditor reads them: thinned frames, one vector each, and the actions after them.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, S observed steps, T
action positions, A action dimensions, D dimensions of a frame, R rows: two axes joined into one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longview.replay.episode import ACTION, OBSERVATION_PREFIX, Episode, TaskSpec

FRAMES = 256
"""Frames that a typical episode keeps. Longer episodes are thinned."""
POSITIONS = 8
"""T, the number of action positions that are predicted."""
SPACING_SECONDS = 0.1
"""Time between two of them."""
PICTURE = 24
"""Side, in pixels, to which pictures are averaged before their components are taken."""
COMPONENTS = 32
"""Principal components of each camera's pictures."""
SMALLEST = 1e-4
"""Standard deviation of a dimension that counts as constant."""
CLIP = 5.0
"""Largest normalised value, so that a single outlier does not rule the error."""


@dataclass(frozen=True)
class Recording:
    """One episode, not yet normalised."""

    frame_SD: NDArray[np.float32]
    """Kept frames."""
    action_SA: NDArray[np.float32]
    """Actions at all steps."""


def stride_of(lengths: Sequence[int]) -> int:
    """Return how many steps lie between two frames that are kept: every step of a short episode."""
    return -(-int(median(lengths)) // FRAMES)


def record(episodes: Iterable[Episode], spec: TaskSpec, stride: int) -> list[Recording]:
    """Read episodes into memory: vectors as they are, and the principal components of pictures.

    Args:
        episodes: episodes of the task, one or more.
        spec: the task.
        stride: steps between two frames that are kept.
    """
    vectors = list[dict[str, NDArray[np.float32]]]()
    actions = list[NDArray[np.float32]]()
    for episode in episodes:
        actions.append(np.asarray(episode.arrays[ACTION], np.float32))
        vectors.append(
            {
                key: _shrunk(episode.arrays[OBSERVATION_PREFIX + key][::stride], array.is_image)
                for key, array in spec.observation.items()
            }
        )
    for key in (key for key, array in spec.observation.items() if array.is_image):
        _reduce(vectors, key)
    return [
        Recording(np.concatenate([vector[key] for key in spec.observation], axis=1), action)
        for vector, action in zip(vectors, actions, strict=True)
    ]


def _shrunk(rows: NDArray[Any], image: bool) -> NDArray[np.float32]:
    """Flatten an array's rows (S, ...) to (S, D); pictures are averaged over squares first."""
    if image:
        cells = [max(1, side // PICTURE) for side in rows.shape[1:3]]
        high, wide = (side - side % cell for side, cell in zip(rows.shape[1:3], cells, strict=True))
        split = rows[:, :high, :wide].reshape(
            len(rows), high // cells[0], cells[0], wide // cells[1], cells[1], 3
        )
        rows = split.mean(axis=(2, 4), dtype=np.float32)
    return rows.reshape(len(rows), -1).astype(np.float32)


def _reduce(vectors: Sequence[dict[str, NDArray[np.float32]]], key: str) -> None:
    """Replace one camera's pictures by their principal components, over all episodes."""
    rows = np.concatenate([vector[key] for vector in vectors])
    sample = torch.from_numpy(rows[:: max(1, len(rows) // 4096)])
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # the method is a random one
        _, _, basis = torch.pca_lowrank(sample, q=min(COMPONENTS, *sample.shape), niter=4)
    centre = sample.mean(dim=0)
    for vector in vectors:
        vector[key] = ((torch.from_numpy(vector[key]) - centre) @ basis).numpy()


@dataclass(frozen=True)
class Episodes:
    """Episodes of equal shape, normalised; behind an episode's end are zeros."""

    frame_GSD: Tensor
    action_GSA: Tensor
    """Actions at every step."""
    frames_G: Tensor
    """Frames of each episode, int64."""
    steps_G: Tensor
    """Steps of each episode, int64."""
    stride: int
    """Steps between two frames."""
    spacing: int
    """Steps between two action positions."""

    def chosen(self, index_G: Tensor) -> "Episodes":
        """Return some of the episodes, as long as the longest of them."""
        frames_G, steps_G = self.frames_G[index_G], self.steps_G[index_G]
        frame_GSD = self.frame_GSD[index_G, : int(frames_G.max())]
        action_GSA = self.action_GSA[index_G, : int(steps_G.max())]
        return Episodes(frame_GSD, action_GSA, frames_G, steps_G, self.stride, self.spacing)

    @property
    def past_GSA(self) -> Tensor:
        """Action at each frame."""
        return self.action_GSA[:, :: self.stride]

    def targets(self, now_GJ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions (G, J, T, A) from frames on, and which of them (G, J, T) exist."""
        step_GJT = now_GJ.unsqueeze(2) * self.stride + torch.arange(POSITIONS) * self.spacing
        exists_GJT = step_GJT < self.steps_G[:, None, None]
        index_GR = step_GJT.flatten(1).clamp(max=self.action_GSA.shape[1] - 1)
        action_GRA = self.action_GSA.gather(1, index_GR[..., None].expand(-1, -1, self.action_GSA.shape[2]))
        return action_GRA.reshape(*step_GJT.shape, -1), exists_GJT


def normalised(recordings: Sequence[Recording], known: Sequence[int], stride: int, hz: float) -> Episodes:
    """Scale every dimension to mean 0 and standard deviation 1, and pad episodes to equal length.

    Args:
        recordings: all episodes.
        known: episodes that the statistics are measured on: those that are trained on.
        stride: steps between two frames.
        hz: steps per second.
    """
    frames = _scaled([recording.frame_SD for recording in recordings], known)
    actions = _scaled([recording.action_SA for recording in recordings], known)
    return Episodes(
        torch.nn.utils.rnn.pad_sequence(frames, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(actions, batch_first=True),
        torch.tensor([len(rows) for rows in frames]),
        torch.tensor([len(rows) for rows in actions]),
        stride,
        max(1, round(SPACING_SECONDS * hz)),
    )


def _scaled(arrays: Sequence[NDArray[np.float32]], known: Sequence[int]) -> list[Tensor]:
    rows = np.concatenate([arrays[index] for index in known])
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(std > SMALLEST, 1 / np.maximum(std, SMALLEST), 0).astype(np.float32)
    return [torch.from_numpy(((array - mean) * scale).clip(-CLIP, CLIP)) for array in arrays]
