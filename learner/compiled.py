"""Compiles a policy's network before training begins, once for each length that batches are padded to.

Training then never waits for a compiler.
"""

import os
import shutil

from longview.learner.policy import Policy
from longview.learner.recipe import Recipe


def compile_trunk(policy: Policy, recipe: Recipe, steps: range) -> None:
    """Compile what these training steps need, by running one of each context length.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"learner.compile needs a C++ compiler where the learner runs, and there is no {compiler}: "
            "install it, name another one in the environment as CXX, or leave learner.compile off"
        )
    first = {recipe.padded_length(step): step for step in reversed(steps)}
    policy.trunk.compile(dynamic=False, fullgraph=True, recompile_limit=len(first), isolate_recompiles=True)
    for step in first.values():
        recipe.error(policy, recipe.batch(step), step).sum().backward()  # type: ignore[no-untyped-call]
