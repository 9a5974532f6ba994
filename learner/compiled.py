"""Compilation of a policy before training begins, so that no training step waits for a compiler.

Legend (docs/notation.md): B windows, T action positions.
"""

import os
import shutil

import torch

from longview.learner.encoder import FrameEncoder
from longview.learner.keypoints import KeypointMemory
from longview.learner.policy import Policy
from longview.learner.recipe import Recipe
from longview.learner.transfer import pack, send


def compile_policy(policy: Policy, recipe: Recipe, steps: range) -> None:
    """Compile encoder, network and loss of a policy for all batches of these training steps.

    Encoders are compiled for any number of frames, the rest for each padded context length. Once cameras'
    networks are trained (`learner.encoder_steps`), batches hold keypoints in place of images.

    Raises:
        RuntimeError: no C++ compiler is installed.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"learner.compile needs a C++ compiler where the learner runs, and {compiler} is not installed: "
            "install it, name another compiler in the environment variable CXX, or leave learner.compile off"
        )
    alone = recipe.config.encoder_steps
    located = recipe.with_keypoints(KeypointMemory(policy)) if alone and policy.cameras else recipe
    first = {(step < alone, recipe.padded_context_length(step)): step for step in reversed(steps)}
    for encoder in (module for module in policy.modules() if isinstance(module, FrameEncoder)):
        encoder.compile(dynamic=True, fullgraph=True, isolate_recompiles=True)
    policy.compile_loss(dynamic=False, fullgraph=True, recompile_limit=len(first), isolate_recompiles=True)
    for (with_images, _), step in first.items():
        drawn = (recipe if with_images else located).batch(step)
        batch = send(pack(drawn, policy.device), policy.device)
        error_BT = recipe.error(policy, batch, step)
        torch.autograd.grad(error_BT.sum(), list(policy.parameters()), allow_unused=True)
