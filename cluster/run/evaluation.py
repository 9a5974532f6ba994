"""One version at one context length, evaluated."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from longview.actors.worker import Result


@dataclass
class Evaluation:
    """One version at one context length, as far as it has got."""

    version: int
    context_length: int
    wanted: int
    outcomes: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def add(self, result: Result) -> None:
        """Count what one order found."""
        self.outcomes.update(result.outcomes)
        self.steps += result.steps

    @property
    def successes(self) -> int:
        """Episodes completed at the right place."""
        return self.outcomes["success"]

    @property
    def completed(self) -> int:
        """Episodes completed, at whatever place."""
        return self.outcomes["success"] + self.outcomes["wrong"]

    @property
    def episodes(self) -> int:
        """Episodes that say something of the policy: all but the invalid ones."""
        return self.rolled_out - self.outcomes["invalid"]

    @property
    def rolled_out(self) -> int:
        """Episodes that have ended, however they did."""
        return self.outcomes.total()

    @property
    def finished(self) -> bool:
        """Whether all its episodes have been rolled out."""
        return self.rolled_out >= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """The line that the run's folder keeps."""
        return {
            "version": self.version,
            "context_length": self.context_length,
            "successes": self.successes,
            "completed": self.completed,
            "episodes": self.episodes,
            "outcomes": dict(self.outcomes),
            "steps": self.steps,
        }
