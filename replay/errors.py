"""Errors of the episode store, in one tree.

ReplayError
├── EpisodeError        an episode, step or segment breaks its contract or its TaskSpec
├── CodecError          bytes are not a chunk, record or spec of the store, or are damaged
│   └── UnknownFormat       a chunk was written in another version of the format: undamaged, unreadable
├── StoreError          the store refused an operation or could not complete it
│   ├── MissingChunks       an episode cannot be committed: its chunks expired, or Redis lost them
│   ├── StoreUnavailable    Redis cannot be reached, or refuses the credentials
│   ├── StoreFull           an episode does not fit the byte budget, and nothing may be evicted
│   └── LimiterTimeout      a limiter allowed no draw for too long
├── DatasetError        a data set is missing, damaged, or does not fit the task
└── UnknownEpisode      no committed episode has the id
    └── Quarantined         the episode is damaged, and was moved to the quarantine
"""


class ReplayError(Exception):
    """Base class of all errors of the episode store."""


class EpisodeError(ReplayError, ValueError):
    """An episode, step or segment breaks its contract; the message names the key, what was expected and what
    was found."""


class CodecError(ReplayError):
    """Bytes cannot be decoded into a chunk, record or spec."""


class UnknownFormat(CodecError):
    """A chunk was written in another version of the format."""


class StoreError(ReplayError):
    """The store refused an operation or could not complete it."""


class MissingChunks(StoreError):
    """An episode cannot be committed, because Redis no longer holds all of its chunks."""


class StoreUnavailable(StoreError):
    """Redis cannot be reached or refuses the credentials. The message never holds a password."""


class StoreFull(StoreError):
    """The byte budget is used up and nothing may be evicted, or Redis reached its own memory limit."""


class LimiterTimeout(StoreError):
    """A limiter allowed no draw for too long; the message says what it waited for, in numbers."""


class DatasetError(ReplayError):
    """A data set is missing, damaged, or does not fit the task; the message names the file and the field."""


class UnknownEpisode(ReplayError):
    """No committed episode has the id."""


class Quarantined(UnknownEpisode):
    """The episode is damaged and was moved to the quarantine; the message says what is wrong with it."""
