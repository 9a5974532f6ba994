import pytest
import torch
from torch import Tensor

from learner.config import PolicyConfig
from learner.denoisers.unet import ResidualBlock, UNet, sinusoid

CONFIG = PolicyConfig(widths=(8, 16), groups=2, heads=2, token_size=8)
B, T, A, LONGEST = 3, 16, 2, 64


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG, A).eval()


@pytest.fixture
def token_BSE() -> Tensor:
    return torch.randn(B, LONGEST, CONFIG.token_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noisy_BTA() -> Tensor:
    return torch.randn(B, T, A, generator=torch.Generator().manual_seed(2))


STEP_B = torch.tensor([0, 50, 99])


def last(length: int) -> Tensor:
    """All but the newest `length` steps are masked."""
    return (torch.arange(LONGEST) >= LONGEST - length).expand(B, -1)


def test_masked_tokens_have_no_influence_and_no_gradient(
    unet: UNet, token_BSE: Tensor, noisy_BTA: Tensor
) -> None:
    other_BSE = torch.where(last(8)[..., None], token_BSE, 1e4)
    token_BSE.requires_grad_()
    one, other = (unet(noisy_BTA, STEP_B, unet.context(tokens, last(8))) for tokens in (token_BSE, other_BSE))
    assert torch.equal(one, other)
    one.square().sum().backward()
    assert token_BSE.grad is not None
    assert token_BSE.grad[:, :-8].eq(0).all()
    assert token_BSE.grad[:, -8:].ne(0).all()


def test_sliced_context_equals_masked_context(unet: UNet, token_BSE: Tensor, noisy_BTA: Tensor) -> None:
    masked = unet(noisy_BTA, STEP_B, unet.context(token_BSE, last(8)))
    sliced = unet(noisy_BTA, STEP_B, unet.context(token_BSE[:, -8:], last(8)[:, -8:]))
    longer = unet(noisy_BTA, STEP_B, unet.context(token_BSE, last(9)))
    torch.testing.assert_close(masked, sliced, rtol=0, atol=1e-5)
    assert (longer - sliced).abs().max() > 1e-3


def test_context_can_be_used_again_at_every_denoising_step(
    unet: UNet, token_BSE: Tensor, noisy_BTA: Tensor
) -> None:
    kept = unet.context(token_BSE, last(20))
    for step in (90, 40, 0):
        step_B = torch.full((B,), step)
        fresh = unet.context(token_BSE, last(20))
        assert torch.equal(unet(noisy_BTA, step_B, kept), unet(noisy_BTA, step_B, fresh))


def test_the_diffusion_step_and_the_age_of_a_token_matter(
    unet: UNet, token_BSE: Tensor, noisy_BTA: Tensor
) -> None:
    context = unet.context(token_BSE, last(8))
    swapped = unet.context(token_BSE.flip(1), last(8).flip(1).flip(1))
    assert (unet(noisy_BTA, STEP_B, context) - unet(noisy_BTA, STEP_B + 1, context)).abs().max() > 1e-4
    assert (unet(noisy_BTA, STEP_B, context) - unet(noisy_BTA, STEP_B, swapped)).abs().max() > 1e-3


@pytest.mark.parametrize(("widths", "blocks"), [((8,), 4), ((8, 16), 8), ((8, 16, 16), 12)])
def test_every_residual_block_attends(widths: tuple[int, ...], blocks: int, noisy_BTA: Tensor) -> None:
    config = PolicyConfig(widths=widths, groups=2, heads=2, token_size=8)
    unet = UNet(config, A)
    assert sum(isinstance(module, ResidualBlock) for module in unet.modules()) == blocks
    context = unet.context(torch.randn(B, 4, 8), torch.ones(B, 4, dtype=torch.bool))
    out = unet(noisy_BTA, STEP_B, context)
    assert out.shape == (B, T, A)
    (gradient,) = torch.autograd.grad(out.square().sum(), context.memory_BSF)
    assert gradient.abs().sum(dim=(0, 1)).ne(0).all()


def test_sinusoid_separates_positions() -> None:
    codes = sinusoid(torch.arange(100), 8)
    assert codes.shape == (100, 8)
    distances = torch.cdist(codes, codes) + torch.eye(100)
    assert distances.min() > 1e-3
