"""Every error of the episode store.

ReplayError
├── EpisodeError        an episode, step or segment that breaks its contract or its TaskSpec
├── CodecError          bytes that are not a chunk of ours, or a damaged one
│   └── UnknownFormat       a chunk of another version: not damaged, but not for this one to read
├── StoreError          the store refused or cannot do what was asked
│   ├── MissingChunks       of an episode that is to be committed: Redis has lost them, or they expired
│   ├── StoreUnavailable    Redis cannot be reached, or refuses the credentials
│   ├── StoreFull           no room within the byte budget, and nothing that may be evicted
│   └── LimiterTimeout      a limiter let nothing be drawn for too long
├── DatasetError        a file of episodes that is not what it should be
└── UnknownEpisode      no committed episode has this id
    └── Quarantined         there was one, but it is damaged and set aside
"""


class ReplayError(Exception):
    """Base of all errors of the episode store."""


class EpisodeError(ReplayError, ValueError):
    """An episode, step or segment breaks its contract; the message names key, expected and found."""


class CodecError(ReplayError):
    """Bytes that cannot be decoded into a chunk."""


class UnknownFormat(CodecError):
    """A chunk of another version of the format."""


class StoreError(ReplayError):
    """The store refused or could not complete an operation."""


class MissingChunks(StoreError):
    """An episode cannot be committed, since chunks of it are no longer there."""


class StoreUnavailable(StoreError):
    """Redis cannot be reached or refuses the credentials. The message never holds a password."""


class StoreFull(StoreError):
    """The byte budget is used up and nothing may be evicted, or Redis is at its own memory limit."""


class LimiterTimeout(StoreError):
    """A limiter let nothing be drawn for too long; the message says what it waited for, in numbers."""


class DatasetError(ReplayError):
    """A file of episodes is missing, damaged, or does not fit the task; the message names file and field."""


class UnknownEpisode(ReplayError):
    """No committed episode has this id."""


class Quarantined(UnknownEpisode):
    """The episode is damaged, and was set aside; the message says what is wrong with it."""
