"""The connection to Redis, or to a Redis Cluster: bounded everywhere, and patient while it is away.

A call is repeated while it may help, for each of ours may safely run twice: reads change nothing; tasks and
the number of shards are set only where there is none; a chunk is stored under its number; a commit knows its
own episode by the writer's token; what is removed twice is gone.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from redis import BlockingConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry

from longview.replay.config import StoreConfig
from longview.replay.errors import StoreError, StoreFull, StoreUnavailable

R = TypeVar("R")
Script = Callable[[Sequence[str], Sequence[Any]], Any]
"""Takes KEYS and ARGV."""

SCHEMES = ("redis", "rediss", "unix")
FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name files."""

PROBE_SECONDS = 5.0
"""A first connection is tried for so long, each attempt at most `PROBE_CALL_SECONDS` a reply."""
PROBE_CALL_SECONDS = 2.0

REFUSED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)
AWAY: Final = (
    *(ConnectionError, TimeoutError, RedisClusterException, ClusterError),
    *(AskError, TryAgainError, ReadOnlyError),
)
"""Nobody there, or not the right one: a server starts, a replica takes over, a slot moves."""
AWAY_CODES: Final = ("READONLY", "NOREPLICAS")
"""The same, with codes that some versions wrap in others where a script meets them."""
BUSY: Final = (
    (
        "command not allowed when used memory",
        "was at its own memory limit, which has to lie well above replay.byte_budget,",
        StoreFull,
    ),
    ("MISCONF", "could not write to its disk", StoreUnavailable),
)
"""Codes of a server that takes no more for now, what is the matter with it, and what to raise in the end."""
REFUSED_IN_SCRIPT: Final = "The user executing the script can't"


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


class Trouble(Exception):
    """Redis cannot do what was asked now; the same may work later."""

    def __init__(self, state: str, error: Exception | str, kind: type[StoreError] = StoreUnavailable) -> None:
        super().__init__(f"{state}: {error}")
        self._state, self._error, self._kind = state, error, kind

    def after(self, seconds: float, doing: str) -> StoreError:
        """What to raise when it has lasted for too long; `doing` says what was going on."""
        return self._kind(f"{doing}: {self._state} for {seconds:g} s: {self._error}")


