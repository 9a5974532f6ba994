"""Import of a data set's episodes into a store."""

from collections.abc import Iterator, Sequence

from longview.replay.datasets.source import OpenEpisode, Source
from longview.replay.errors import DatasetError
from longview.replay.store import EpisodeStore


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
        StoreError: an episode cannot be stored.
    """
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
            store.forget(source.spec.name)
        raise


def _add(opening: OpenEpisode, store: EpisodeStore) -> bool:
    """Add an episode to a store block by block; return whether it is new."""
    writer = store.writer(opening.meta, opening.extras, opening.lossy)
    try:
        for block in opening.blocks:
            writer.extend(block)
    except BaseException:
        writer.abort()
        raise
    return writer.commit(opening.outcome)
