"""Batch and loss of each training step, with all of their randomness.

Legend (docs/notation.md): B windows, G segments, J windows of each segment, F frames, S observed steps,
T action positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longview.learner import curriculum
from longview.learner.config import Horizon, LearnerConfig
from longview.learner.disturb import disturbed
from longview.learner.keypoints import KeypointMemory, located
from longview.learner.policy import Policy
from longview.learner.windows import SPREAD, Batch, build, margin, nows
from longview.replay.episode import Segment, TaskSpec

SHAPES = 24
"""Largest number of different frame counts in a run with few shapes."""

DrawSegments = Callable[[int, int, int, int], list[Segment]]
"""Function (step, before, after, count) that draws `count` segments for one training step.

Each segment holds `before` steps before its drawn step and `after` steps after it. With the same store
contents, the result depends on step and rank alone, so that a resumed run draws the same segments. The
function is called from several other threads, some steps ahead, in any order."""


@dataclass(frozen=True)
class Recipe:
    """Batches and losses of one rank. For given store contents, they depend on (seed, rank, step) alone."""

    config: LearnerConfig
    spec: TaskSpec
    seed: int
    rank: int
    world: int
    """G, number of ranks, which share out each batch."""
    draw: DrawSegments
    few_shapes: bool = False
    """Pad batches to few different shapes. A GPU prepares convolutions for each shape anew, and a compiler
    compiles each; a CPU would only have more to compute."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the config does not fit the task.
        """
        self.config.curriculum.check(self.horizon.context)
        self.config.windows(self.spec, self.world)

    @cached_property
    def horizon(self) -> Horizon:
        """Horizon of the policy."""
        return self.config.policy.horizon(self.spec)

    def context_length(self, step: int) -> int:
        """Return the context length T_o of this step's batch."""
        part, longest = self.config.part(step), self.horizon.context
        if step < self.config.encoder_steps:
            return 1
        shortest = min(self.spec.context_lengths[0], longest)
        return curriculum.context_length(
            self.config.curriculum, self.seed, step - part.start, len(part), longest, shortest
        )

    def padded_context_length(self, step: int) -> int:
        """Return the context length that this step's batch is padded to if there are to be few shapes.

        It is the smallest number of the form 2 ** n or 3 * 2 ** n that is at least T_o, and at most the
        longest context.
        """
        context_length = self.context_length(step)
        power = 1 << (context_length - 1).bit_length()
        padded_length = 3 * power // 4 if 3 * power // 4 >= context_length else power
        return min(self.horizon.context, padded_length)

    def padded_frames(self, frames: int, step: int) -> int:
        """Return the number of frames that this step's batch is padded to if there are to be few shapes.

        It is a multiple of a 32nd of the largest batch of the step's part of the training, and above half of
        that a multiple of a 16th. This makes `SHAPES` counts, and 4 to 6 % more frames in a part.
        """
        windows = self.config.windows(self.spec, self.world)
        context_length = 1 if step < self.config.encoder_steps else self.horizon.context
        most = min(windows * context_length, context_length + SPREAD * windows - 1)
        part = -(-most * self.segments // 32)
        if frames > 16 * part:
            part *= 2
        return -(-frames // part) * part

    @property
    def segments(self) -> int:
        """Number of segments in this rank's share of a batch, G."""
        return self.config.segments(self.spec, self.world)

    def with_keypoints(self, memory: KeypointMemory) -> "Recipe":
        """Return the recipe with each camera's keypoints in place of its images."""
        draw, windows = self.draw, self.config.windows(self.spec, self.world)
        return replace(
            self,
            config=replace(self.config, windows_per_segment=windows),
            spec=located(self.spec),
            draw=lambda *drawn: [memory.locate(segment) for segment in draw(*drawn)],
        )

    def batch(self, step: int) -> Batch[NDArray[Any]]:
        """Draw this rank's windows of one step, `batch_size / world` of them."""
        context_length, windows = self.context_length(step), self.config.windows(self.spec, self.world)
        before, after = context_length - 1 + margin(windows), self.horizon.after + margin(windows)
        segments = self.draw(step, before, after, self.segments)
        now_GJ = nows(segments, windows, np.random.default_rng((self.seed, self.rank, step, 1)))
        batch = build(segments, self.spec, self.horizon, context_length, now_GJ)
        if not self.few_shapes:
            return batch
        return padded(batch, self.padded_context_length(step), self.padded_frames(batch.frames, step))

    def error(self, policy: Policy, batch: Batch[Any], step: int) -> Tensor:
        """Return the policy's error (B, T) on this step's batch."""
        device = policy.device
        generator = seeded(_stream(self.seed, self.rank, step), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return policy.error(disturbed(batch, policy, self.config, generator), generator)


def padded(batch: Batch[NDArray[Any]], context_length: int, frames: int) -> Batch[NDArray[Any]]:
    """Pad a batch to a longer context and to more frames, without a change of its loss.

    The windows get masked steps before their oldest observation. The frames that no window observes are
    copies of the last one.
    """
    before, after = ((0, 0), (context_length - batch.context_length, 0)), (0, frames - batch.frames)
    return replace(
        batch,
        observation={
            key: np.pad(rows, [after, *[(0, 0)] * (rows.ndim - 1)], mode="edge")
            for key, rows in batch.observation.items()
        },
        segment_F=np.pad(batch.segment_F, after, mode="edge"),
        frame_BS=np.pad(batch.frame_BS, before),
        seen_BS=np.pad(batch.seen_BS, before),
    )


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Seed a device's default generator, which dropout draws from, and return it."""
    torch.manual_seed(seed)
    if device.type == "cpu":
        return torch.default_generator
    generators: tuple[torch.Generator, ...] = torch.get_device_module(device).default_generators
    return generators[device.index or 0]


def _stream(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0])
