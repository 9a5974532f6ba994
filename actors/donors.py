"""The past of another episode, shown to a policy in place of its own: a control of what memory is worth."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from longview.replay.episode import ACTION, OBSERVATION_PREFIX

Array = NDArray[Any]


class Donor:
    """Recorder that keeps one episode in memory, for an episode that is shown its past."""

    done = True
    """Whether the episode is stored, as for a receipt: it stays here."""

    def __init__(self) -> None:
        self._steps: list[tuple[dict[str, Array], Array]] = []
        """Observation and action of each step."""

    def append(self, step: Mapping[str, Array]) -> None:
        """Add a step: its observation and its action."""
        seen = {
            name.removeprefix(OBSERVATION_PREFIX): value
            for name, value in step.items()
            if name.startswith(OBSERVATION_PREFIX)
        }
        self._steps.append((seen, step[ACTION]))

    def finish(self, outcome: str) -> "Donor":
        """End the episode, and return its receipt."""
        return self

    def result(self) -> bool:
        """Whether the episode was new: always."""
        return True

    def abort(self) -> None:
        """Forget the episode."""
        self._steps.clear()

    def past(self, step: int, T_o: int) -> list[tuple[dict[str, Array], Array]]:
        """Return observation and action of the steps that a policy is shown before its present frame.

        They are oldest first, and at most T_o - 1. An episode that has ended before the step shows its last
        steps.

        Args:
            step: number of steps before the present one.
            T_o: context length.
        """
        return self._steps[:step][-(T_o - 1) :] if T_o > 1 else []
