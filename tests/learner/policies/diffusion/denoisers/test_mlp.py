import torch

from longview.learner.config import Horizon, policy_config
from longview.learner.policies.diffusion.config import MLPConfig
from longview.learner.policies.diffusion.denoisers.mlp import MLP


def mlp() -> MLP:
    torch.manual_seed(0)
    config = policy_config(architecture="mlp", heads=2, token_size=8, width=16)
    assert isinstance(config, MLPConfig)
    return MLP(config, Horizon(context=6, past=2, future=5, execute=4), 2).eval()


def test_a_diffusion_step_costs_the_same_at_every_context_length() -> None:
    """The summary that conditions the MLP has the same size at every context length."""
    model = mlp()
    summaries = [
        model.context(torch.randn(3, length, 8), torch.ones(3, length, dtype=torch.bool)).token_BSE
        for length in (1, 6)
    ]
    assert summaries[0].shape == summaries[1].shape == (3, 1, 8 * (1 + 4))


def test_every_look_matters_and_depends_on_now() -> None:
    model, seen_BS = mlp(), torch.ones(1, 6, dtype=torch.bool)
    token_BSE = torch.randn(1, 6, 8).requires_grad_()
    now, *answers = model.context(token_BSE, seen_BS).token_BSE[0, 0].split(8)
    (of_now,) = torch.autograd.grad(now.square().sum(), token_BSE, retain_graph=True)
    assert of_now[0, :-1].eq(0).all(), "the present token is passed on as it is"
    for answer in answers:
        (of_all,) = torch.autograd.grad(answer.square().sum(), token_BSE, retain_graph=True)
        assert of_all.ne(0).all()
    (of_blocks,) = torch.autograd.grad(torch.cat(answers).square().sum(), model.memory.blocks.weight)
    assert of_blocks.abs().sum(dim=1).ne(0).all()
