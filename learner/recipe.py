"""What each training step is made of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from longview.learner import curriculum
from longview.learner.config import Horizon, LearnerConfig
from longview.learner.policy import Policy
from longview.learner.windows import Batch, build, margin, nows
from longview.replay.episode import Segment, TaskSpec

DrawSegments = Callable[[int, int, int, int], list[Segment]]
"""(step, before, after, count) -> `count` segments with `before` steps before and `after` steps after their
now. Given the same store contents, a function of the step (and of the rank), so that a resumed run draws
the same. Called from another thread, some steps ahead."""


@dataclass(frozen=True)
class Recipe:
    """Batches and all that is random in their loss: given what is stored, functions of (seed, rank, step)."""

    config: LearnerConfig
    spec: TaskSpec
    seed: int
    rank: int
    world: int
    """G, number of ranks, which share out each batch."""
    draw: DrawSegments

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the config does not fit the task.
        """
        self.config.curriculum.check(self.horizon.context)
        self.config.windows(self.spec, self.world)

    @cached_property
    def horizon(self) -> Horizon:
        """The policy's."""
        return self.config.policy.horizon(self.spec)

    def length(self, step: int) -> int:
        """T_o."""
        longest = self.horizon.context
        shortest = min(self.spec.context_lengths[0], longest)
        return curriculum.length(
            self.config.curriculum, self.seed, step, self.config.steps, longest, shortest
        )

    def padded_length(self, step: int) -> int:
        """What the step's batch is padded to if it is compiled: the next power of two, or one and a half of
        one, that is no less than T_o; but not more than the longest."""
        length = self.length(step)
        power = 1 << (length - 1).bit_length()
        return min(self.horizon.context, 3 * power // 4 if 3 * power // 4 >= length else power)

    def batch(self, step: int) -> Batch:
        """Return this rank's windows, `batch_size / world` of them."""
        length, windows = self.length(step), self.config.windows(self.spec, self.world)
        before, after = length - 1 + margin(windows), self.horizon.after + margin(windows)
        segments = self.draw(step, before, after, self.config.batch_size // (self.world * windows))
        now_GW = nows(segments, windows, np.random.default_rng((self.seed, self.rank, step, 1)))
        batch = build(segments, self.spec, self.horizon, length, now_GW)
        return padded(batch, self.padded_length(step)) if self.config.compile else batch

    def error(self, policy: Policy, batch: Batch, step: int) -> Tensor:
        """Return the policy's error (B, T) on the step's batch."""
        device = policy.device
        generator = seeded(_stream(self.seed, self.rank, step), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return policy.error(batch, generator)


def padded(batch: Batch, length: int) -> Batch:
    """The same windows with places before the oldest observation in which nothing was seen."""
    before = ((0, 0), (length - batch.length, 0))
    return replace(batch, frame_BS=np.pad(batch.frame_BS, before), seen_BS=np.pad(batch.seen_BS, before))


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Seed a device's default generator, which dropout draws from, and return it."""
    torch.manual_seed(seed)
    if device.type == "cpu":
        return torch.default_generator
    generators: tuple[torch.Generator, ...] = torch.get_device_module(device).default_generators
    return generators[device.index or 0]


def _stream(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0])
