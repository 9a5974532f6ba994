"""The past of another episode, shown to a policy in place of its own: a control of what memory is worth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.replay.episode import ACTION, OBSERVATION_PREFIX

Array = NDArray[Any]


class Donor:
    """Recorder that keeps one episode in memory, for an episode that is shown its past."""

    done = True
    """Whether the episode is stored, as for a receipt: it stays here."""

    def __init__(self) -> None:
        self._steps: list[Mapping[str, Array]] = []

    def append(self, step: Mapping[str, Array]) -> None:
        """Add a step: its observation and its action."""
        self._steps.append(step)

    def finish(self, outcome: str) -> "Donor":
        """End the episode, and return its receipt."""
        return self

    def result(self) -> bool:
        """Whether the episode was new: always."""
        return True

    def abort(self) -> None:
        """Forget the episode."""
        self._steps.clear()

    def view(self, now: Mapping[str, Array], step: int, T_o: int) -> tuple[dict[str, Array], Array | None]:
        """Return what a policy is shown at a step: this episode's past, then the present frame.

        Args:
            now: the present observation, which is never the donor's.
            step: number of steps before the present one.
            T_o: context length.

        Returns:
            Frames (n, ...) by key, at most T_o and oldest first, and the actions (n - 1, A) between them;
            None without a past. An episode that has ended before the step shows its last steps.
        """
        past = self._steps[:step][-(T_o - 1) :] if T_o > 1 else []
        frames = {
            key: np.stack([*(row[OBSERVATION_PREFIX + key] for row in past), frame])
            for key, frame in now.items()
        }
        return frames, np.stack([row[ACTION] for row in past]) if past else None
