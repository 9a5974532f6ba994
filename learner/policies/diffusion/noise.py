"""Diffusion as pure functions: noise schedule, noising and the sampler. Shapes are (B, ...).

Legend (docs/notation.md): B windows or robots.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from longview.learner.policies.diffusion.config import Prediction


def squared_cosine(diffusion_steps: int) -> Tensor:
    """Return the share of signal power after each diffusion step, falling from about 1 to about 0.

    The schedule is a squared cosine with betas of at most 0.999: Nichol & Dhariwal, arXiv 2102.09672.
    """

    def power(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    powers = [power(step / diffusion_steps) for step in range(diffusion_steps + 1)]
    betas = [min(1 - after / before, 0.999) for before, after in pairwise(powers)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def add_noise(clean: Tensor, noise: Tensor, noise_step_B: Tensor, signal: Tensor) -> Tensor:
    """Add noise to `clean` (B, ...), as the forward process does at diffusion step `noise_step_B`.

    DDPM, arXiv 2006.11239.
    """
    power = signal[noise_step_B].view(-1, *[1] * (clean.dim() - 1))
    return power.sqrt() * clean + (1 - power).sqrt() * noise


def strides(diffusion_steps: int, sampling_steps: int, prediction: Prediction) -> list[int]:
    """Return the diffusion steps at which a sampler predicts, evenly spaced and descending to 0.

    A prediction of the sample starts at the last step, where a sampler's input really is pure noise, as
    arXiv 2305.08891 demands; with few steps this matters most. A prediction of the noise tells nothing about
    the sample there, and starts one stride below the end: the `leading` spacing of diffusers.

    Args:
        diffusion_steps: number of diffusion steps in training.
        sampling_steps: number of diffusion steps in acting, in 1..diffusion_steps.
        prediction: the quantity that is predicted.
    """
    first = diffusion_steps - (1 if prediction == "sample" else math.ceil(diffusion_steps / sampling_steps))
    if sampling_steps == 1:
        return [first]
    return [first * place // (sampling_steps - 1) for place in reversed(range(sampling_steps))]


def ddim(
    predict: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    powers: Sequence[float],
    prediction: Prediction,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Denoise deterministically: DDIM with eta 0, arXiv 2010.02502.

    Args:
        predict: function of a noisy input and the index of one of `powers`, which predicts noise or sample.
        noise: standard normal noise, the start.
        powers: share of signal power (`squared_cosine`) at the diffusion steps of the sampler, ascending.
        prediction: the quantity that `predict` predicts.
        bounds: smallest and largest value of a sample, in a shape that fits `noise`.
    """
    x = noise
    for index, (power, next_power) in enumerate(pairwise([*powers, 1.0])):
        predicted = predict(x, index)
        if prediction == "epsilon":
            epsilon, clean = predicted, (x - (1 - power) ** 0.5 * predicted) / power**0.5
        else:
            epsilon, clean = (x - power**0.5 * predicted) / (1 - power) ** 0.5, predicted
        x = next_power**0.5 * clean.clamp(*bounds) + (1 - next_power) ** 0.5 * epsilon
    return x
