"""Connection to Redis or a Redis Cluster, with a time limit on every call and retries while it is
unreachable.

Every call of the store may be repeated, because each is safe to run twice. Reads change nothing. Tasks and
the number of shards are set only if they are unset. A chunk is stored under its number. A commit recognises
its own episode by the writer's token. Removing twice has the same effect as removing once.
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

from longview.replay.config import PASSWORD_VARIABLE, StoreConfig
from longview.replay.errors import StoreError, StoreFull, StoreUnavailable

R = TypeVar("R")
Script = Callable[[Sequence[str], Sequence[Any]], Any]
"""A Lua script as a function of its KEYS and ARGV; returns the reply."""

SCHEMES = ("redis", "rediss", "unix")
"""Schemes that a URL may have."""
FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name files."""

PROBE_SECONDS = 5.0
"""Seconds for which the first connection is tried."""
PROBE_CALL_SECONDS = 2.0
"""Seconds that the server may take to answer during the first connection."""

REFUSED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)
"""Errors of a server that refuses the credentials, or what they may do."""
UNREACHABLE: Final = (
    *(ConnectionError, TimeoutError, RedisClusterException, ClusterError),
    *(AskError, TryAgainError, ReadOnlyError),
)
"""Errors while no server answers, or the wrong one: a server starts, a replica takes over, a slot moves."""
UNREACHABLE_CODES: Final = ("READONLY", "NOREPLICAS")
"""Codes with the same meaning that some Redis versions wrap in another error when a script meets them."""
OVERLOADED: Final = (
    (
        "command not allowed when used memory",
        "was at its own memory limit, which has to lie well above replay.byte_budget,",
        StoreFull,
    ),
    ("MISCONF", "could not write to its disk", StoreUnavailable),
)
"""Servers that accept no writes for now: text of the error, state of the server, and error to raise at
last."""
UNAUTHENTICATED: Final = ("NOAUTH", "Authentication required", "HELLO must be called with")
"""Texts of a server's error when a client gives no password, and the server wants one."""
EVICTS_NOTHING: Final = "noeviction"
"""The only `maxmemory-policy` under which Redis removes no key by itself."""
REFUSED_IN_SCRIPT: Final = "The user executing the script can't"
"""Text of a server's error when a script runs a command that the user may not run."""


