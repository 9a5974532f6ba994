"""Decoded episodes in a reader's own memory."""

from collections import OrderedDict

from replay.episode import Episode


class EpisodeCache:
    """The most recently used episodes, up to a number of bytes; they are immutable, so none goes stale."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._episodes: OrderedDict[str, Episode] = OrderedDict()

    def get(self, id: str) -> Episode | None:
        """The episode, if it is here."""
        if id in self._episodes:
            self._episodes.move_to_end(id)
        return self._episodes.get(id)

    def put(self, episode: Episode) -> None:
        """Keep an episode that is not here yet; those that were not used for longest give way."""
        self._episodes[episode.meta.id] = episode
        self._bytes += _bytes(episode)
        while self._bytes > self._max_bytes:
            _, oldest = self._episodes.popitem(last=False)
            self._bytes -= _bytes(oldest)


def _bytes(episode: Episode) -> int:
    return sum(array.nbytes for array in episode.arrays.values())