class Client:
    """A client of one Redis, or of a whole cluster, whose calls are repeated while it is away."""

    def __init__(self, url: str, config: StoreConfig) -> None:
        """Connect; the server says whether it belongs to a cluster.

        Raises:
            StoreUnavailable: it does not answer within 15 s, or refuses the credentials or what they may do,
                or TLS fails, or this is no Redis URL.
        """
        self.shown = redact(url)
        self._replicas = config.replicas
        self._wait_seconds = config.call_seconds / 2
        self._patience = PROBE_SECONDS
        self._clustered = False
        # A Redis or a RedisCluster: they take the same commands.
        self.redis: Any = self._connect(url, 1, PROBE_CALL_SECONDS)
        try:
            server = self.call("connecting", lambda: self.redis.info("cluster"))
        finally:
            self.redis.close()
        self._clustered = bool(server["cluster_enabled"])
        connect = self._connect_cluster if self._clustered else self._connect
        bounds = (config.max_connections, config.call_seconds)
        self.redis = self.call("connecting", lambda: connect(url, *bounds))
        self._patience = config.patience_seconds

    def call(self, doing: str, operation: Callable[[], R]) -> R:
        """The operation's result; `doing` says in errors what was going on.

        Raises:
            StoreUnavailable: Redis stayed away for `patience_seconds`, or refuses the credentials or what
                they may do.
            StoreFull: Redis was at its own memory limit for as long.
            StoreError: Redis refused the operation.
        """
        deadline = time.monotonic() + self._patience
        for delay in delays():
            try:
                return self.attempt(doing, operation)
            except Trouble as trouble:
                if time.monotonic() + delay > deadline:
                    raise trouble.after(self._patience, doing) from None
            time.sleep(delay)
            self.look_again()
        raise AssertionError("delays never end")

    def attempt(self, doing: str, operation: Callable[[], R]) -> R:
        """One try of what `call` repeats.

        Raises:
            Trouble: another try may help.
            StoreUnavailable, StoreError: none will.
        """
        at = f"Redis at {self.shown}"
        try:
            return operation()
        except REFUSED as error:
            raise StoreUnavailable(f"{doing}: {at} refuses: {error}") from None
        except (RedisError, RedisClusterException) as error:
            if isinstance(error.__context__, ssl.SSLError):
                raise StoreUnavailable(f"{doing}: no TLS with {at}: {error}") from None
            if REFUSED_IN_SCRIPT in str(error):
                raise StoreUnavailable(f"{doing}: {at} refuses: {error}") from None
            for code, state, kind in BUSY:
                if code in str(error):
                    raise Trouble(f"{at} {state}", error, kind) from None
            if isinstance(error, AWAY) or any(code in str(error) for code in AWAY_CODES):
                raise Trouble(f"{at} did not answer", error) from None
            raise StoreError(f"{doing}: {at} answers: {error}") from None

    def script(self, source: str, replicated: bool = False) -> Script:
        """A Lua script, sent whole only to a server that has not met it: one that took over has not.

        Args:
            source: its text. Every key that it touches is in KEYS, or begins with the tag of those.
            replicated: it changes what must not be lost: return once `replay.replicas` replicas hold that.
        """
        execute = self._replicated if replicated and self._replicas else self.redis.execute_command

        def run(names: Sequence[str], args: Sequence[Any]) -> Any:
            try:
                return execute(*by_hash(source, names, args))
            except NoScriptError:
                return execute("EVAL", source, len(names), *names, *args)

        return run

    def pipelined(self, doing: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to commands whose keys may lie anywhere: one round trip to every node.

        Raises:
            StoreError: as `call`.
        """

        return self.call(doing, lambda: self.pipeline(commands))

    def pipeline(self, commands: Iterable[Sequence[Any]], raise_on_error: bool = True) -> list[Any]:
        """One try of what `pipelined` repeats; errors stay as they came, raised or among the replies."""
        with self.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                # By its name: the pipeline of a cluster has no methods for scripts.
                pipe.execute_command(*command)
            replies: list[Any] = pipe.execute(raise_on_error)
            return replies

    def stream(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """As `pipeline`, with errors among the replies; but each command leaves as soon as it is made, so the
        server works on it while the next is made. A cluster gets all at once.

        The replies to all commands together must be small: none is read before the last command has left.
        """
        if self._clustered:
            return self.pipeline(commands, raise_on_error=False)
        pool = self.redis.connection_pool
        connection, sent, replies = pool.get_connection(), 0, []
        try:
            for command in commands:
                connection.send_packed_command(connection.pack_command(*command))
                sent += 1
            for _ in range(sent):
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:  # Ctrl-C, too: who has the connection next would read what was meant for this
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _replicated(self, *command: Any) -> Any:
        """Run a script, then WAIT: for what this connection wrote, so both go the same way."""
        node = self.redis
        if self._clustered:
            node = node.get_redis_connection(node.get_node_from_key(command[3]))
        with node.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            pipe.execute_command("WAIT", self._replicas, int(1000 * self._wait_seconds))
            reply, held = pipe.execute()
        if held < self._replicas:
            raise TimeoutError(f"{held} replicas hold it, replay.replicas is {self._replicas}")
        return reply

    def look_again(self) -> None:
        """Forget who answered so far: it may be another's turn."""
        if not self._clustered:
            self.redis.connection_pool.disconnect_free_connections()
            return
        with suppress(RedisError, RedisClusterException):
            self.redis.nodes_manager.initialize()

    def _connect(self, url: str, connections: int, seconds: float) -> Redis:
        try:
            if self.shown.endswith("***"):
                # What is behind the mask could be taken for a host and show up in an error.
                raise ValueError
            pool = BlockingConnectionPool.from_url(
                url,
                **_bounds(connections, seconds),
                # Repeating is `call`'s business: in one place, with a deadline.
                retry=Retry(NoBackoff(), 0),
            )
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError):
            raise StoreUnavailable(
                f"not a Redis URL: {self.shown}; expected redis://, rediss:// or unix://, "
                "with any of / ? # @ : in a password percent-encoded"
            ) from None
        for option in FILES:
            file = pool.connection_kwargs.get(option)
            if file and not Path(file).is_file():
                raise StoreUnavailable(f"Redis at {self.shown}: {option} names {file}, which is no file")
        return Redis.from_pool(pool)

    def _connect_cluster(self, url: str, connections: int, seconds: float) -> RedisCluster:
        if not self.shown.startswith(("redis://", "rediss://")):
            raise StoreUnavailable(
                f"Redis at {self.shown} belongs to a cluster: name one of its nodes by redis:// or rediss://"
            )
        return RedisCluster.from_url(
            url,
            connection_pool_class=BlockingConnectionPool,
            **_bounds(connections, seconds),
            retry=Retry(NoBackoff(), 0),
            # While some shards have nobody to serve them, the others go on.
            require_full_coverage=False,
        )


def by_hash(source: str, names: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
    """The command that runs a script which the server has met."""
    return ("EVALSHA", sha1(source.encode()).hexdigest(), len(names), *names, *args)


def _bounds(connections: int, seconds: float) -> dict[str, Any]:
    """Of a pool (for every node of a cluster), and of each of its connections."""
    return {
        "max_connections": connections,
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": PROBE_CALL_SECONDS,
    }


def delays() -> Iterator[float]:
    """Seconds to wait between tries: soon at first, then less and less often; without end."""
    delay = 0.01
    while True:
        yield delay
        delay = min(2 * delay, 0.5)
