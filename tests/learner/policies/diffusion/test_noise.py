import warnings
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longview.learner.policies.diffusion.config import Prediction
from longview.learner.policies.diffusion.noise import add_noise, ddim, squared_cosine, strides

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
    clean, noise, noise_step_B = torch.randn(6, 5, 2), torch.randn(6, 5, 2), torch.randint(steps, (6,))
    torch.testing.assert_close(
        add_noise(clean, noise, noise_step_B, signal), reference.add_noise(clean, noise, noise_step_B)
    )


def limits(dimensions: int, most: float = 1.0) -> tuple[Tensor, Tensor]:
    return torch.full((dimensions,), -most), torch.full((dimensions,), most)


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize(("steps", "count"), [(100, 10), (100, 25), (20, 1)])
def test_sampler_is_that_of_diffusers(steps: int, count: int, prediction: Prediction) -> None:
    reference = DDIMScheduler(
        steps, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type=prediction
    )
    reference.set_timesteps(count)
    at = strides(steps, count, "epsilon")
    assert at == reference.timesteps.tolist()

    def predict(x: Tensor, index: int) -> Tensor:
        return x.sin() * (0.5 + 0.5 * at[index] / steps)

    start = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))
    expected = start
    for index, step in enumerate(at):
        expected = reference.step(predict(expected, index), step, expected, eta=0.0).prev_sample
    got = ddim(predict, start, squared_cosine(steps)[at].tolist(), prediction, limits(2))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 1000).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(1, steps))))
def test_sampling_steps_are_spaced_evenly_for_any_number(pair: tuple[int, int]) -> None:
    steps, count = pair
    at = {prediction: strides(steps, count, prediction) for prediction in get_args(Prediction)}
    assert at["sample"][0] == steps - 1
    for steps_taken in at.values():
        assert len(set(steps_taken)) == count
        assert steps_taken[-1] == 0 or count == 1
        gaps = [before - after for before, after in pairwise(steps_taken)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
    if steps % count == 0:
        assert at["epsilon"] == list(range(steps - steps // count, -1, -steps // count))


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 99, 100])
def test_sampler_recovers_what_a_perfect_predictor_knows(prediction: Prediction, count: int) -> None:
    """A sample beyond the bounds of a dimension ends at the bound."""
    signal, clean, at = squared_cosine(100), torch.rand(3, 4, 2) * 6 - 3, strides(100, count, prediction)

    def predict(x: Tensor, index: int) -> Tensor:
        power = signal[at[index]]
        return clean if prediction == "sample" else (x - power.sqrt() * clean) / (1 - power).sqrt()

    low, high = torch.tensor([-3.0, -1.0]), torch.tensor([3.0, 2.0])
    got = ddim(predict, torch.randn(3, 4, 2), signal[at].tolist(), prediction, (low, high))
    torch.testing.assert_close(got, clean.clamp(low, high), rtol=1e-3, atol=1e-3)
