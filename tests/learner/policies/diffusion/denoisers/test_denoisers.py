"""Tests of every architecture, with heads that share keys and values and with heads that do not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longview.learner.config import Horizon, architectures, policy_config
from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.denoisers.denoiser import Context, Denoiser, Predict, sinusoid

T, A, E, LONGEST = 16, 2, 8, 64
HORIZON = Horizon(context=LONGEST, past=2, future=T - 2, execute=8)
UNET: dict[str, Any] = {"widths": (8, 16), "groups": 2}
SMALL: dict[str, dict[str, Any]] = {
    "unet_cross": {**UNET, "heads": 2},
    "unet_film": UNET,
    "dit": {"depth": 2, "heads": 2},
    "mlp": {"width": 16, "depth": 2, "heads": 2},
}
NOISE_STEP_B = torch.tensor([0, 50, 99])


@pytest.fixture(
    params=[(name, {}) for name in architectures("diffusion")]
    + [(name, {"heads_per_key": 2}) for name in ("unet_cross", "dit", "mlp")]
)
def untrained(request: pytest.FixtureRequest) -> Denoiser:
    torch.manual_seed(0)
    architecture, more = request.param
    config = policy_config(architecture=architecture, token_size=E, **SMALL[architecture], **more)
    assert isinstance(config, DiffusionConfig)
    return config.denoiser(HORIZON, A).eval()


@pytest.fixture
def denoiser(untrained: Denoiser) -> Denoiser:
    """Return a denoiser as if it had been trained: no parameter is zero."""
    with torch.no_grad():
        for parameter in untrained.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return untrained


def tokens(batch: int = 3) -> Tensor:
    return torch.randn(batch, LONGEST, E, generator=torch.Generator().manual_seed(1))


def noisy(batch: int = 3) -> Tensor:
    return torch.randn(batch, T, A, generator=torch.Generator().manual_seed(2))


def last(*lengths: int) -> Tensor:
    """Return the mask of each sample's newest steps."""
    return torch.arange(LONGEST) >= LONGEST - torch.tensor(lengths).unsqueeze(1)


def sampler(denoiser: Denoiser, context: Context, noise_steps: list[int]) -> Predict:
    return denoiser.sampler(context, denoiser.schedule(torch.tensor(noise_steps)))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def test_masked_tokens_have_no_influence_and_no_gradient(denoiser: Denoiser) -> None:
    seen_BS, token_BSE = last(8, 1, 30), tokens()
    other_BSE = torch.where(seen_BS[..., None], token_BSE, 1e4)
    token_BSE.requires_grad_()
    contexts = [denoiser.context(each, seen_BS) for each in (token_BSE, other_BSE)]
    one, other = (denoiser(noisy(), NOISE_STEP_B, context) for context in contexts)
    assert torch.equal(one, other)
    one.square().sum().backward()
    assert token_BSE.grad is not None
    assert token_BSE.grad[~seen_BS].eq(0).all()
    assert token_BSE.grad[seen_BS].ne(0).all()
    with torch.inference_mode():
        one, other = (sampler(denoiser, context, [50])(noisy(), 0) for context in contexts)
    assert torch.equal(one, other)


def test_sliced_context_equals_masked_context(denoiser: Denoiser) -> None:
    token_BSE, eight, nine = tokens(), last(8, 8, 8), last(9, 9, 9)
    masked = denoiser(noisy(), NOISE_STEP_B, denoiser.context(token_BSE, eight))
    sliced = denoiser(noisy(), NOISE_STEP_B, denoiser.context(token_BSE[:, -8:], eight[:, -8:]))
    longer = denoiser(noisy(), NOISE_STEP_B, denoiser.context(token_BSE, nine))
    torch.testing.assert_close(masked, sliced, rtol=0, atol=1e-5)
    assert largest(longer - sliced) > 1e-3


def test_the_diffusion_step_and_the_age_of_a_token_matter(denoiser: Denoiser) -> None:
    seen_BS, token_BSE = last(8, 8, 8)[:, -8:], tokens()[:, -8:]
    context, swapped = (denoiser.context(each, seen_BS) for each in (token_BSE, token_BSE.flip(1)))
    predicted = denoiser(noisy(), NOISE_STEP_B, context)
    assert largest(predicted - denoiser(noisy(), NOISE_STEP_B + 1, context)) > 1e-4
    assert largest(predicted - denoiser(noisy(), NOISE_STEP_B, swapped)) > 1e-3


@pytest.mark.parametrize("lengths", [(1,), (64,), (64, 64, 64), (64, 20, 1, 7, 30)])
def test_a_sampler_predicts_as_forward_does(denoiser: Denoiser, lengths: tuple[int, ...]) -> None:
    """The predictions agree at every diffusion step, in any order, with several samplers alive."""
    batch, longest = len(lengths), max(lengths)
    token_BSE, seen_BS = tokens(batch)[:, -longest:], last(*lengths)[:, -longest:]
    steps = [90, 40, 0]
    with torch.inference_mode():
        context = denoiser.context(token_BSE, seen_BS)
        predict = sampler(denoiser, context, steps)
        sampler(denoiser, denoiser.context(token_BSE + 1, seen_BS), steps)(noisy(batch), 0)
        for index in (0, 2, 1, 0):
            expected = denoiser(noisy(batch), torch.full((batch,), steps[index]), context)
            torch.testing.assert_close(predict(noisy(batch), index), expected, rtol=0, atol=1e-5)


def test_samples_of_a_batch_do_not_mix(denoiser: Denoiser) -> None:
    token_BSE, seen_BS, noisy_BTA = tokens(), last(8, 1, 30), noisy()
    together = denoiser(noisy_BTA, NOISE_STEP_B, denoiser.context(token_BSE, seen_BS))
    for i in range(3):
        one = slice(i, i + 1)
        alone = denoiser(noisy_BTA[one], NOISE_STEP_B[one], denoiser.context(token_BSE[one], seen_BS[one]))
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter(untrained: Denoiser) -> None:
    """The gradients are checked after one step, because the transformer's blocks begin as the identity."""
    optimizer = torch.optim.SGD(untrained.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        context = untrained.context(tokens(), last(64, 64, 64))
        (untrained(noisy(), NOISE_STEP_B, context) - 1).square().mean().backward()
        optimizer.step()
    silent = [
        name
        for name, parameter in untrained.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_bfloat16_is_finite_and_close(denoiser: Denoiser) -> None:
    token_BSE, seen_BS = tokens().requires_grad_(), last(64, 1, 30)
    exact = denoiser(noisy(), NOISE_STEP_B, denoiser.context(token_BSE, seen_BS))
    with torch.autocast("cpu", torch.bfloat16):
        context = denoiser.context(token_BSE, seen_BS)
        predicted = denoiser(noisy(), NOISE_STEP_B, context)
        with torch.no_grad():
            acted = sampler(denoiser, context, [50])(noisy(), 0)
    assert largest(predicted - exact) < 0.05 * largest(exact)
    torch.testing.assert_close(acted[1].float(), exact[1], rtol=0, atol=0.05 * largest(exact))
    predicted.float().square().sum().backward()
    gradients = [token_BSE.grad, *(parameter.grad for parameter in denoiser.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_sinusoid_separates_positions() -> None:
    codes = sinusoid(torch.arange(-50, 50), 8)
    assert codes.shape == (100, 8)
    distances = torch.cdist(codes, codes) + torch.eye(100)
    assert distances.min() > 1e-3
