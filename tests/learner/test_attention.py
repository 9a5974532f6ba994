"""What a policy attends to, watched in networks whose weights say what it must be."""

from typing import Any

import numpy as np
import pytest
import torch

from longview.actors.task import load_task
from longview.learner.attention import watching
from longview.learner.config import policy_config
from longview.learner.policies.diffusion.denoisers.attention import ContextMemory
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import Policy

ATTENDING = {
    "unet_cross": {"widths": (8, 16), "groups": 2, "heads": 4, "heads_per_key": 2},
    "dit": {"depth": 2, "heads": 2},
    "mlp": {"width": 16, "depth": 1, "heads": 2, "heads_per_key": 2},
}


def policy_of(architecture: str, **settings: object) -> Policy:
    torch.manual_seed(0)
    common = {
        "future_actions": 14,
        "token_size": 8,
        "diffusion_steps": 20,
        "sampling_steps": 3,
        "candidates": 2,
    }
    config = policy_config(architecture=architecture, **common, **settings)
    return config.make(load_task("return_point").spec).eval()


def attend_to_marks(policy: DiffusionPolicy) -> None:
    """Set the weights so that all queries look for tokens whose first feature is large."""
    for name, module in policy.denoiser.named_modules():
        if name.endswith("query"):
            linear = module[1] if isinstance(module, torch.nn.Sequential) else module
            linear.weight.data.zero_()
            linear.bias.data.fill_(20)
        if isinstance(module, ContextMemory):
            torch.nn.init.eye_(module.project.weight)
            module.blocks.weight.data.zero_()
            module.blocks.weight.data[:, 0] = 1


def sampled(policy: Policy, token_BSE: torch.Tensor, seen_BS: np.ndarray) -> np.ndarray:
    rngs = np.random.default_rng(0).spawn(len(token_BSE))
    past_BPA = np.full((len(token_BSE), policy.horizon.past, policy.action_size), np.nan, np.float32)
    with torch.inference_mode():
        return policy.sample(token_BSE, seen_BS, past_BPA, rngs)


@pytest.mark.parametrize("architecture", ATTENDING)
def test_weights_point_at_the_frame_that_is_looked_for(architecture: str) -> None:
    """A row sums to 1, a masked frame has 0 although it is marked, and watching changes no action."""
    policy = policy_of(architecture, **ATTENDING[architecture])
    assert isinstance(policy, DiffusionPolicy)
    attend_to_marks(policy)
    token_BSE = torch.zeros(2, 6, 8)
    token_BSE[:, :, 0] = -100
    token_BSE[0, (0, 2), 0] = 100
    token_BSE[1, 5, 0] = 100
    seen_BS = np.ones((2, 6), np.bool_)
    seen_BS[0, 0] = False
    unwatched_BTA = sampled(policy, token_BSE, seen_BS)
    with watching(policy) as weights:
        watched_BTA = sampled(policy, token_BSE, seen_BS)
        weight_BS = weights(6)
    assert weight_BS is not None
    np.testing.assert_allclose(weight_BS.sum(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weight_BS, np.eye(6)[[2, 5]], atol=1e-3)
    assert weight_BS[0, 0] == 0
    np.testing.assert_array_equal(watched_BTA, unwatched_BTA)
    sampled(policy, token_BSE.flip(1), seen_BS)  # nobody watches any more
    with watching(policy) as weights:
        assert weights(6) is None


@pytest.mark.parametrize(
    "settings", [{"architecture": "unet_film"}, {"architecture": "unet_cross", "memory_tokens": 2}]
)
def test_a_policy_without_attention_to_frames_says_so(settings: dict[str, Any]) -> None:
    policy = policy_of(**settings)
    with watching(policy) as weights:
        sampled(policy, torch.zeros(1, 3, 8), np.ones((1, 3), np.bool_))
        assert weights(len(policy.attended(3))) is None
