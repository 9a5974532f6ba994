"""Configs of Longview 0.1 in the words of this version."""

from copy import deepcopy
from typing import Any

from longview.replay.episode import RENAMED_SOURCES

GONE = {
    "actors.episodes_per_version": "collect.kind says what is collected, collect.steps_per_training_step how "
    "much; without it nothing is, as with 0",
    "actors.beta_until": "the expert no longer acts at random; collect.kind=takeover has it take over",
}
"""Keys of 0.1 that are gone, and what to use instead."""


def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config's tree without the keys of `GONE`, and with the present names of sources in
    `learner.mix` and `replay.evict`."""
    tree = deepcopy(tree)
    for section, key in (dotted.split(".") for dotted in GONE):
        if isinstance(tree.get(section), dict):
            tree[section].pop(key, None)
    match tree:
        case {"learner": {"mix": dict(mix)} as learner}:
            learner["mix"] = {_renamed(stratum): share for stratum, share in mix.items()}
    match tree:
        case {"replay": {"evict": list(sources)} as replay}:
            replay["evict"] = [_renamed(source) for source in sources]
    return tree


def is_old(tree: dict[str, Any]) -> bool:
    """Whether a config's tree was written by Longview 0.1."""
    return upgraded(tree) != tree


def _renamed(stratum: Any) -> Any:
    """Return a stratum such as `dagger/success` with its source's present name; anything else as it is."""
    if not isinstance(stratum, str):
        return stratum
    source, slash, rest = stratum.partition("/")
    return RENAMED_SOURCES.get(source, source) + slash + rest
