"""Limits on how much may be drawn from a store and written to it. They live in the process that they limit;
the store does not keep them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from longview.replay.errors import LimiterTimeout

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
"""Pause between two looks at the store while a draw waits."""
WARN_SECONDS: Final = 10.0
"""Waiting time after which the log says what a draw is waiting for."""


def _never() -> bool:
    return False


@dataclass
class Limiter:
    """Two bounds that keep drawing and writing in step: on the steps drawn, and on the steps written.

    A draw waits while fewer than `minimum_steps` steps are stored, or while it would bring the drawn steps
    above `samples_per_insert` times the committed steps. Writers wait while they have written more than
    `inserts_per_sample` times the drawn steps, unless the next draw waits for them. Therefore drawing and
    writing do not wait for each other, whatever the bounds are, as long as somebody can write. Until then,
    draws are `free`. All fields may be changed while a draw waits.
    """

    samples_per_insert: float | None = None
    """Steps that this sampler may draw per step that was ever committed to the selected strata, above 0;
    None: no limit."""
    minimum_steps: int = 0
    """Steps that must be stored in the selected strata before the first draw."""
    inserts_per_sample: float | None = None
    """Steps that may be written per drawn step, above 0; None: no limit."""
    timeout_seconds: float = 600.0
    """Seconds that a draw may wait before it fails."""
    cancelled: Callable[[], bool] = _never
    """Function that returns True to lift all limits; a waiting draw then goes on at once."""
    free: int = 0
    """Steps that may be drawn before the first draw waits."""
    drawn: int = 0
    """Steps that were drawn under this limiter."""
    waited_seconds: float = 0.0
    """Seconds that draws have waited under this limiter."""

    @property
    def limits(self) -> bool:
        """Whether any limit is set and not cancelled."""
        wanted = self.samples_per_insert is not None or self.minimum_steps > 0
        return wanted and not self.cancelled()

    def refusal(self, count: int, committed: int, stored: int) -> str:
        """Say why `count` steps may not be drawn now; return an empty string if they may.

        Args:
            count: steps to draw.
            committed: steps that were ever committed to the selected strata.
            stored: steps that are stored in them now.
        """
        if self.drawn + count <= self.free:
            return ""
        if stored < self.minimum_steps:
            return f"{stored} steps are stored to draw from, minimum_steps is {self.minimum_steps}"
        if self.samples_per_insert is None or self.drawn + count <= self.samples_per_insert * committed:
            return ""
        return (
            f"{self.drawn} steps were drawn and {count} are wanted for {committed} committed ones: "
            f"{(self.drawn + count) / max(1, committed):.3g} for each, "
            f"samples_per_insert is {self.samples_per_insert:g}"
        )

    def holds(self, written: float, count: int, sizes: Callable[[], tuple[int, int]]) -> bool:
        """Whether writers have to wait now.

        Args:
            written: steps that were written, those under way included.
            count: steps of the draws that the sampler may be at.
            sizes: returns the committed and the stored steps, as `refusal` takes them.
        """
        if self.inserts_per_sample is None or written <= self.inserts_per_sample * self.drawn:
            return False
        # Telling the sizes needs a list of all episodes, so they are asked for only if a draw may wait.
        return not (self.limits and self.refusal(count, *sizes()))


def wait(current: Callable[[], Limiter], count: int, steps: Callable[[], tuple[int, int]]) -> None:
    """Wait until `count` steps may be drawn, and count them as drawn.

    Args:
        current: returns the limiter, which may be replaced during the wait.
        count: steps to draw.
        steps: returns the committed and the stored steps of the selected strata.

    Raises:
        LimiterTimeout: the wait took longer than `timeout_seconds`.
    """
    start, warned = time.monotonic(), False
    while (limiter := current()).limits and (refusal := limiter.refusal(count, *steps())):
        waited = time.monotonic() - start
        if waited >= limiter.timeout_seconds:
            raise LimiterTimeout(f"waited {waited:.3g} s to draw {count} steps: {refusal}")
        if waited >= WARN_SECONDS and not warned:
            log.warning("waiting for at most %g s to draw: %s", limiter.timeout_seconds, refusal)
            warned = True
        asleep = time.monotonic()
        time.sleep(POLL_SECONDS)
        limiter.waited_seconds += time.monotonic() - asleep
    limiter.drawn += count
