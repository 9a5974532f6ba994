"""The denoiser compiled, once for each of the few context lengths that batches are padded to: nothing that
comes while training goes on has to wait for a compiler."""

import os
import shutil

from longview.learner.policy import DiffusionPolicy
from longview.learner.recipe import Recipe


def compile_denoiser(policy: DiffusionPolicy, recipe: Recipe, steps: range) -> None:
    """Compile all that these steps will need, by going through one of each length.

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
    policy.denoiser.compile(
        dynamic=False, fullgraph=True, recompile_limit=len(first), isolate_recompiles=True
    )
    for step in first.values():
        recipe.error(policy, recipe.batch(step), step).sum().backward()  # type: ignore[no-untyped-call]
