"""Import of a data set's episodes into a store."""

from collections.abc import Iterator, Sequence

from longview.replay.datasets.source import OpenEpisode, Source
from longview.replay.errors import DatasetError, ReplayError
from longview.replay.store import EpisodeStore


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
        StoreError: an episode cannot be stored.
    """
    for index in indices:
        try:
            new = source.id(index) not in store and _add(source.open(index), store)
        except DatasetError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
            new = False
        yield new


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
