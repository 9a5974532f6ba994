"""Compilation of a policy before training begins, so that no training step waits for a compiler.

Legend (docs/notation.md): B windows, T action positions.
"""

import os
import shutil
from collections.abc import Sequence

import torch

from longview.learner.policy import Policy
from longview.learner.recipe import Recipe
from longview.learner.transfer import pack, send


def compile_policy(policy: Policy, parts: Sequence[tuple[Recipe, range]]) -> None:
    """Compile encoder, network and loss of a policy for all batches of its training.

    The encoder is compiled for any number of frames, the rest for each padded context length.

    Args:
        policy: the policy.
        parts: parts of the training, each a recipe of its batches and the steps.

    Raises:
        RuntimeError: no C++ compiler is installed.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"learner.compile needs a C++ compiler where the learner runs, and {compiler} is not installed: "
            "install it, name another compiler in the environment variable CXX, or leave learner.compile off"
        )
    first = [
        {recipe.padded_context_length(step): step for step in reversed(steps)} for recipe, steps in parts
    ]
    limit = len(set().union(*first))
    policy.encoder.compile(dynamic=True, fullgraph=True, isolate_recompiles=True)
    policy.compile_loss(dynamic=False, fullgraph=True, recompile_limit=limit, isolate_recompiles=True)
    for (recipe, _), steps_of in zip(parts, first, strict=True):
        for step in steps_of.values():
            batch = send(pack(recipe.batch(step), policy.device), policy.device)
            error_BT = recipe.error(policy, batch, step)
            torch.autograd.grad(error_BT.sum(), list(policy.parameters()), allow_unused=True)
