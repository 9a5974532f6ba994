"""Import of a data set's episodes into a store."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from longview.replay.datasets.source import OpenEpisode, Source
from longview.replay.episode import ACTION
from longview.replay.errors import DatasetError, ReplayError, StoreFull
from longview.replay.store import EpisodeStore

SAMPLED: Final = 4
"""Episodes from which the bytes of an import are estimated."""


def bring_in(
    source: Source, indices: Sequence[int], store: EpisodeStore, skip_bad: bool = False
) -> Iterator[bool]:
    """Add a data set's episodes to a store, and yield after each whether it is new.

    Episodes that the store holds already are skipped, so an import may be repeated. The task is registered
    with the first episode, so that an import that brings nothing does not fix what the task is.

    Args:
        source: the data set.
        indices: indices of the episodes to add.
        store: the store.
        skip_bad: whether an unreadable episode is skipped and noted in the source's account; else it raises.

    Raises:
        DatasetError: an episode cannot be read; the message names it and the field.
        StoreFull: the episodes will not fit; see `refuse_oversized`.
        StoreError: an episode cannot be stored.
    """
    refuse_oversized(source, indices, store)
    registered = False
    for index in indices:
        new = False
        try:
            if source.id(index) not in store:
                opening = source.open(index)
                new = _add(opening, store) if registered else _add_first(source, opening, store)
                registered = True
        except DatasetError as error:
            if not skip_bad:
                raise
            source.account.bad.append(str(error))
        yield new


def _add_first(source: Source, opening: OpenEpisode, store: EpisodeStore) -> bool:
    """Add an episode, and register its task if it is new. If the episode cannot be stored, neither is the
    task."""
    fresh = source.spec.name not in store.tasks()
    store.register(source.spec)
    try:
        return _add(opening, store)
    except BaseException:  # also if a person stops the import
        if fresh:
            with suppress(ReplayError):  # it would hide why the import ends
                store.forget(source.spec.name)
        raise


def refuse_oversized(source: Source, indices: Sequence[int], store: EpisodeStore) -> None:
    """Refuse an import that will not fit, by an estimate from a few steps, before it has begun.

    Args:
        source: the data set.
        indices: indices of the episodes to add; those that the store holds already take no room.
        store: the store.

    Raises:
        StoreFull: the message says how much the episodes need, what limits them, and what to do.
    """
    step_bytes = _step_bytes(source, indices, store)
    what, room = min(store.rooms().items(), key=lambda item: item[1])
    if step_bytes * _steps(source, indices) <= room:
        return
    ids = {}
    for index in indices:
        with suppress(DatasetError):  # the import reports it
            ids[source.id(index)] = index
    new = [ids[id] for id in store.missing(list(ids))]
    if (needed := step_bytes * _steps(source, new)) > room:
        raise StoreFull(
            f"the new episodes ({len(new)}) need about {needed / 1e6:,.1f} MB, {what} leaves "
            f"{room / 1e6:,.1f} MB: make the pictures smaller (--resize), choose arrays (--keys), or make "
            "room (replay.byte_budget, a larger machine)"
        )


def _steps(source: Source, indices: Sequence[int]) -> int:
    return sum(source.reader.length(index) for index in indices)


def _step_bytes(source: Source, indices: Sequence[int], store: EpisodeStore) -> float:
    """Estimate the stored bytes of a step: the mean of the first steps of `SAMPLED` episodes."""
    steps = size = 0
    for index in indices[:: max(1, len(indices) // SAMPLED)][:SAMPLED]:
        with suppress(DatasetError):  # the import reports it
            opening = source.open(index)
            block = next(opening.blocks)
            size += store.stored_bytes(source.spec, block, opening.lossy)
            steps += len(block[ACTION])
    return size / max(1, steps)


def _add(opening: OpenEpisode, store: EpisodeStore) -> bool:
    """Add an episode to a store block by block; return whether it is new."""
    writer = store.writer(opening.meta, opening.extras, opening.lossy)
    try:
        for block in opening.blocks:
            writer.extend(block)
    except BaseException:  # also if a person stops the import
        with suppress(ReplayError):  # it would hide why the import ends
            writer.abort()
        raise
    return writer.commit(opening.outcome)
