"""What writers hand over, sent to Redis by a thread in the background, in the order in which it came."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

from longview.replay.config import StoreConfig
from longview.replay.errors import ReplayError, StoreError
from longview.replay.redis.client import Client, Trouble, delays

log = logging.getLogger(__name__)

JOB_BYTES: Final = 4096
"""What a job costs in memory beside its arrays."""
BATCH: Final = 16
BATCH_BYTES: Final = 16 << 20
"""At most so much goes in one round trip."""
LARGE_BYTES: Final = 1 << 20
"""A chunk of this size is worth a pause of its writer, for it to leave at once."""
PAUSE_SECONDS: Final = 1e-6
"""What is asked for: the system makes some 50 us of it."""
LINGER_SECONDS: Final = 1.0
"""The thread ends when it has had nothing to do for so long; another is started when there is something."""

Commands = Sequence[Sequence[Any]]


class Lane:
    """What one writer has handed over: it fails alone, and may be given up alone."""

    failure: ReplayError | None = None
    """Why what was handed over cannot be stored, whatever else is tried."""


@dataclass(frozen=True)
class Queue:
    """What waits for Redis, and how long writers had to wait for that."""

    chunks: int
    bytes: int
    """Size in memory, before compression."""
    waited_seconds: float
    """Time for which writers found the queue full, all together."""


@dataclass(eq=False)
class Job:
    """Something to be done in the background, and in the end what came of it."""

    sender: "Sender" = field(repr=False)
    lane: Lane
    doing: str
    """For errors."""
    size: int
    commands: Callable[[], Commands]
    """Makes what is sent, in one round trip with what is before and behind it."""
    finish: Callable[[Sequence[Any]], Any]
    """What came of it, from the replies."""
    is_chunk: bool
    done: bool = False
    value: Any = None
    error: ReplayError | None = None

    def prepare(self) -> Commands:
        """The commands, which are made once."""
        commands = self.commands()
        self.commands = lambda: commands
        return commands

    def result(self) -> Any:
        """What came of it; waits for that.

        Raises:
            StoreUnavailable, StoreFull: nothing was stored for `patience_seconds`. It is still going to be.
            ReplayError: it failed for good.
        """
        return self.sender.wait(self)


class Sender:
    """The background thread and its queue, which is bounded in bytes. Safe to use from several threads.

    While Redis is away or full, the thread keeps trying; what waits for it, waits for `patience_seconds`
    without any progress, then fails, and may be repeated. So nothing that was taken is ever dropped, unless
    its writer gives it up.
    """

    def __init__(self, client: Client, config: StoreConfig) -> None:
        self._client = client
        self._limit = config.queue_bytes
        self._patience = config.patience_seconds
        self._waited = 0.0
        self._forget()
        _SENDERS.add(self)

    def _forget(self) -> None:
        """Be as new: also in a process that was forked, where there is no thread, and no job of this one."""
        self._changed = threading.Condition()
        self._jobs: dict[Job, None] = {}
        self._bytes = 0
        self._full = False
        self._progress = time.monotonic()
        """When something was stored last, or had to wait first."""
        self._trouble: Trouble | None = None
        self._thread: threading.Thread | None = None

    def put(self, lane: Lane, doing: str, size: int, commands: Callable[[], Commands]) -> None:
        """Hand over a chunk of `size` bytes; waits only while the queue is full.

        Args:
            lane: whose it is.
            doing: for errors.
            size: in memory.
            commands: makes what stores it, which may run any number of times; called once, in the background.

        Raises:
            StoreUnavailable, StoreFull: the queue stayed full; nothing was taken.
            ReplayError: an earlier chunk of the lane cannot be stored.
        """
        with self._changed:
            self._wait_for_room(size + JOB_BYTES, doing)
            if lane.failure is not None:
                raise lane.failure
            size += JOB_BYTES
            self._take(Job(self, lane, doing, size, commands, _without_error, is_chunk=True))
        if size >= LARGE_BYTES:
            # A thread that lets go of the interpreter only while it copies a row has it again before another
            # wakes up: without a pause nothing of an episode would leave before its last step.
            time.sleep(PAUSE_SECONDS)

    def call(
        self,
        lane: Lane,
        doing: str,
        finish: Callable[[Sequence[Any]], Any],
        commands: Callable[[], Commands] = tuple,
    ) -> Job:
        """Do something once all that the lane handed over is stored; does not wait.

        Args:
            lane: whose it is; if a chunk of it cannot be stored, this fails for the same reason.
            doing: for errors.
            finish: one attempt, which may be repeated any number of times; takes the replies to `commands`.
            commands: makes what may be sent right behind the chunks, when it is not yet known whether they
                were stored; called once, in the background.
        """
        job = Job(self, lane, doing, JOB_BYTES, commands, finish, is_chunk=False)
        with self._changed:
            if lane.failure is not None:
                self._end(job, error=lane.failure)
            else:
                self._take(job)
        return job

    def drop(self, lane: Lane, why: ReplayError) -> None:
        """Give up what waits of a lane."""
        with self._changed:
            for job in [job for job in self._jobs if job.lane is lane]:
                self._end(job, error=why)

    def wait(self, job: Job) -> Any:
        """A job's result; see there."""
        with self._changed:
            self._wait_until(lambda: job.done, job.doing, since=time.monotonic())
        if job.error is not None:
            raise job.error
        return job.value

    def flush(self) -> None:
        """Wait until everything that was handed over is stored.

        Raises:
            StoreUnavailable, StoreFull: there was no progress for `patience_seconds`.
        """
        with self._changed:
            self._wait_until(lambda: not self._jobs, "storing what is left", since=time.monotonic())

    def close(self) -> None:
        """Flush, but for no longer than there is hope, then give up what is left.

        Raises:
            StoreUnavailable, StoreFull: there are commits among that.
        """
        with self._changed:
            since = self._progress if self._trouble else time.monotonic()
            try:
                self._wait_until(lambda: not self._jobs, "storing what is left", since)
            except StoreError as error:
                lost = [job for job in self._jobs if not job.is_chunk]
                for job in list(self._jobs):
                    self._end(job, error=error)
                if lost:
                    raise type(error)(f"{error}; given up {len(lost)}: {lost[0].doing}, ...") from None

    def state(self) -> Queue:
        """How full the queue is."""
        with self._changed:
            chunks = sum(job.is_chunk for job in self._jobs)
            return Queue(chunks, self._bytes, self._waited)

    # What waits, holding the lock

    def _wait_for_room(self, size: int, doing: str) -> None:
        if not self._jobs or self._bytes + size <= self._limit:
            return
        started = time.monotonic()
        if not self._full:
            self._full = True
            why = self._trouble or "it takes less than comes"
            log.warning("%s: the queue is full, waiting for Redis (%s)", doing, why)
        try:
            self._wait_until(
                lambda: not self._jobs or self._bytes + size <= self._limit, doing, since=started
            )
        finally:
            self._waited += time.monotonic() - started

    def _wait_until(self, condition: Callable[[], bool], doing: str, since: float) -> None:
        while not condition():
            left = max(since, self._progress) + self._patience - time.monotonic()
            if left <= 0:
                trouble = self._trouble or Trouble(
                    f"Redis at {self._client.shown} did not answer", "no reply"
                )
                raise trouble.after(self._patience, doing)
            self._changed.wait(left)

    def _take(self, job: Job) -> None:
        if not self._jobs:
            self._progress = time.monotonic()
        self._jobs[job] = None
        self._bytes += job.size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="longview-sender", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _end(self, job: Job, value: Any = None, error: ReplayError | None = None) -> None:
        if job.done:  # given up while it was under way
            return
        if self._jobs.pop(job, job) is None:
            self._bytes -= job.size
        if self._full and self._bytes <= self._limit // 2:
            self._full = False
            log.warning("Redis at %s has caught up", self._client.shown)
        job.done, job.value, job.error = True, value, error
        self._changed.notify_all()

    # The background

    def _run(self) -> None:
        pauses = delays()
        while batch := self._next():
            try:
                for job, outcome in self._attempts(batch):
                    try:
                        value = self._client.attempt(job.doing, outcome)
                    except ReplayError as error:
                        self._fail(job, error)
                    else:
                        self._succeed(job, value)
                    pauses = delays()
            except Trouble as trouble:
                self._trouble = trouble.with_traceback(None)
                time.sleep(next(pauses))
                self._client.look_again()
            except ReplayError as error:
                for job in batch:
                    self._fail(job, error)
            except Exception as error:
                log.exception("%s", batch[0].doing)
                for job in batch:
                    self._fail(job, StoreError(f"{job.doing}: {error!r}"))

    def _next(self) -> list[Job]:
        """The next jobs to send together; none when there was nothing to do for a while."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._jobs, LINGER_SECONDS):
                self._thread = None
                return []
            batch = [next(iter(self._jobs))]
            self._fill(batch)
            return batch

    def _fill(self, batch: list[Job]) -> None:
        """Add to a batch what waits behind it."""
        size = sum(job.size for job in batch)
        for job in islice(self._jobs, BATCH):
            if job not in batch:
                size += job.size
                if len(batch) == BATCH or size > BATCH_BYTES:
                    break
                batch.append(job)

    def _attempts(self, batch: list[Job]) -> Iterator[tuple[Job, Callable[[], Any]]]:
        """What each job of a batch comes to, one after the other; the batch grows while it is sent."""
        sent: list[tuple[Job, int]] = []

        def commands() -> Iterator[Sequence[Any]]:
            for job in batch:
                try:
                    if not job.done:  # as it is when a chunk before it cannot be stored
                        commands = job.prepare()
                        sent.append((job, len(commands)))
                        yield from commands
                except ReplayError as error:
                    self._fail(job, error)
                if job is batch[-1]:
                    with self._changed:
                        self._fill(batch)

        replies = iter(self._client.attempt(batch[0].doing, lambda: self._client.stream(commands())))
        for job, count in sent:
            yield job, partial(job.finish, list(islice(replies, count)))

    def _succeed(self, job: Job, value: Any) -> None:
        with self._changed:
            self._progress, self._trouble = time.monotonic(), None
            self._end(job, value)

    def _fail(self, job: Job, error: ReplayError) -> None:
        log.error("%s", error)
        with self._changed:
            if job.is_chunk:  # what comes after it is worth nothing
                job.lane.failure = error
                self.drop(job.lane, error)
            self._end(job, error=error)


def _without_error(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


_SENDERS: "weakref.WeakSet[Sender]" = weakref.WeakSet()
"""All that may have something left to send: as long as one has, its thread keeps it alive."""


def _close_all() -> None:
    for sender in list(_SENDERS):
        try:
            sender.close()
        except StoreError as error:
            log.error("%s", error)


def _forget_all() -> None:
    for sender in list(_SENDERS):
        sender._forget()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
