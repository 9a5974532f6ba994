"""Which context length each training step uses: a pure function, known to every rank without talking."""

import numpy as np

from longview.learner.config import CurriculumConfig


def length(
    config: CurriculumConfig, seed: int, step: int, total_steps: int, longest: int, shortest: int = 1
) -> int:
    """T_o of one training step, in shortest..longest.

    With u, v uniform in [0, 1) from the stream (seed, step):

        fixed        T_o = longest
        lengths      T_o = the smallest of `lengths` up to which lies more than u of their weights' sum
        sprinkle     T_o = reach   if u < full, else a shorter one
        progressive  the same

        uniform      a shorter one = shortest + floor(v * (reach + 1 - shortest))
        log          a shorter one = floor(shortest * ((reach + 1) / shortest) ** v)

    where reach, the longest T_o so far, is `longest` for sprinkle and, for progressive, grows linearly over
    the first `ramp` of the training: ceil(longest * min(1, (step + 1) / (ramp * total_steps))), but is no
    less than `shortest`. After variable-history training, arXiv 2606.16447.

    Args:
        step: counted from 0.
        total_steps: length of the whole training.
        longest: the longest T_o the policy is trained for.
        shortest: the shortest one that is drawn; `lengths` names its own.
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
