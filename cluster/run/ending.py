"""Endings that do not hide why something ends."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class RunFailed(Exception):
    """A failure that ends the run. Everything that it had is saved."""


@contextmanager
def ending(end: Callable[[], object]) -> Iterator[None]:
    """Call a function when the context ends. If the context ends with an error, that error is raised, and an
    error of the function is only logged."""
    try:
        yield
    except BaseException:
        try:
            end()
        except Exception as later:
            log.warning("another error while ending: %s", later)
        raise
    end()
