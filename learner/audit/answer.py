"""Answer of an audit: whether data need memory, how far back, and why, in words and numbers.

Legend (docs/notation.md): S observed steps, A action dimensions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.learner.audit.errors import FOLDS, STEPS, Auditors, Progress, train_auditors
from longview.learner.audit.recordings import record, stride_of
from longview.learner.audit.verdict import PARTS, Memory, Verdict, by_part, judge, kept
from longview.learner.audit.views import View
from longview.learner.bootstrap import known_mean, mean_interval
from longview.replay.episode import Episode, TaskSpec

LENGTHS: Final = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
"""Context lengths that are compared, in frames: each about 1.4 times the one before."""
SHORT_SECONDS: Final = 0.5
"""Reach of a past that counts as no memory: it tells speeds and what is being done, not what has happened."""
FEWEST: Final = 2 * FOLDS
"""Fewest episodes to audit: each part of the data has two, so that a past can be another episode's."""
COPIED: Final = 0.8
"""Share of the gain that past actions alone must keep to count as telling what the long past tells."""


class TooLittleData(ValueError):
    """Episodes that are too few, or too short, to ask for memory; the error says how many it takes."""


@dataclass(frozen=True)
class Plan:
    """Plan of an audit: which contexts are compared, and how their frames lie in time."""

    hz: float
    """Steps per second."""
    stride: int
    """Steps between two frames."""
    lengths: tuple[int, ...]
    """Context lengths to compare, in frames, ascending."""
    short: int
    """Length that the longer ones are compared with."""

    @property
    def work(self) -> int:
        """Training steps of all networks."""
        return FOLDS * STEPS

    def steps(self, frames: int) -> int:
        """Return how many steps a context of so many frames reaches back."""
        return (frames - 1) * self.stride

    def seconds(self, frames: int) -> float:
        """Return how many seconds a context of so many frames reaches back."""
        return self.steps(frames) / self.hz


@dataclass(frozen=True)
class Answer:
    """Answer of an audit, as `longview audit --json` prints it.

    Errors are squared, in variances of the actions.
    """

    memory: bool | None
    """Whether a longer past than `short_seconds` is needed; None: these data do not tell."""
    verdict: Memory
    """Answer with its reason: `shortcut` is no memory, though a longer past helps."""
    reach_steps: int
    """Steps that a policy has to look back."""
    T_o: int
    """Context length to train with."""
    confidence: float
    """Confidence in `memory`, 0.5 to 1."""
    more_episodes: int
    """Further episodes that would settle an unclear answer, about."""
    gain: float
    """Largest share of the error that a longer past takes off, over the parts of an episode."""
    chance: float
    """Probability of such a gain by chance."""
    short_seconds: float
    """Reach of the past that longer ones are compared with."""
    episodes: int
    """Number of episodes that were looked at."""
    steps: int
    """Steps of these episodes."""
    parts: list[tuple[float, float]]
    """Parts of an episode in which a longer past helps, 0 to 1."""
    controls: dict[str, dict[str, float | None]]
    """Error with each control's view in these parts (in all, where there are none), and the share of the long
    context's gain that it keeps: None where there are none, and so no gain."""
    action_error: dict[int, dict[str, float]]
    """Error over whole episodes by T_o, with its interval over episodes."""
    in_parts: dict[int, dict[str, float]]
    """Error in the parts in which a longer past helps, by T_o; empty where there are none."""
    by_part: dict[int, list[float | None]]
    """Error by T_o in each part of an episode; None where no episode has a frame: they are shorter than the
    parts are many."""
    lines: list[str]
    """Answer in words."""


def plan(lengths: Sequence[int], hz: float) -> Plan:
    """Plan an audit.

    Args:
        lengths: steps of each episode.
        hz: steps per second.

    Raises:
        TooLittleData: the episodes are too few, or too short to ask for memory.
    """
    _refuse_few(len(lengths))
    stride = stride_of(lengths)
    reach = {length: (length - 1) * stride for length in LENGTHS}
    short = max(2, *(length for length in LENGTHS if reach[length] <= SHORT_SECONDS * hz))
    tried = tuple(length for length in LENGTHS if reach[length] < max(lengths))
    if tried[-1] <= short:
        raise TooLittleData(
            f"episodes of at most {max(lengths)} steps at {hz:g} Hz are too short to need a memory of more "
            f"than {reach[short] / hz:g} s"
        )
    return Plan(hz, stride, tried, short)


def find_out(
    planned: Plan,
    episodes: Iterable[Episode],
    spec: TaskSpec,
    seed: int,
    threads: int,
    progress: Progress,
) -> Answer:
    """Find out whether data need memory.

    Args:
        planned: the plan.
        episodes: the episodes that it was made for.
        spec: their task.
        seed: seed of all randomness.
        threads: networks that are trained at a time.
        progress: called `planned.work` times, from any thread.

    Raises:
        TooLittleData: too many of the episodes that were planned with are missing.
    """
    recordings = record(episodes, spec, planned.stride)
    _refuse_few(len(recordings))
    auditors = train_auditors(
        recordings, planned.lengths, planned.stride, planned.hz, seed, threads, progress
    )
    steps = sum(len(recording.action_SA) for recording in recordings)
    return _answer(auditors, planned, len(recordings), steps, seed)


