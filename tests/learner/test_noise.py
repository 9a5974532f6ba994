import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.noise import add_noise, ddim, squared_cosine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers' own imports warn
    import diffusers

    DDPMScheduler: Any = diffusers.DDPMScheduler
    DDIMScheduler: Any = diffusers.DDIMScheduler


@pytest.mark.parametrize("steps", [20, 100])
def test_schedule_and_noising_are_those_of_diffusers(steps: int) -> None:
    reference = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2")
    signal = squared_cosine(steps)
    torch.testing.assert_close(signal, reference.alphas_cumprod)
    clean, noise, step_B = torch.randn(6, 5, 2), torch.randn(6, 5, 2), torch.randint(steps, (6,))
    torch.testing.assert_close(
        add_noise(clean, noise, step_B, signal), reference.add_noise(clean, noise, step_B)
    )


@pytest.mark.parametrize(("steps", "count"), [(100, 10), (100, 25), (20, 1)])
def test_sampler_is_that_of_diffusers(steps: int, count: int) -> None:
    reference = DDIMScheduler(steps, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    reference.set_timesteps(count)

    def predict(x: Tensor, step: int) -> Tensor:
        return x.sin() * (0.5 + 0.5 * step / steps)

    start = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))
    expected = start
    for step in reference.timesteps.tolist():
        expected = reference.step(predict(expected, step), step, expected, eta=0.0).prev_sample
    got = ddim(predict, start, squared_cosine(steps), count)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_sampler_recovers_what_a_perfect_predictor_knows() -> None:
    signal, clean = squared_cosine(100), torch.rand(3, 4, 2) * 2 - 1

    def predict(x: Tensor, step: int) -> Tensor:
        return (x - signal[step].sqrt() * clean) / (1 - signal[step]).sqrt()

    torch.testing.assert_close(ddim(predict, torch.randn(3, 4, 2), signal, 10), clean, rtol=1e-3, atol=1e-3)
