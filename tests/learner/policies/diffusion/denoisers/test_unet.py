import pytest
import torch

from longview.learner.config import Horizon, policy_config
from longview.learner.policies.diffusion.config import DiffusionConfig
from longview.learner.policies.diffusion.denoisers.unet import ResidualBlock


@pytest.mark.parametrize(
    ("architecture", "more", "map_of_context"),
    [
        ("unet_cross", {"heads": 2}, "conditioning.memory.blocks"),
        ("unet_film", {}, "conditioning.of_context"),
    ],
)
@pytest.mark.parametrize(("widths", "blocks"), [((8,), 4), ((8, 16), 8), ((8, 16, 16), 12)])
def test_every_residual_block_is_conditioned_on_the_context(
    architecture: str,
    more: dict[str, int],
    map_of_context: str,
    widths: tuple[int, ...],
    blocks: int,
) -> None:
    config = policy_config(architecture=architecture, widths=widths, groups=2, token_size=8, **more)
    assert isinstance(config, DiffusionConfig)
    unet = config.denoiser(Horizon(context=4, past=2, future=14, execute=8), 2)
    widths_of_blocks = [module.width for module in unet.modules() if isinstance(module, ResidualBlock)]
    assert len(widths_of_blocks) == blocks
    context = unet.context(torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool))
    out = unet(torch.randn(3, 16, 2), torch.tensor([0, 50, 99]), context)
    assert out.shape == (3, 16, 2)
    weight = unet.get_submodule(map_of_context).weight
    assert isinstance(weight, torch.Tensor)
    (gradient,) = torch.autograd.grad(out.square().sum(), weight)
    assert gradient.shape[0] == 2 * sum(widths_of_blocks)
    assert gradient.abs().sum(dim=1).ne(0).all()
