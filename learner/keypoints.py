"""Keypoints of frames by cameras' networks that no longer change. Each frame's are computed once.

Legend (docs/notation.md): F frames, C channels, H height, W width, R rows: steps of an episode.
"""

import threading
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from longview.learner.encoder import KEYPOINTS, FrameEncoder
from longview.learner.policy import Policy
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, ArraySpec, Segment, TaskSpec

TOGETHER = 32
"""Frames that are encoded together. The number is always the same, because results could otherwise differ in
their last digits: a resumed training would not end as one that was never interrupted."""
KEPT_FRAMES = 1 << 22
"""Most frames whose keypoints are kept, a gibibyte. The episode that was not drawn for the longest time is
forgotten first; if it is drawn again, its keypoints are computed again."""


def located(spec: TaskSpec) -> TaskSpec:
    """Return the spec of a task with each camera's keypoints in place of its images."""
    keypoints = ArraySpec((2 * KEYPOINTS,), "float32", -1.0, 1.0)
    seen = {key: keypoints if array.is_image else array for key, array in spec.observation.items()}
    return replace(spec, observation=seen)


@dataclass
class Keypoints:
    """Keypoints of an episode's frames by one camera."""

    found: NDArray[np.float32]
    """Keypoints (R, 2 * `KEYPOINTS`) of all steps of the episode."""
    known: NDArray[np.bool_]
    """Whether a step's have been computed, (R,)."""


class KeypointMemory:
    """Memory of the keypoints of the frames that were drawn. Each camera's take 256 bytes for each step
    of an episode.

    The published idea: train the encoder at a short context, freeze it, and keep its embeddings for training
    at a long one (arXiv 2505.09561).
    """

    def __init__(self, policy: Policy) -> None:
        """
        Args:
            policy: its cameras' networks are copied.
        """
        self._encoder: FrameEncoder = deepcopy(policy.encoder).eval()
        self._cameras, self._device = policy.cameras, policy.device
        self._episodes: OrderedDict[tuple[str, str], Keypoints] = OrderedDict()
        """Keypoints by episode and camera, the least recently drawn first."""
        self._frames = 0
        """Frames of all of them."""
        self._lock = threading.Lock()

    def locate(self, segment: Segment) -> Segment:
        """Return a segment with each camera's keypoints in place of its images."""
        names = [OBSERVATION_PREFIX + key for key in self._cameras]
        rows = slice(segment.start, segment.start + len(segment.arrays[ACTION]))
        arrays = {name: segment.arrays[name] for name in segment.arrays if name not in names}
        with self._lock:
            for index, (key, name) in enumerate(zip(self._cameras, names, strict=True)):
                episode = self._of(segment, key)
                missing = np.flatnonzero(~episode.known[rows])
                if len(missing):
                    episode.found[rows][missing] = self._compute(index, segment.arrays[name][missing])
                    episode.known[rows] = True
                arrays[name] = episode.found[rows]
        return replace(segment, arrays=arrays)

    def _of(self, segment: Segment, key: str) -> Keypoints:
        place, length = (segment.meta.id, key), segment.episode_length
        if place not in self._episodes:
            made = Keypoints(np.empty((length, 2 * KEYPOINTS), np.float32), np.zeros(length, np.bool_))
            self._episodes[place] = made
            self._frames += length
        self._episodes.move_to_end(place)
        while self._frames > KEPT_FRAMES and len(self._episodes) > 1:
            _, dropped = self._episodes.popitem(last=False)
            self._frames -= len(dropped.known)
        return self._episodes[place]

    def _compute(self, index: int, image_FHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Locate the keypoints of one camera's images, at the centre of each: (F, 2 * `KEYPOINTS`)."""
        spare = -len(image_FHWC) % TOGETHER
        images = torch.from_numpy(np.concatenate([image_FHWC, np.repeat(image_FHWC[-1:], spare, axis=0)]))
        centre_F2 = torch.full((TOGETHER, 2), 0.5, device=self._device)
        with torch.inference_mode():
            blocks = [
                self._encoder.keypoints(index, block.to(self._device), centre_F2).cpu()
                for block in torch.split(images, TOGETHER)
            ]
        found: NDArray[np.float32] = torch.cat(blocks).numpy()[: len(image_FHWC)]
        return found
