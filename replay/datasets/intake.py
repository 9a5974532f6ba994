"""Episodes of a data set into a store."""

from collections.abc import Iterator, Sequence

from longview.replay.datasets.source import Source
from longview.replay.errors import DatasetError
from longview.replay.store import EpisodeStore


def bring_in(
    source: Source, indices: Sequence[int], store: EpisodeStore, left_out: list[str] | None = None
) -> Iterator[bool]:
    """Add a data set's episodes to a store where their task is registered; those that are there stay as they
    are, so it may be repeated. After each: whether it is new.

    Args:
        source: the data set.
        indices: of the episodes.
        store: where they go.
        left_out: gets what is wrong with each episode that cannot be read; None: the first one ends it.

    Raises:
        DatasetError: an episode cannot be read; the message names it and the field.
        StoreError: it cannot be stored.
    """
    for index in indices:
        try:
            new = source.id(index) not in store and store.add(source.read(index))
        except DatasetError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
            new = False
        yield new
