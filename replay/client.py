"""The connection to Redis: made with bounds everywhere, and patient while Redis is away."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from replay.config import StoreConfig
from replay.errors import StoreError, StoreFull, StoreUnavailable

R = TypeVar("R")

SCHEMES = ("redis", "rediss", "unix")

PROBE_SECONDS = 5.0
"""A first connection is tried for so long, each attempt at most `PROBE_CALL_SECONDS` a reply."""
PROBE_CALL_SECONDS = 2.0


def redact(url: str) -> str:
    """The URL as it may be shown: never a password, whatever else is wrong with it."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        return "***"
    hidden = f"{scheme}://***"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return hidden
    # An unescaped / ? or # in a password moves its rest, and the @, behind the host.
    if "@" in parts.path + parts.fragment or ("@" in parts.query and parts.hostname):
        return hidden
    user = "***@" if "@" in parts.netloc else ""
    host = f"{parts.hostname or ''}:{port}" if port else parts.hostname or ""
    return f"{scheme}://{user}{host}{parts.path}"


class Client:
    """A Redis client whose calls are repeated while Redis is away: all of ours may safely run twice."""

    def __init__(self, url: str, config: StoreConfig) -> None:
        """Connect, and make sure that Redis answers.

        Raises:
            StoreUnavailable: it does not within 15 s, or refuses the credentials, or this is no Redis URL.
        """
        self.shown = redact(url)
        self._patience = PROBE_SECONDS
        self.redis = self._connect(url, 1, PROBE_CALL_SECONDS)
        try:
            self.call("connecting", self.redis.ping)
        finally:
            self.redis.close()
        self._patience = config.patience_seconds
        self.redis = self._connect(url, config.max_connections, config.call_seconds)

    def call(self, doing: str, operation: Callable[[], R]) -> R:
        """The operation's result; `doing` says in errors what was going on.

        Raises:
            StoreUnavailable: Redis stayed away for `patience_seconds`, or refuses the credentials.
            StoreFull: Redis has reached its own memory limit.
            StoreError: Redis refused the operation.
        """
        deadline = time.monotonic() + self._patience
        for delay in _delays():
            try:
                return operation()
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                raise StoreUnavailable(f"{doing}: Redis at {self.shown} refuses: {error}") from None
            except (ConnectionError, TimeoutError) as error:
                if time.monotonic() + delay > deadline:
                    raise StoreUnavailable(
                        f"{doing}: Redis at {self.shown} did not answer for {self._patience:g} s: {error}"
                    ) from None
            except OutOfMemoryError as error:
                raise StoreFull(
                    f"{doing}: Redis at {self.shown} is at its own memory limit, which has to lie well above "
                    f"replay.byte_budget: {error}"
                ) from None
            except RedisError as error:
                raise StoreError(f"{doing}: Redis at {self.shown} answers: {error}") from None
            time.sleep(delay)
        raise AssertionError("delays never end")

    def _connect(self, url: str, connections: int, seconds: float) -> "Redis":
        try:
            if self.shown.endswith("***"):
                # What is behind the mask could be taken for a host and show up in an error.
                raise ValueError
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=seconds,
                socket_timeout=seconds,
                socket_connect_timeout=PROBE_CALL_SECONDS,
                # Repeating is `call`'s business: in one place, with a deadline.
                retry=Retry(NoBackoff(), 0),
            )
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError):
            raise StoreUnavailable(
                f"not a Redis URL: {self.shown}; expected redis://, rediss:// or unix://, "
                "with any of / ? # @ : in a password percent-encoded"
            ) from None
        return Redis.from_pool(pool)


def _delays() -> Iterator[float]:
    delay = 0.01
    while True:
        yield delay
        delay = min(2 * delay, 0.5)
