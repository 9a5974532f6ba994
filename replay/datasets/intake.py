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
    source: Source, indices: Sequence[int], store: EpisodeStore, left_out: list[str] | None = None
) -> Iterator[bool]:
    """Add a data set's episodes to a store, and yield after each whether it is new.

    Episodes that the store holds already are skipped, so an import may be repeated.

    Args:
        source: the data set.
        indices: indices of the episodes to add.
        store: the store, in which the source's task is registered.
        left_out: list that receives a message for each unreadable episode, which is then skipped; None: the
            first unreadable episode raises.

    Raises:
        DatasetError: an episode cannot be read; the message names it and the field.
        StoreFull: the episodes will not fit; see `refuse_oversized`.
        StoreError: an episode cannot be stored.
    """
    refuse_oversized(source, indices, store)
    for index in indices:
        try:
            new = source.id(index) not in store and _add(source.open(index), store)
        except DatasetError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
            new = False
        yield new


def refuse_oversized(source: Source, indices: Sequence[int], store: EpisodeStore) -> None:
    """Refuse an import that will not fit, by an estimate from a few steps, before it has begun.

    Args:
        source: the data set.
        indices: indices of the episodes to add; those that the store holds already take no room.
        store: the store, in which the source's task is registered.

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
            size += store.stored_bytes(source.spec.name, block, opening.lossy)
            steps += len(block[ACTION])
    return size / max(1, steps)


def _add(opening: OpenEpisode, store: EpisodeStore) -> bool:
    """Add an episode to a store block by block; return whether it is new."""
    writer = store.writer(opening.meta, opening.extras, opening.lossy)
    try:
        for block in opening.blocks:
            writer.extend(block)
    except ReplayError:
        writer.abort()
        raise
    return writer.commit(opening.outcome)
