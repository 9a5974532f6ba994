"""Weights and scales that a new policy takes from a trained one, its base."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from longview.learner.encoder import KEYPOINTS
from longview.learner.normalize import Normalizer, Statistics
from longview.learner.policy import Policy
from longview.replay.episode import ACTION, OBSERVATION_PREFIX

INPUT = "encoder.layers.0.weight"
"""Name of the weights to which states and keypoints are given, whose columns belong to observations."""
CAMERA = "encoder.cameras."
"""Beginning of the names of the weights of the cameras' networks, which a number follows."""


@dataclass(frozen=True)
class Fit:
    """Parameters of a policy, by name, that fit those of its base."""

    taken: tuple[str, ...]
    """Parameters that were taken from the base."""
    partly: tuple[str, ...]
    """Parameters of which only the columns of common observations were taken."""
    left: tuple[str, ...]
    """Parameters that keep their random values: the base has none of this name and shape."""
    share: float
    """Share of the policy's numbers that were taken."""
    settings: Mapping[str, tuple[Any, Any]]
    """Settings of the policy that differ, by key: the base's value, and the policy's own."""

    @property
    def lines(self) -> list[str]:
        """Sentences for a person: what is taken, what is not, and which settings differ."""
        total = len(self.taken) + len(self.partly) + len(self.left)
        lines = [f"taken: {len(self.taken)} of {total} tensors, {self.share:.1%} of the parameters"]
        if self.partly:
            lines.append(f"taken in part, for the observations of both: {', '.join(grouped(self.partly))}")
        if self.left:
            lines.append(f"left, because they do not fit: {', '.join(grouped(self.left))}")
        if self.settings:
            differing = (
                f"{key} {theirs} there and {ours} here" for key, (theirs, ours) in self.settings.items()
            )
            lines.append(f"settings of learner.policy that differ: {'; '.join(differing)}")
        return lines


def take(policy: Policy, base: Policy) -> Fit:
    """Take from a base every parameter of the same name and shape, and say what fits.

    The input of the encoder has columns for each observation, and each camera has a network. Both are taken
    by the name of the observation, whatever its place in the base.

    Args:
        policy: the policy that is changed, of any kind and task.
        base: a trained policy.
    """
    theirs = dict(base.named_parameters())
    taken, partly, left, numbers = list[str](), list[str](), list[str](), 0
    with torch.no_grad():
        for name, ours in policy.named_parameters():
            if name == INPUT:
                found = _take_columns(policy, base)
            else:
                other = theirs.get(_name_in_base(name, policy, base))
                found = ours.numel() if other is not None and other.shape == ours.shape else 0
                if other is not None and found:
                    ours.copy_(other)
            (taken if found == ours.numel() else partly if found else left).append(name)
            numbers += found
    share = numbers / sum(parameter.numel() for parameter in policy.parameters())
    settings = asdict(base.config), asdict(policy.config)
    differing = {
        key: (settings[0].get(key), value)
        for key, value in settings[1].items()
        if key != "size" and settings[0].get(key) != value
    }
    return Fit(tuple(taken), tuple(partly), tuple(left), share, differing)


def fit_scales(policy: Policy, statistics: Mapping[str, Statistics], base: Policy) -> dict[str, int]:
    """Set the normalisation from statistics, and keep the base's scale wherever it suits them.

    The base's weights know states and actions in the base's scale. `Normalizer.keep` says when it suits.

    Args:
        policy: the policy that is changed.
        statistics: statistics of the new data, as `normalize.measure` returns them.
        base: a trained policy.

    Returns:
        The number of dimensions that are scaled by the new data alone, for each array of which any are.
    """
    policy.fit(statistics)
    ours, theirs = dict(_scaled(policy)), dict(_scaled(base))
    anew = {}
    for name, (normalizer, place) in ours.items():
        kept = 0
        if _same_array(policy, base, name):
            kept = normalizer.keep(place, statistics[name], *theirs[name])
        if kept < place.stop - place.start:
            anew[name] = place.stop - place.start - kept
    return anew


def grouped(names: tuple[str, ...]) -> Iterator[str]:
    """Shorten names of parameters: those of one part of a network, two levels deep, become one entry."""
    for part, some in groupby(names, key=lambda name: ".".join(name.split(".")[:2])):
        every = list(some)
        yield f"{part}.* ({len(every)})" if len(every) > 1 else every[0]


def _take_columns(policy: Policy, base: Policy) -> int:
    """Take the columns of the encoder's input that belong to common observations, and count their numbers."""
    ours, theirs = (dict(each.named_parameters())[INPUT] for each in (policy, base))
    places, taken = dict(_columns(base)), 0
    for key, columns in _columns(policy):
        if len(ours) == len(theirs) and _same_array(policy, base, OBSERVATION_PREFIX + key):
            ours[:, columns] = theirs[:, places[key]]
            taken += ours[:, columns].numel()
    return taken


def _columns(policy: Policy) -> Iterator[tuple[str, slice]]:
    """Yield the columns of the encoder's input for each observation: states, then the cameras' keypoints."""
    end = 0
    for name, (_, place) in _scaled(policy):
        if name != ACTION:
            yield name.removeprefix(OBSERVATION_PREFIX), place
            end = place.stop
    for key in policy.cameras:
        yield key, slice(end, end := end + 2 * KEYPOINTS)


def _scaled(policy: Policy) -> Iterator[tuple[str, tuple[Normalizer, slice]]]:
    """Yield the normaliser of each array and its place in there, by the array's name."""
    end = 0
    for key in policy.vectors:
        start, end = end, end + math.prod(policy.spec.observation[key].shape)
        yield OBSERVATION_PREFIX + key, (policy.states, slice(start, end))
    yield ACTION, (policy.actions, slice(0, policy.action_size))


def _same_array(policy: Policy, base: Policy, name: str) -> bool:
    """Tell whether both policies have an array of this name, of one shape and normalised in one way."""
    ours, theirs = (each.spec.arrays().get(name) for each in (policy, base))
    key = name.removeprefix(OBSERVATION_PREFIX)
    return (
        ours is not None
        and theirs is not None
        and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        and policy.normalization.get(key) == base.normalization.get(key)
    )


def _name_in_base(name: str, policy: Policy, base: Policy) -> str:
    """Return the base's name of a parameter; empty if it belongs to a camera that the base does not have."""
    if not name.startswith(CAMERA):
        return name
    number, _, rest = name.removeprefix(CAMERA).partition(".")
    key = policy.cameras[int(number)]
    if key not in base.cameras:
        return ""
    return f"{CAMERA}{base.cameras.index(key) % len(base.encoder.cameras)}.{rest}"
