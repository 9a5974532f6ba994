"""Verdict on whether data need memory: statistics of held-out action errors.

The mean over an episode hides memory, which matters in a few steps. So errors are compared part by part of
the episode, and the comparison is corrected for the many parts and context lengths.

Legend (docs/notation.md): G segments, each a whole episode, S observed steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longview.learner.bootstrap import known_mean

PARTS = 12
"""Parts of an episode, all equally long, in which errors are compared."""
NEEDED = 0.2
"""Share of the error that a longer past must take off in some part of an episode to count as memory."""
FLOOR = 0.05
"""Error, in variances of the actions, that a smaller one counts as: a large share of next to nothing is no
memory."""
SETTLED = 0.9
"""Share of the largest gain at which a context counts as long enough."""
KEPT = 0.5
"""Share of a gain that may remain with the past of another episode. More is no memory of what happened."""
SIGNIFICANCE = 0.01
"""Largest probability, over all parts and context lengths, that a gain is chance."""
CONFIDENCE = 0.95
"""Smallest confidence of a verdict that is yes or no."""
DRAWS = 2_000
"""Random draws of the tests."""

Memory = Literal["yes", "no", "shortcut", "unclear"]


@dataclass(frozen=True)
class Gains:
    """Gains of long contexts over a short one, by part of the episode."""

    lengths: tuple[int, ...]
    """Context lengths beyond the short one, ascending."""
    error: NDArray[np.float64]
    """Error with the short context, (episodes, parts); NaN where an episode has no frame in a part."""
    gain: NDArray[np.float64]
    """Error that each length takes off, (episodes, lengths, parts)."""

    @property
    def share(self) -> NDArray[np.float64]:
        """Gain as a share of the error, (lengths, parts); NaN where no episode has a frame in a part."""
        error = np.maximum(known_mean(self.error, axis=0), FLOOR)
        share: NDArray[np.float64] = known_mean(self.gain, axis=0) / error
        return share


@dataclass(frozen=True)
class Verdict:
    """Answer to the question whether data need memory."""

    memory: Memory
    """Answer: `shortcut` means that a longer past helps, but another episode's past helps as much."""
    confidence: float
    """Confidence that a longer past takes off the share that counts, or that it does not: 0.5 to 1."""
    context_length: int
    """Shortest context that is long enough, in frames."""
    parts: tuple[int, ...]
    """Parts of the episode in which a longer past helps; empty unless `memory` is yes or shortcut."""
    gain: float
    """Largest share of the error that a longer past takes off in any part."""
    chance: float
    """Probability of such a gain by chance, corrected for all parts and lengths."""
    more_episodes: int
    """Further episodes that would settle an unclear verdict, about; 0 if it is clear."""


def by_part(error_GS: NDArray[Any]) -> NDArray[np.float64]:
    """Average each episode's errors over each of its parts: (G, parts); NaN where a part has no frame."""
    frames_G1 = np.isfinite(error_GS).sum(axis=1, keepdims=True)
    part_GS = np.arange(error_GS.shape[1]) * PARTS // np.maximum(frames_G1, 1)
    found = [np.where(part_GS == part, error_GS, np.nan) for part in range(PARTS)]
    return np.stack([known_mean(rows, axis=1) for rows in found], axis=1)


def gains(errors: Mapping[int, NDArray[Any]], short: int) -> Gains:
    """Compare context lengths with a short one.

    Args:
        errors: errors (G, S) at each context length.
        short: the length that all longer ones are compared with.
    """
    parts = {length: by_part(error_GS) for length, error_GS in errors.items() if length >= short}
    lengths = tuple(sorted(length for length in parts if length > short))
    return Gains(
        lengths, parts[short], np.stack([parts[short] - parts[length] for length in lengths], axis=1)
    )


