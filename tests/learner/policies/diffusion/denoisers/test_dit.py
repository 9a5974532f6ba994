import torch

from longview.learner.config import Horizon, policy_config
from longview.learner.policies.diffusion.denoisers.denoiser import placed
from longview.learner.policies.diffusion.denoisers.dit import DiT


def dit(**config: int) -> DiT:
    torch.manual_seed(0)
    policy = policy_config(architecture="dit", heads=2, token_size=8, **config)
    return DiT(policy, Horizon(context=4, past=2, future=5, execute=4), 2)


def predicted(model: DiT, noisy_BTA: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    token_BSE, seen_BS = torch.randn(3, 4, 8, generator=generator), torch.ones(3, 4, dtype=torch.bool)
    out: torch.Tensor = model(noisy_BTA, torch.tensor([0, 50, 99]), model.context(token_BSE, seen_BS))
    return out


def test_untrained_blocks_are_the_identity() -> None:
    model, noisy_BTA = dit(depth=3), torch.randn(3, 7, 2)
    alone = model.out(model.norm(model.actions(noisy_BTA) + model.place_TE))
    assert torch.equal(predicted(model, noisy_BTA), alone)


def test_every_block_attends_to_the_context() -> None:
    model = dit(depth=3)
    torch.nn.init.normal_(model.modulation.weight)
    out = predicted(model, torch.randn(3, 7, 2))
    (gradient,) = torch.autograd.grad(out.square().sum(), model.memory.blocks.weight)
    assert gradient.shape == (3 * 2 * 8, 8)
    assert gradient.abs().sum(dim=1).ne(0).all()


def test_past_actions_are_in_the_place_of_their_observed_steps() -> None:
    """The two past actions have the codes of the two steps before now."""
    observed_1SE = placed(torch.zeros(1, 4, 8))
    torch.testing.assert_close(dit(depth=1).place_TE[:3], observed_1SE[0, -3:])
