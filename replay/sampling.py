"""Which steps of which episodes to draw: pure functions of what there is and of a random generator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.episode import SOURCES, Episode, Segment
from replay.errors import StoreError


@dataclass(frozen=True)
class Stratum:
    """The episodes of one source, sorted by id: the order in which they came must not matter."""

    ids: Sequence[str]
    ends: NDArray[np.int64]
    """(E,) number of steps that may be drawn, up to and including each episode."""

    @staticmethod
    def of(steps: Mapping[str, int]) -> "Stratum":
        """From how many steps of every episode may be drawn: its length; 0 if it is invalid or held out."""
        ids = sorted(steps)
        return Stratum(ids, np.cumsum([steps[id] for id in ids], dtype=np.int64))

    @property
    def steps(self) -> int:
        """Steps that may be drawn, of all episodes together."""
        return int(self.ends[-1]) if len(self.ends) else 0


class Draw(NamedTuple):
    """One drawn step."""

    id: str
    now: int
    """Counted from the episode's start."""
    probability: float
    """Chance that one draw picks this step."""


def shares(strata: Mapping[str, Stratum], mix: Mapping[str, float]) -> dict[str, float]:
    """Part of the draws that each source gets; sources without episodes leave theirs to the others.

    Raises:
        ValueError: the mix names an unknown source, or its shares are not all finite and >= 0, one above 0.
        StoreError: no source with a positive share has a step to draw.
    """
    if unknown := sorted(mix.keys() - set(SOURCES)):
        raise ValueError(f"mix names unknown sources {unknown}; there are {', '.join(SOURCES)}")
    if not all(0 <= share < np.inf for share in mix.values()) or not sum(mix.values()) > 0:
        raise ValueError(f"mix needs shares that are finite and not negative, one above 0, not {dict(mix)}")
    # In the order of SOURCES: the order of the mapping must not matter.
    present = {source: mix[source] for source in SOURCES if mix.get(source) and strata[source].steps}
    if not present:
        found = {source: len(stratum.ids) for source, stratum in strata.items()}
        raise StoreError(f"no episodes to draw from: mix is {dict(mix)}, episodes stored are {found}")
    total = sum(present.values())
    return {source: share / total for source, share in present.items()}


def draw(
    strata: Mapping[str, Stratum], mix: Mapping[str, float], count: int, rng: np.random.Generator
) -> list[Draw]:
    """Independent draws: a source by its share, then a step uniformly over all steps of that source.

    Args:
        strata: every source's episodes.
        mix: source -> its part of the draws, in any unit.
        count: number of draws.
        rng: the only source of chance; equal strata, mix and state give equal draws.

    Raises:
        ValueError, StoreError: as `shares`.
    """
    parts = shares(strata, mix)
    chosen = [strata[source] for source in parts]
    steps = np.array([stratum.steps for stratum in chosen])
    source = rng.choice(len(chosen), size=count, p=list(parts.values()))
    step = rng.integers(0, steps[source])
    probability = np.array(list(parts.values())) / steps
    draws: list[Draw | None] = [None] * count
    for number, stratum in enumerate(chosen):
        (places,) = np.nonzero(source == number)
        episodes = np.searchsorted(stratum.ends, step[places], side="right")
        starts = np.where(episodes > 0, stratum.ends[episodes - 1], 0)
        for place, episode, now in zip(places, episodes, step[places] - starts, strict=True):
            draws[place] = Draw(stratum.ids[episode], int(now), float(probability[number]))
    return [drawn for drawn in draws if drawn]


def cut(episode: Episode, drawn: Draw, before: int, after: int) -> Segment:
    """The drawn step with the `before` rows before it and the `after` rows after it that the episode has."""
    start = max(0, drawn.now - before)
    rows = slice(start, drawn.now + after + 1)
    return Segment(
        meta=episode.meta,
        episode_length=episode.length,
        start=start,
        now=drawn.now,
        probability=drawn.probability,
        arrays={name: array[rows] for name, array in episode.arrays.items()},
    )
