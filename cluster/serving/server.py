"""Server that acts for robots over websockets, in the protocol of openpi's policy server.

A connection gets a frame with metadata, and then an answer to each call: actions, or a text that says what is
wrong. docs/serve.md describes the protocol.
"""

import asyncio
import hmac
import logging
import math
import ssl
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from longview.cluster.serving import wire
from longview.cluster.serving.calls import MOST_FRAMES, Call, CallError, Form, as_first, read_call
from longview.cluster.serving.deciding import Decider, Question, warm_session
from longview.cluster.serving.recorder import Recorder
from longview.cluster.serving.robots import NoPlaceError, Robot, Robots
from longview.cluster.serving.weights import Weights
from longview.monitoring.serving import ServingMetrics

if TYPE_CHECKING:
    from longview.learner.config import Horizon
    from longview.learner.session import PolicySession

log = logging.getLogger(__name__)

T = TypeVar("T")

BASE: Final = ""
"""Name of the policy itself among its adapters."""
LOOK_SECONDS = 1.0
"""Time between two looks for newer weights, and for robots that have been away for too long."""
TRY_AGAIN_LATER: Final = 1013
"""Code that closes a connection without a place, or whose robot's last call is still worked on."""
TAKEN_OVER: Final = 4000
"""Code that closes a connection whose robot has another one."""
GROWTH: Final = 4
"""Bytes that a call's frames may take in the policy's shapes, for each byte of the largest message: numbers
and colours that come in narrower arrays grow by no more."""
LIMITS: Final = ("message_bytes", "calls_per_second", "answer_seconds", "keep_seconds")
"""Settings that robots are told."""


