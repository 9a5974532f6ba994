"""Decisions that a policy would have made along a recorded episode.

Legend (docs/notation.md): T action positions, A action dimensions, S observed steps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.learner.attention import watching
from longview.learner.policy import Policy
from longview.learner.session import PolicySession
from longview.monitoring.rrd import Decision
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, Episode


def decisions_along(policy: Policy, episode: Episode, T_o: int, seed: int) -> Iterator[Decision]:
    """Let a policy decide every T_a steps of a recorded episode. It sees the recorded frames and actions, so
    no decision depends on an earlier one.

    Args:
        policy: the policy.
        episode: an episode of the policy's task.
        T_o: context length.
        seed: seed of all randomness.

    Raises:
        ValueError: the policy takes no such T_o, or the episode's observations do not fit its task.
    """
    session = PolicySession(policy, slots=1)
    names = {key: OBSERVATION_PREFIX + key for key in policy.spec.observation}
    if missing := sorted(set(names.values()) - episode.arrays.keys()):
        raise ValueError(f"episode {episode.meta.id} has no {', '.join(missing)}, which the policy needs")
    before = 0
    with watching(policy) as attention:
        for number, step in enumerate(range(0, episode.length, session.execute)):
            new: dict[str, NDArray[Any]] = {
                key: episode.arrays[name][before if number == 0 else before + 1 : step + 1]
                for key, name in names.items()
            }
            rng = np.random.default_rng((seed, number))
            executed = episode.arrays[ACTION][before:step]
            action_1TA = session.act([0], [new], [executed], np.array([number == 0]), T_o, [rng])
            ages, shares = policy.attended(min(step + 1, T_o)), None
            if (weight_1S := attention(len(ages))) is not None:
                shares = np.zeros(T_o, np.float32)
                shares[T_o - 1 - ages] = weight_1S[0].cpu().numpy()
            yield Decision(step, action_1TA[0], shares)
            before = step