def judge(
    errors: Mapping[int, NDArray[Any]], other: Callable[[int], NDArray[Any]], short: int, seed: int
) -> Verdict:
    """Judge whether data need a past that is longer than a short one.

    Args:
        errors: errors (G, S) at each context length, in frames; `short` and longer ones among them.
        other: returns the errors at a length beyond `short` with the past of another episode.
        short: the length up to which a past counts as no memory: it tells speeds, not what happened.
        seed: seed of the draws.
    """
    found, rng = gains(errors, short), np.random.default_rng(seed)
    share = found.share
    chance = _chance(found.gain, rng)
    draws = _drawn_shares(found, rng)
    helps = (share >= NEEDED) & (chance <= SIGNIFICANCE)
    best = float(np.nanmax(share))
    confidence = float((draws >= NEEDED).mean())
    sure = confidence if best >= NEEDED else 1 - confidence
    parts = tuple(np.flatnonzero(helps.any(axis=0)).tolist())
    enough = _enough(errors, short, parts)
    memory: Memory
    if best < NEEDED:
        memory = "no" if sure >= CONFIDENCE else "unclear"
    elif not parts or sure < CONFIDENCE:
        memory = "unclear"
    elif kept(errors[short], errors[enough], other(enough), parts) > KEPT:
        memory = "shortcut"
    else:
        memory = "yes"
    return Verdict(
        memory,
        max(sure, 1 - sure),
        enough if memory == "yes" else _enough_without_memory(errors, short),
        parts,
        best,
        float(chance[np.unravel_index(np.nanargmax(share), share.shape)]),
        _more_episodes(len(found.error), best, draws) if memory == "unclear" else 0,
    )


def kept(
    short_GS: NDArray[Any], long_GS: NDArray[Any], control_GS: NDArray[Any], parts: tuple[int, ...]
) -> float:
    """Return the share of a long context's gain that a control keeps, in some parts of the episode.

    Args:
        short_GS: errors with the short context.
        long_GS: errors with the long context.
        control_GS: errors of the control.
        parts: the parts, one or more.
    """
    chosen = list(parts)
    short, long, control = (
        np.nansum(known_mean(by_part(error_GS)[:, chosen], axis=0))
        for error_GS in (short_GS, long_GS, control_GS)
    )
    return float((short - control) / (short - long)) if short != long else 0.0


def _chance(gain: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the probability (lengths, parts) that a gain as large as each arises anywhere by chance.

    Without memory, an episode is as likely to lose by a longer past as to gain. The sign of all gains of an
    episode is drawn together, and the largest of all gains, each over its standard error, is compared.
    """
    known = np.isfinite(gain)
    value, count = np.where(known, gain, 0.0), np.maximum(known.sum(axis=0), 1)
    error = np.sqrt(np.square(value).sum(axis=0)) / count
    scale = 1 / (count * np.maximum(error, 1e-12))
    found = value.sum(axis=0) * scale
    signs = rng.choice((-1.0, 1.0), size=(DRAWS, len(gain)))
    largest = (np.einsum("dg,glp->dlp", signs, value, optimize=True) * scale).max(axis=(1, 2))
    chance: NDArray[np.float64] = (1 + (largest[:, None, None] >= found).sum(axis=0)) / (1 + DRAWS)
    return chance


def _drawn_shares(found: Gains, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw episodes again and again, and return each time the largest share that a longer past takes off."""
    count = len(found.error)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
    known = np.maximum(drawn @ np.isfinite(found.error), 1)
    gain = np.einsum("dg,glp->dlp", drawn, np.nan_to_num(found.gain), optimize=True) / known[:, None]
    error = np.maximum(drawn @ np.nan_to_num(found.error) / known, FLOOR)
    largest: NDArray[np.float64] = (gain / error[:, None]).max(axis=(1, 2))
    return largest


def _enough(errors: Mapping[int, NDArray[Any]], short: int, parts: tuple[int, ...]) -> int:
    """Return the shortest length whose gain over the short one, in some parts, is nearly the largest."""
    chosen = list(parts)
    total = {
        length: float(np.nansum(known_mean(by_part(error_GS)[:, chosen], axis=0)))
        for length, error_GS in sorted(errors.items())
        if length >= short
    }
    most = total[short] - min(total.values())
    return next(length for length in total if total[short] - total[length] >= SETTLED * most)


def _enough_without_memory(errors: Mapping[int, NDArray[Any]], short: int) -> int:
    """Return the shortest length, up to the short one, that is nearly as good as all of these."""
    mean = {length: float(np.nanmean(rows)) for length, rows in sorted(errors.items()) if length <= short}
    most = mean[1] - min(mean.values())
    return next(length for length in mean if mean[1] - mean[length] >= SETTLED * most)


def _more_episodes(count: int, best: float, draws: NDArray[np.float64]) -> int:
    """Estimate how many further episodes would make the verdict clear, if the gain stays what it is."""
    distance, spread = abs(best - NEEDED), float(draws.std())
    wanted = NormalDist().inv_cdf(CONFIDENCE) * spread / max(distance, spread / 10)
    return max(1, math.ceil(count * wanted**2) - count)
