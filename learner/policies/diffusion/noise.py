"""Diffusion: the schedule, noising and the sampler. Pure functions; shapes are (B, ...)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longview.learner.policies.diffusion.config import Prediction


def squared_cosine(steps: int) -> Tensor:
    """Share of signal power left after each diffusion step, (steps,), falling from about 1 to about 0.

    Nichol & Dhariwal, arXiv 2102.09672: the betas of a squared cosine, each at most 0.999.
    """

    def power(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - power((t + 1) / steps) / power(t / steps), 0.999) for t in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def add_noise(clean: Tensor, noise: Tensor, step_B: Tensor, signal: Tensor) -> Tensor:
    """What the forward process makes of `clean` (B, ...) at diffusion step `step_B`.

    DDPM, arXiv 2006.11239.
    """
    power = signal[step_B].view(-1, *[1] * (clean.dim() - 1))
    return power.sqrt() * clean + (1 - power).sqrt() * noise


def strides(steps: int, count: int) -> list[int]:
    """Diffusion steps to sample at: `count` of them, of which `steps` is a multiple, evenly down to 0."""
    return list(range(steps - steps // count, -1, -(steps // count)))


def ddim(
    predict: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    signal: Tensor,
    steps: Sequence[int],
    prediction: Prediction,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Denoise deterministically. DDIM with eta 0, arXiv 2010.02502.

    Args:
        predict: takes a noisy input and the index of one of `steps`; gives what `prediction` says.
        noise: standard normal; where to start.
        signal: of `squared_cosine`.
        steps: descending, to 0.
        bounds: smallest and largest value of a sample, of a shape that fits `noise`.
    """
    powers = [*signal[list(steps)].tolist(), 1.0]
    x = noise
    for index in range(len(steps)):
        power, next_power = powers[index : index + 2]
        told = predict(x, index)
        if prediction == "epsilon":
            epsilon, clean = told, (x - (1 - power) ** 0.5 * told) / power**0.5
        else:
            epsilon, clean = (x - power**0.5 * told) / (1 - power) ** 0.5, told
        x = next_power**0.5 * clean.clamp(*bounds) + (1 - next_power) ** 0.5 * epsilon
    return x
