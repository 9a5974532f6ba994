"""Stored episodes to look at: `longview show`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from longview.cluster.commands.transfer import only_task
from longview.cluster.run.config import ConfigError
from longview.cluster.run.ending import ending
from longview.cluster.run.folder import any_store
from longview.cluster.views.terminal import console
from longview.monitoring.rrd import Decision, Scene, write_rrd
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    BY_PERSON,
    BY_POLICY,
    CONTROLLER,
    EXPERT_ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    Episode,
    TaskSpec,
)
from longview.replay.errors import StoreError
from longview.replay.store import EpisodeStore

if TYPE_CHECKING:
    from longview.learner.policy import Policy

CONTROLLERS: Final = {int(BY_POLICY): "a policy", int(BY_EXPERT): "an expert", int(BY_PERSON): "a person"}
"""Words for who is in control."""


def show(
    run: str | None,
    url: str | None,
    ids: Sequence[str],
    chosen: Mapping[str, str | None],
    count: int,
    file: Path,
    checkpoint: Path | None,
    context_length: int | None,
    seed: int,
) -> None:
    """Write stored episodes into a file for Rerun, and say what it holds.

    Args:
        run: name of the run whose store it is, or with a URL any namespace; by default the newest run.
        url: the store's Redis; by default the run's own.
        ids: episodes to show; none: the newest ones that `chosen` describes.
        chosen: source, task and outcome of the episodes; None means any.
        count: most episodes to show where no ids are given.
        file: the file to write.
        checkpoint: policy that decides along the episodes; None: none does.
        context_length: T_o of the policy; None: its longest.
        seed: seed of the policy's randomness.

    Raises:
        ConfigError: the file has no folder to go to, or the policy does not fit.
        StoreError: the store cannot be reached, or has no such episodes.
    """
    if not file.parent.is_dir():  # not after minutes of work
        raise ConfigError(f"--rerun {file}: there is no folder {file.parent}")
    policy = None if checkpoint is None else _policy(checkpoint, context_length)
    with ExitStack() as stack:
        store = stack.enter_context(any_store(run, url))
        spec, ids = _episodes(store, ids, chosen, count)
        if policy is not None and policy.spec.observation.items() - spec.observation.items():
            raise ConfigError(f"--policy {checkpoint} sees other observations than task {spec.name} has")
        draft = file.with_name(f".{file.name}")
        with ending(lambda: draft.unlink(missing_ok=True)):
            scenes = _scenes(store, ids, spec, policy, context_length, seed)
            shown = write_rrd(draft, spec.name, scenes, spec.control_hz)
            draft.replace(file)
    console.print(f"{file}: {shown} episodes of {spec.name}", soft_wrap=True, markup=False)
    console.print(f"look at it by: rerun {file}", soft_wrap=True, markup=False)


def _policy(checkpoint: Path, context_length: int | None) -> "Policy":
    """Load a policy.

    Raises:
        ConfigError: there is none, or it takes no such context length.
    """
    from longview.learner.policy import load_policy

    try:
        policy = load_policy(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None
    longest = policy.horizon.context
    if context_length is not None and context_length > longest:
        raise ConfigError(f"--context {context_length} is longer than the policy's longest, {longest}")
    return policy


def _episodes(
    store: EpisodeStore, ids: Sequence[str], chosen: Mapping[str, str | None], count: int
) -> tuple[TaskSpec, Sequence[str]]:
    """Find the episodes to show, and their task.

    Raises:
        StoreError: there are none.
        DatasetError: they are of several tasks.
    """
    if ids:
        if missing := store.missing(ids):
            raise StoreError(f"the store has no episode {', '.join(missing)}")
        records = [record for record in store.records() if record.meta.id in ids]
    else:
        records = list(store.records(**chosen))[-count:]
    task = only_task(records, chosen)
    return store.spec(task), [record.meta.id for record in records]


def _scenes(
    store: EpisodeStore,
    ids: Sequence[str],
    spec: TaskSpec,
    policy: "Policy | None",
    context_length: int | None,
    seed: int,
) -> Iterator[Scene]:
    """Read episodes one after the other, and let the policy decide along each."""
    for number, id in enumerate(ids):
        episode = store.read(id)
        decisions: list[Decision] = []
        if policy is not None:
            from longview.learner.decisions import decisions_along

            length = context_length or policy.horizon.context
            decisions = list(decisions_along(policy, episode, length, seed))
            if number == 0 and decisions[0].attention_S is None:
                said = "this policy attends to no single frames: only its actions are shown"
                console.print(said, soft_wrap=True)
        yield scene_of(episode, spec, decisions)


def scene_of(episode: Episode, spec: TaskSpec, decisions: Sequence[Decision] = ()) -> Scene:
    """Describe an episode as the viewer shows it.

    Args:
        episode: the episode.
        spec: its task.
        decisions: decisions of a policy along it.
    """
    arrays, images = episode.arrays, {key for key, array in spec.observation.items() if array.is_image}
    observed = {key: arrays[OBSERVATION_PREFIX + key] for key in spec.observation}
    numbers = {key: rows for key, rows in observed.items() if key not in images}
    numbers |= {name: arrays[name] for name in (ACTION, EXPERT_ACTION, REWARD, CONTROLLER) if name in arrays}
    return Scene(
        name=episode.meta.id,
        pictures={key: observed[key] for key in sorted(images)},
        numbers=numbers,
        controllers=[CONTROLLERS[int(value)] for value in arrays[CONTROLLER]],
        outcome=episode.outcome,
        facts=_facts(episode, spec),
        decisions=decisions,
    )


def _facts(episode: Episode, spec: TaskSpec) -> str:
    """Write down an episode's facts as a table of Markdown."""
    meta = episode.meta
    rows: dict[str, Any] = {
        "task": meta.task,
        "source": meta.source,
        "outcome": episode.outcome,
        "steps": f"{episode.length} at {spec.control_hz:g} Hz",
        "seed": meta.seed,
    }
    if meta.policy_versions:
        rows |= {"policy versions": ", ".join(map(str, meta.policy_versions)), "T_o": meta.context_length}
    rows |= {name: json.dumps(value) for name, value in episode.extras.items()}
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join((f"# {meta.id}", "", "| | |", "|---|---|", *lines))