def redact(url: str) -> str:
    """Return the URL without its password, even if the URL is malformed."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        return "***"
    hidden = f"{scheme}://***"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return hidden
    # After an unescaped / ? or # in a password, the rest of it and the @ are not parsed as part of the host.
    if "@" in parts.path + parts.fragment or ("@" in parts.query and parts.hostname):
        return hidden
    user = "***@" if "@" in parts.netloc else ""
    host = f"{parts.hostname or ''}:{port}" if port else parts.hostname or ""
    return f"{scheme}://{user}{host}{parts.path}"


class TemporaryFailure(Exception):
    """Redis could not run a call, but may be able to later."""

    def __init__(self, state: str, error: Exception | str, kind: type[StoreError] = StoreUnavailable) -> None:
        """Describe the failure.

        Args:
            state: what is wrong with the server, such as "Redis at ... did not answer".
            error: the client library's error.
            kind: error to raise if the failure lasts.
        """
        super().__init__(f"{state}: {error}")
        self._state, self._error, self._kind = state, error, kind

    def after(self, seconds: float, doing: str) -> StoreError:
        """Make the error to raise after `seconds` of this failure; `doing` names the operation."""
        return self._kind(f"{doing}: {self._state} for {seconds:g} s: {self._error}")


class Client:
    """Client of one Redis or of a whole Redis Cluster, which repeats calls while it is unreachable."""

    def __init__(self, url: str, config: StoreConfig) -> None:
        """Connect to a server, which tells whether it belongs to a cluster.

        Raises:
            StoreUnavailable: the server does not answer within 15 s, or refuses the credentials or what they
                may do, or TLS fails, or the URL is not one of Redis.
            StoreError: a server may evict episodes by itself.
        """
        self.shown = redact(url)
        """URL without its password, for messages."""
        self._replicas = config.replicas
        self._wait_seconds = config.call_seconds / 2
        self._patience = PROBE_SECONDS
        self._clustered = False
        self.redis: Any = self._connect(url, 1, PROBE_CALL_SECONDS)
        """A redis.Redis or redis.RedisCluster, which offer the same commands."""
        try:
            server = self.call("connecting", lambda: self.redis.info("cluster"))
        finally:
            self.redis.close()
        self._clustered = bool(server["cluster_enabled"])
        connect = self._connect_cluster if self._clustered else self._connect
        bounds = (config.max_connections, config.call_seconds)
        self.redis = self.call("connecting", lambda: connect(url, *bounds))
        if evicting := self.evicting():
            self.redis.close()
            raise StoreError("; ".join(evicting.values()))
        self._patience = config.patience_seconds

    def evicting(self) -> dict[str, str]:
        """Find the servers that may evict episodes by themselves, and say how to mend it.

        Returns:
            Message by `host:port` or path of the server; replicas are left out, since they follow.
        """
        # INFO tells the policy to users who may not read the config.
        nodes = {"target_nodes": RedisCluster.PRIMARIES} if self._clustered else {}
        found = self.call("asking for maxmemory-policy", lambda: self.redis.info("memory", **nodes))
        servers = found if self._clustered else {self.shown: found}
        return {
            server: f"Redis at {server} may evict episodes by itself, because its maxmemory-policy is "
            f"{policy}: set it by `redis-cli CONFIG SET maxmemory-policy {EVICTS_NOTHING}` on that server, "
            "and in its config file"
            for server, memory in servers.items()
            if (policy := memory.get("maxmemory_policy", EVICTS_NOTHING)) != EVICTS_NOTHING
        }

    def call(self, doing: str, operation: Callable[[], R]) -> R:
        """Run an operation, repeat it while Redis is unreachable, and return its result.

        Args:
            doing: what the operation does, for error messages.
            operation: one or more commands, safe to run twice.

        Raises:
            StoreUnavailable: Redis was unreachable for `patience_seconds`, or refuses the credentials or what
                they may do.
            StoreFull: Redis was at its own memory limit for `patience_seconds`.
            StoreError: Redis refused the operation.
        """
        deadline = time.monotonic() + self._patience
        for delay in retry_delays():
            try:
                return self.attempt(doing, operation)
            except TemporaryFailure as failure:
                if time.monotonic() + delay > deadline:
                    raise failure.after(self._patience, doing) from None
            time.sleep(delay)
            self.reconnect()
        raise AssertionError("retry_delays never end")

    def attempt(self, doing: str, operation: Callable[[], R]) -> R:
        """Run an operation once, and return its result; arguments as for `call`.

        Raises:
            TemporaryFailure: another attempt may succeed.
            StoreUnavailable, StoreError: no other attempt will.
        """
        at = f"Redis at {self.shown}"
        try:
            return operation()
        except REFUSED as error:
            wanted = any(text in str(error) for text in UNAUTHENTICATED)
            why = f"it wants a password, in the URL or in {PASSWORD_VARIABLE}" if wanted else error
            raise StoreUnavailable(f"{doing}: {at} refuses: {why}") from None
        except (RedisError, RedisClusterException) as error:
            if isinstance(error.__context__, ssl.SSLError):
                raise StoreUnavailable(f"{doing}: no TLS with {at}: {error}") from None
            if REFUSED_IN_SCRIPT in str(error):
                raise StoreUnavailable(f"{doing}: {at} refuses: {error}") from None
            for text, state, kind in OVERLOADED:
                if text in str(error):
                    raise TemporaryFailure(f"{at} {state}", error, kind) from None
            if isinstance(error, UNREACHABLE) or any(code in str(error) for code in UNREACHABLE_CODES):
                raise TemporaryFailure(f"{at} did not answer", error) from None
            raise StoreError(f"{doing}: {at} answers: {error}") from None

    def script(self, source: str, replicated: bool = False) -> Script:
        """Make a Lua script callable. A call sends the script's hash, and its text only to a server that does
        not know it, such as a replica that took over.

        Args:
            source: text of the script. Every key that it touches is in KEYS or carries the hash tag of KEYS.
            replicated: whether a call returns only once `replay.replicas` replicas hold its changes.
        """
        execute = self._replicated if replicated and self._replicas else self.redis.execute_command

        def run(names: Sequence[str], args: Sequence[Any]) -> Any:
            try:
                return execute(*evalsha(source, names, args))
            except NoScriptError:
                return execute("EVAL", source, len(names), *names, *args)

        return run

    def pipelined(self, doing: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Run commands whose keys may lie in any slots, in one round trip to every node; return the replies.

        Args:
            doing: what the commands do, for error messages.
            commands: each a command's name and arguments; repeated like the operation of `call`.

        Raises:
            StoreError: as for `call`.
        """
        return self.call(doing, lambda: self.pipeline(commands))

    def pipeline(self, commands: Iterable[Sequence[Any]], raise_on_error: bool = True) -> list[Any]:
        """Run commands like `pipelined`, but only once.

        Args:
            commands: each a command's name and arguments.
            raise_on_error: whether to raise the first error among the replies, instead of returning it.

        Raises:
            RedisError: the commands could not be sent, or one failed and `raise_on_error` is set.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                # The pipeline of a cluster has no methods for scripts, so commands go by name.
                pipe.execute_command(*command)
            replies: list[Any] = pipe.execute(raise_on_error)
            return replies

    def stream(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Run commands once, and send each as soon as `commands` yields it, so that the server already works
        on it while the next one is made. A cluster gets all commands together at the end.

        The replies must be small in total, because none is read before the last command was sent.

        Returns:
            The replies, with errors of single commands among them.

        Raises:
            RedisError: the commands could not be sent.
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
        except BaseException:
            # Also on Ctrl-C: unread replies would be taken for replies to the connection's next user.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _replicated(self, *command: Any) -> Any:
        """Run a script, then WAIT for replicas on the same connection: WAIT covers only its own writes."""
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

    def reconnect(self) -> None:
        """Drop the known connections and cluster nodes, because another server may have taken over."""
        if not self._clustered:
            self.redis.connection_pool.disconnect_free_connections()
            return
        with suppress(RedisError, RedisClusterException):
            self.redis.nodes_manager.initialize()

    def _connect(self, url: str, connections: int, seconds: float) -> Redis:
        try:
            if self.shown.endswith("***"):
                # A part of the password could be taken for the host and show up in an error.
                raise ValueError
            pool = BlockingConnectionPool.from_url(
                url,
                **_bounds(connections, seconds),
                # Only `call` repeats: in one place, with a deadline.
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
            # While no server has some of the slots, shards in the other slots stay usable.
            require_full_coverage=False,
        )


def evalsha(source: str, names: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
    """Make the command that runs a script which the server already knows, by the hash of its text."""
    return ("EVALSHA", sha1(source.encode()).hexdigest(), len(names), *names, *args)


def _bounds(connections: int, seconds: float) -> dict[str, Any]:
    """Return the limits of a connection pool, one per node of a cluster, and of its connections."""
    return {
        "max_connections": connections,
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": PROBE_CALL_SECONDS,
    }


def retry_delays() -> Iterator[float]:
    """Yield the seconds to wait between attempts, without end: 0.01 at first, doubling up to 0.5."""
    delay = 0.01
    while True:
        yield delay
        delay = min(2 * delay, 0.5)
