"""Diffusion: the schedule, noising and the sampler. Pure functions; shapes are (B, ...)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


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


def ddim(predict: Callable[[Tensor, int], Tensor], noise: Tensor, signal: Tensor, count: int) -> Tensor:
    """Denoise within [-1, 1], deterministically, in `count` equal strides. DDIM with eta 0, arXiv 2010.02502.

    Args:
        predict: the noise in a noisy input at a diffusion step.
        noise: standard normal; where to start.
        signal: of `squared_cosine`; its length is a multiple of `count`.
        count: evaluations of `predict`.
    """
    stride = len(signal) // count
    powers = signal.tolist()
    x = noise
    for step in range(len(signal) - stride, -1, -stride):
        power, next_power = powers[step], powers[step - stride] if step else 1.0
        epsilon = predict(x, step)
        clean = ((x - (1 - power) ** 0.5 * epsilon) / power**0.5).clamp(-1, 1)
        x = next_power**0.5 * clean + (1 - next_power) ** 0.5 * epsilon
    return x
