"""When a sampler may draw: an argument of the store, kept in the sampler's process and nowhere else."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from longview.replay.errors import LimiterTimeout

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
TELL_SECONDS: Final = 10.0
"""Who waits for longer says so in the log."""


def _never() -> bool:
    return False


@dataclass
class Limiter:
    """Lets a sampler draw so many steps for every step that was committed, and none before there are enough.

    Everything may be changed while running, also while a draw waits.
    """

    samples_per_insert: float | None = None
    """Steps that this sampler may draw for each that was ever committed to what it draws from; None: any."""
    minimum_steps: int = 0
    """Steps that must be there to draw from."""
    timeout_seconds: float = 600.0
    cancelled: Callable[[], bool] = _never
    """When this says so, what waits goes on at once, as if there were no limit."""
    drawn: int = 0
    """Steps that were drawn under this limiter."""
    waited_seconds: float = 0.0

    @property
    def limits(self) -> bool:
        """Is there anything to wait for?"""
        wanted = self.samples_per_insert is not None or self.minimum_steps > 0
        return wanted and not self.cancelled()

    def refusal(self, count: int, committed: int, stored: int) -> str:
        """Why no `count` steps may be drawn when so many were ever committed and so many are there; nothing
        if they may."""
        if stored < self.minimum_steps:
            return f"{stored} steps are there to draw from, minimum_steps is {self.minimum_steps}"
        if self.samples_per_insert is None or self.drawn + count <= self.samples_per_insert * committed:
            return ""
        return (
            f"{self.drawn} steps were drawn and {count} are wanted for {committed} committed ones: "
            f"{(self.drawn + count) / max(1, committed):.3g} for each, "
            f"samples_per_insert is {self.samples_per_insert:g}"
        )


def wait(current: Callable[[], Limiter], count: int, look: Callable[[], tuple[int, int]]) -> None:
    """Wait until `count` steps may be drawn, and count them.

    Args:
        current: the limiter, which may become another meanwhile.
        look: steps that were ever committed, and that are there to draw from.

    Raises:
        LimiterTimeout: it took longer than `timeout_seconds`.
    """
    start, told = time.monotonic(), False
    while (limiter := current()).limits and (refusal := limiter.refusal(count, *look())):
        waited = time.monotonic() - start
        if waited >= limiter.timeout_seconds:
            raise LimiterTimeout(f"waited {waited:.3g} s to draw {count} steps: {refusal}")
        if waited >= TELL_SECONDS and not told:
            log.warning("waiting for at most %g s to draw: %s", limiter.timeout_seconds, refusal)
            told = True
        time.sleep(POLL_SECONDS)
        limiter.waited_seconds += POLL_SECONDS
    limiter.drawn += count
