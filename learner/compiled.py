"""Compilation of a policy's network before training begins, so that no training step waits for a compiler."""

import os
import shutil

from longview.learner.policy import Policy
from longview.learner.recipe import Recipe


def compile_trunk(policy: Policy, recipe: Recipe, steps: range) -> None:
    """Compile the policy's trunk for every padded context length that these training steps use.

    Raises:
        RuntimeError: no C++ compiler is installed.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"learner.compile needs a C++ compiler where the learner runs, and {compiler} is not installed: "
            "install it, name another compiler in the environment variable CXX, or leave learner.compile off"
        )
    first = {recipe.padded_context_length(step): step for step in reversed(steps)}
    policy.trunk.compile(dynamic=False, fullgraph=True, recompile_limit=len(first), isolate_recompiles=True)
    for step in first.values():
        recipe.error(policy, recipe.batch(step), step).sum().backward()  # type: ignore[no-untyped-call]