def _refuse_few(episodes: int) -> None:
    """Refuse fewer episodes than an audit needs.

    Raises:
        TooLittleData: they are too few.
    """
    if episodes < FEWEST:
        raise TooLittleData(f"{episodes} episodes are too few: an audit needs at least {FEWEST}")


def _answer(auditors: Auditors, planned: Plan, episodes: int, steps: int, seed: int) -> Answer:
    """Ask trained auditors whether the data need memory."""
    lengths, short, seen = planned.lengths, planned.short, cache(auditors.errors)
    errors = {length: seen(View(length)) for length in lengths}
    found = judge(errors, lambda length: seen(View(length, history="other")), short, seed)
    long = found.context_length if found.context_length > short else lengths[-1]
    views = {
        "single frame": View(1, time=False),
        "time alone": View(1),
        "truncated": View(short),
        "past of another episode": View(long, history="other"),
        "past reversed": View(long, history="reversed"),
        "past actions alone": View(long, sees="actions"),
    }
    keeps = {
        name: _short(kept(errors[short], errors[long], seen(view), found.parts))
        for name, view in views.items()
        if found.parts
    }
    controls = {
        name: {
            "error": _short(np.nanmean(by_part(seen(view))[:, list(found.parts) or slice(None)])),
            "gain_kept": keeps.get(name),
        }
        for name, view in views.items()
    }
    parts = [(part / PARTS, (part + 1) / PARTS) for part in found.parts]
    inside = {length: by_part(rows)[:, list(found.parts)] for length, rows in errors.items()}
    return Answer(
        memory={"yes": True, "unclear": None}.get(found.memory, False),
        verdict=found.memory,
        reach_steps=planned.steps(found.context_length),
        T_o=planned.steps(found.context_length) + 1,
        confidence=_short(found.confidence),
        more_episodes=found.more_episodes,
        gain=_short(found.gain),
        chance=_short(found.chance),
        short_seconds=_short(planned.seconds(short)),
        episodes=episodes,
        steps=steps,
        parts=parts,
        controls=controls,
        action_error=_intervals(errors, planned),
        in_parts=_intervals(inside, planned) if parts else {},
        by_part={
            planned.steps(length) + 1: [
                _short(value) if np.isfinite(value) else None for value in known_mean(by_part(rows), axis=0)
            ]
            for length, rows in errors.items()
        },
        lines=_lines(found, keeps, planned),
    )


def _lines(found: Verdict, keeps: Mapping[str, float], planned: Plan) -> list[str]:
    """Put an answer into words.

    Args:
        found: the verdict.
        keeps: share of the gain that each control keeps; empty where there is no gain.
        planned: the plan.
    """
    reach, least = planned.seconds(found.context_length), planned.seconds(planned.short)
    sure, length = f"confidence {found.confidence:.0%}", f"T_o {planned.steps(found.context_length) + 1}"
    where = ", ".join(_places(found.parts))
    beyond = f"a past of more than {least:.2g} s takes"
    takes = f"{beyond} {found.gain:.0%} off the action error, at {where} of an episode"
    if found.memory == "yes":
        other, actions = keeps["past of another episode"], keeps["past actions alone"]
        copies = ": they tell it as well, so a policy may copy its own past actions instead of looking"
        return [
            f"memory: yes, about {reach:.2g} s of it ({length}); {sure}",
            takes,
            f"the past of another episode keeps {max(0, other):.0%} of that: it counts what happened here",
            f"past actions alone keep {actions:.0%}{copies if actions >= COPIED else ''}",
        ]
    if found.memory == "shortcut":
        return [
            f"memory: no, but a shortcut; {sure} that a longer past helps",
            takes,
            "the past of another episode helps as much: it tells the time or the stage, not what happened",
        ]
    helps = (
        "no sign that more than a single frame helps"
        if found.context_length == 1
        else f"no sign that more than {reach:.2g} s of the past helps ({length})"
    )
    most = f"{beyond} at most {max(0, found.gain):.0%} off the action error"
    if found.memory == "no":
        return [f"memory: no; {helps}; {sure}", f"{most}, in any part of an episode"]
    return [
        f"memory: unclear; {most}, in some part of an episode, and chance may have done it",
        f"about {found.more_episodes:,} more episodes would settle it",
    ]


def _places(parts: Sequence[int]) -> list[str]:
    """Name runs of parts, such as 50-75 %."""
    runs = list[list[int]]()
    for part in parts:
        if runs and runs[-1][1] == part:
            runs[-1][1] = part + 1
        else:
            runs.append([part, part + 1])
    return [f"{100 * first / PARTS:.0f}-{100 * last / PARTS:.0f} %" for first, last in runs]


def _intervals(errors: Mapping[int, NDArray[Any]], planned: Plan) -> dict[int, dict[str, float]]:
    """Average each episode's errors, and return mean and interval over episodes, by T_o in steps."""
    found = {}
    for length, rows in errors.items():
        ends = mean_interval(known_mean(rows, axis=1))
        found[planned.steps(length) + 1] = {
            name: _short(value) for name, value in zip(("mean", "low", "high"), ends, strict=True)
        }
    return found


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")