@dataclass(frozen=True)
class ServeConfig:
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""
    key: str | None = field(default=None, repr=False)
    """Key that a connection must bring in its header `Authorization: Api-Key ...`; None lets all in."""
    robots: int = 16
    """Most robots at a time; each has a place in a batch."""
    message_bytes: int = 16 << 20
    """Size of the largest message that is taken."""
    calls_per_second: float = 200.0
    """Calls per second that are answered on a connection; faster ones wait."""
    answer_seconds: float = 10.0
    """Time within which every call and every new connection is answered, if only by an error."""
    keep_seconds: float = 60.0
    """Time for which a robot whose connection ended may come back and go on."""
    ensemble: float | None = None
    """Decay of temporal ensembling, as for `ensembled`; None turns it off."""

    def __post_init__(self) -> None:
        if self.robots < 1:
            raise ValueError(f"robots must be at least 1, not {self.robots}")
        for name in ("message_bytes", "calls_per_second", "answer_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if self.ensemble is not None and not 0 <= self.ensemble < math.inf:
            raise ValueError(f"ensemble must not be negative, not {self.ensemble}")


@dataclass(frozen=True)
class Terms:
    """What a connection asks for in its URL."""

    steps_per_call: int
    """Steps from one call to the next, where a call holds the present observation alone."""
    delay: int
    """Steps that the robot makes between its newest frame and the first new action, unless a call says."""
    idle_reset: float
    """Seconds without a call after which the next one begins an episode."""
    token: str | None
    """Token of the robot to go on with; None for a new robot."""
    adapter: str
    """Name of the adapter that acts in the connection's episodes; `BASE`: none."""


def read_terms(path: str, horizon: "Horizon", names: Collection[str] = (BASE,)) -> Terms:
    """Read the terms in the path of a URL, such as `/?steps_per_call=8&idle_reset=5`.

    Args:
        path: the path with its query.
        horizon: the policy's. A call brings T_a actions, so no more steps may lie between calls; with a delay
            fewer, since some actions are still under way at a call.
        names: names of the adapters that can act, `BASE` included.

    Raises:
        CallError: a name is unknown, or a value is out of range.
    """
    given = dict(parse_qsl(urlsplit(path).query, keep_blank_values=True))
    if unknown := given.keys() - {"steps_per_call", "delay", "idle_reset", "token", "adapter"}:
        known = "steps_per_call, delay, idle_reset, token and adapter"
        raise CallError(f"the URL takes {known}, not {', '.join(sorted(unknown))}")
    adapter = given.get("adapter", BASE)
    if adapter not in names:
        served = ", ".join(sorted(set(names) - {BASE})) or "none"
        raise CallError(f"there is no adapter {adapter:.100}; there are: {served}")
    try:
        delay = int(given.get("delay", 0))
        most = horizon.execute - delay
        between = int(given.get("steps_per_call", most))
        idle = float(given.get("idle_reset", "inf"))
    except ValueError as error:
        raise CallError(f"steps_per_call, delay and idle_reset are numbers: {error}") from None
    if not 0 <= delay <= horizon.max_delay:
        raise CallError(
            f"delay must lie in 0..{horizon.max_delay}, for which the policy was trained, not {delay}"
        )
    if not 1 <= between <= most:
        raise CallError(f"steps_per_call must lie in 1..{most}, the actions of a call, not {between}")
    if not idle > 0:
        raise CallError(f"idle_reset must be a positive number of seconds, not {idle:g}")
    return Terms(between, delay, idle, given.get("token"), adapter)


@dataclass
class Acting:
    """A policy that a server acts with, and what belongs to it."""

    weights: Weights
    """The policy, and those that follow it."""
    recorder: Recorder | None = None
    """Records its episodes; None records nothing."""
    newest: "PolicySession" = field(init=False)
    """Session of the newest policy, which acts in every episode that begins."""


class RobotServer:
    """Server of the newest policy in a folder, and of adapters of it, for many robots."""

    def __init__(
        self,
        policies: Mapping[str, Acting],
        form: Form,
        config: ServeConfig,
        metrics: ServingMetrics,
        rng: Callable[[], np.random.Generator] = np.random.default_rng,
    ) -> None:
        """
        Args:
            policies: the policy by the name `BASE`, and its adapters by theirs.
            form: what calls look like.
            config: settings.
            metrics: counts what happens.
            rng: makes the source of the noise of a robot's actions.
        """
        self._policies, self._form, self._config, self._metrics = policies, form, config, metrics
        self._horizon = policies[BASE].weights.policy.horizon
        for name in policies:
            self._warm(name)
        self._decider = Decider(config.robots, metrics.batch_size.observe)
        actions = form.spec.action.shape[0]
        self._robots = Robots(config.robots, actions, config.keep_seconds, _cut_off, rng)
        self._working: set[asyncio.Task[Any]] = set()
        """Tasks that nobody may wait for; the event loop alone would not keep them."""

    async def run(self, started: Callable[[int], None], tls: ssl.SSLContext | None = None) -> None:
        """Serve until the task is cancelled. Episodes under way are cut off then.

        Args:
            started: called with the port once robots can connect.
            tls: certificate and key; None serves without TLS.

        Raises:
            OSError: the port is in use, or the address is not this machine's.
        """
        if tls is not None:
            # The synchronous client of websockets, which robots use, reads and writes in two threads:
            # about one connection in 2,000 fails when a session ticket arrives in between.
            tls.num_tickets = 0
        serving = serve(
            self._connected,
            self._config.host,
            self._config.port,
            ssl=tls,
            process_request=self._admit,
            origins=[None],  # no page in a browser may connect
            compression=None,
            max_size=self._config.message_bytes,
            max_queue=2,
        )
        try:
            async with serving as server:
                started(next(iter(server.sockets)).getsockname()[1])
                while True:
                    await asyncio.sleep(LOOK_SECONDS)
                    self._robots.sweep()
                    await self._look()
        finally:
            for robot in self._robots:
                self._robots.forget(robot)

    async def _look(self) -> None:
        """Let newer weights act in the episodes that begin from now on."""
        for name, acting in self._policies.items():
            try:
                if await asyncio.to_thread(acting.weights.look):
                    await asyncio.to_thread(self._warm, name)
                    log.info("version %d acts in new episodes%s", acting.newest.version, _by(name))
            except (OSError, ValueError) as error:
                log.warning("the newest policy%s was not taken: %s", _by(name), error)

    def _warm(self, name: str) -> None:
        """Let a policy's present weights act in the episodes that begin from now on."""
        acting = self._policies[name]
        weights = acting.weights
        acting.newest = warm_session(weights.policy, weights.version, self._config.robots)
        self._metrics.version.labels(name).set(weights.version)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a connection without the key, or with terms that make no sense."""
        if urlsplit(request.path).path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        key, given = self._config.key, " ".join(request.headers.get_all("Authorization"))
        sent = given.encode(errors="surrogateescape")
        if key is not None and not hmac.compare_digest(sent, f"Api-Key {key}".encode()):
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key ...\n"
            )
        try:
            self._terms(request)
        except CallError as error:
            return connection.respond(HTTPStatus.BAD_REQUEST, f"{error}\n")
        return None

    def _terms(self, request: Request | None) -> Terms:
        assert request is not None
        return read_terms(request.path, self._horizon, self._policies.keys())

    async def _connected(self, connection: ServerConnection) -> None:
        """Serve one connection until it ends."""
        terms = self._terms(connection.request)
        try:
            robot = self._robots.enter(terms.token)
        except NoPlaceError as error:
            await connection.close(TRY_AGAIN_LATER, str(error))
            return
        earlier, robot.connection = robot.connection, connection
        if earlier is not None:
            self._start(earlier.close(TAKEN_OVER, "another connection came with this token"))
        due = time.monotonic()
        try:
            with self._metrics.connections.track_inprogress():
                try:
                    # An earlier connection's last call may still be worked on.
                    async with asyncio.timeout(self._config.answer_seconds), robot.lock:
                        about = self._metadata(robot, terms)
                except TimeoutError:
                    said = f"the robot's last call is still worked on after {self._config.answer_seconds:g} s"
                    await connection.close(TRY_AGAIN_LATER, said)
                    return
                await connection.send(wire.encode(about))
                async for message in connection:
                    if robot.connection is not connection:
                        break
                    await asyncio.sleep(due - time.monotonic())
                    due = time.monotonic() + 1 / self._config.calls_per_second
                    await connection.send(await self._answer(robot, terms, message))
        except ConnectionClosed:
            pass
        finally:
            self._robots.leave(robot, connection)

    def _metadata(self, robot: Robot, terms: Terms) -> dict[str, Any]:
        """Describe the policy and the connection."""
        acting = self._policies[terms.adapter]
        spec, session = acting.weights.policy.spec, robot.session or acting.newest
        return {
            "server": "longview",
            "task": spec.name,
            "policy_version": session.version,
            "adapter": terms.adapter,
            "adapters": sorted(self._policies.keys() - {BASE}),
            "control_hz": spec.control_hz,
            "observation": {
                name: {"shape": spec.observation[key].shape, "dtype": spec.observation[key].dtype}
                for name, key in self._form.wire_names.items()
            },
            "action_size": spec.action.shape[0],
            "actions_per_call": self._horizon.execute,
            "T_o": self._horizon.context,
            "steps_per_call": terms.steps_per_call,
            "delay": terms.delay,
            "max_delay": self._horizon.max_delay,
            "token": robot.token,
            "steps": robot.steps,
            "limits": {name: getattr(self._config, name) for name in LIMITS},
        }

    async def _answer(self, robot: Robot, terms: Terms, message: str | bytes) -> str | bytes:
        """Answer a call: a message with actions, or a text that says what is wrong."""
        started = time.monotonic()
        try:
            if isinstance(message, str):
                raise CallError("a call is a binary frame with msgpack, not a text frame")
            async with asyncio.timeout(self._config.answer_seconds):
                answer = await asyncio.shield(self._start(self._decide(robot, terms, message)))
        except (wire.WireError, CallError) as error:
            text = str(error)
        except TimeoutError:
            text = f"no decision within {self._config.answer_seconds:g} s"
        except Exception:
            log.exception("a call failed")
            text = "the server failed, and its log says why"
        else:
            seconds = time.monotonic() - started
            self._metrics.calls.labels("actions").inc()
            self._metrics.decision_seconds.observe(seconds)
            return wire.encode(answer | {"server_timing": {"infer_ms": 1000 * seconds}})
        self._metrics.calls.labels("error").inc()
        return text

    def _start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task, and keep it until it is done, whoever waits for it."""

        def done(task: "asyncio.Task[Any]") -> None:
            self._working.discard(task)
            if not task.cancelled():
                task.exception()  # if nobody waits any more, nobody needs it

        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(done)
        return task

    def _read(self, message: bytes, *, record: bool) -> Call:
        """Decode and check a message. Pictures may take long, so this is for a thread: other robots go on."""
        # A recording needs every frame, and the policy those of its longest context.
        newest = MOST_FRAMES if record else self._form.longest
        return read_call(wire.decode(message), self._form, newest, GROWTH * self._config.message_bytes)

    async def _decide(self, robot: Robot, terms: Terms, message: bytes) -> dict[str, Any]:
        """Decide for a robot. Its calls are worked on one after the other, even if nobody waits any more."""
        acting = self._policies[terms.adapter]
        recorder = acting.recorder
        async with robot.lock:
            call = await asyncio.to_thread(self._read, message, record=recorder is not None)
            idle = time.monotonic() - robot.called_at > terms.idle_reset
            if idle and not call.reset:
                call = as_first(call)
            reset = call.reset or idle
            question = robot.question(call, acting.newest, terms.steps_per_call, terms.delay, reset=reset)
            chosen_TA = await asyncio.wrap_future(self._decider.ask(question))
            actions_TA = robot.answered(question, chosen_TA, self._config.ensemble)
            version = question.session.version
            answer = {"actions": actions_TA, "policy_version": version, "steps": robot.steps}
            if recorder is not None:
                answer["recording"] = _record(robot, question, call, recorder)
            if call.outcome is not None:
                robot.session = None
            robot.called_at = time.monotonic()
            return answer


def _record(robot: Robot, question: Question, call: Call, recorder: Recorder) -> bool:
    """Record the steps that a call tells of, and return whether the episode is recorded so far."""
    if question.reset or robot.recording is None:
        _cut_off(robot)
        robot.recording = recorder.begin(question.session.version, call.T_o)
    recording = robot.recording
    recording.recorder.add(recording, question, call.controller)
    if call.outcome is not None:
        recording.recorder.end(recording, call.outcome)
        robot.recording = None
    return not recording.lost


def _cut_off(robot: Robot) -> None:
    """End the recording of a robot whose episode ended without an outcome."""
    if robot.recording is not None:
        robot.recording.recorder.end(robot.recording)
    robot.recording = None


def _by(name: str) -> str:
    """Name the adapter of a message; nothing for the policy itself."""
    return "" if name == BASE else f" by adapter {name}"
