"""Which context length each training step uses: a pure function, known to every rank without talking."""

import numpy as np

from learner.config import CurriculumConfig


def length(config: CurriculumConfig, seed: int, step: int, total_steps: int, longest: int) -> int:
    """T_o of one training step, in 1..longest.

    With u, v uniform in [0, 1) from the stream (seed, step):

        fixed        T_o = longest
        sprinkle     T_o = reach              if u < full, else 1 + floor(v * reach)
        progressive  the same

    where reach, the longest T_o so far, is `longest` for sprinkle and, for progressive, grows linearly
    over the first `ramp` of the training: ceil(longest * min(1, (step + 1) / (ramp * total_steps))).
    After variable-history training, arXiv 2606.16447.

    Args:
        step: counted from 0.
        total_steps: length of the whole training.
        longest: the longest T_o the policy is trained for.
    """
    if config.kind == "fixed":
        return longest
    progress = min(1.0, (step + 1) / (config.ramp * total_steps)) if config.kind == "progressive" else 1.0
    reach = int(np.ceil(longest * progress))
    u, v = np.random.default_rng((seed, step)).random(2)
    return reach if u < config.full else 1 + int(v * reach)
