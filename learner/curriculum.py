"""Context length of each training step: a pure function, so that all ranks agree without communication."""

import numpy as np

from longview.learner.config import CurriculumConfig


def context_length(
    config: CurriculumConfig, seed: int, step: int, total_steps: int, longest: int, shortest: int = 1
) -> int:
    """Return the context length T_o of one training step, in shortest..longest.

    u and v are uniform in [0, 1), drawn from the stream (seed, step). The kinds of curriculum:

        fixed        T_o = longest
        lengths      T_o = the smallest of `lengths` whose cumulative share of the weights exceeds u
        sprinkle     T_o = longest if u < full, else shorter(longest)
        progressive  T_o = reach   if u < full, else shorter(reach)

    For progressive, reach grows linearly during the first `ramp` of the training:

        reach = max(shortest, ceil(longest * min(1, (step + 1) / (ramp * total_steps))))

    A shorter T_o is drawn by the setting `shorter`:

        uniform      shorter(reach) = shortest + floor(v * (reach + 1 - shortest))
        log          shorter(reach) = floor(shortest * ((reach + 1) / shortest) ** v)

    The idea is variable-history training, arXiv 2606.16447.

    Args:
        step: training step, counted from 0.
        total_steps: training steps of the whole run.
        longest: longest T_o that the policy is trained for.
        shortest: shortest T_o that is drawn, except by `lengths`.
    """
    if config.kind == "fixed":
        return longest
    u, v = np.random.default_rng((seed, step)).random(2)
    if config.kind == "lengths":
        lengths = sorted(config.lengths)
        share = np.cumsum([config.lengths[length] for length in lengths])
        return lengths[int(np.searchsorted(share / share[-1], u, side="right"))]
    progress = min(1.0, (step + 1) / (config.ramp * total_steps)) if config.kind == "progressive" else 1.0
    reach = max(shortest, int(np.ceil(longest * progress)))
    if u < config.full:
        return reach
    if config.shorter == "uniform":
        return shortest + int(v * (reach + 1 - shortest))
    return int(shortest * ((reach + 1) / shortest) ** v)
