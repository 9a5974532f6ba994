"""Background thread that sends the chunks and commits of writers to Redis, in the order they were queued."""

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
from longview.replay.redis.client import Client, TemporaryFailure, retry_delays

log = logging.getLogger(__name__)

JOB_BYTES: Final = 4096
"""Memory that a job needs besides its arrays, in bytes."""
BATCH: Final = 16
"""Largest number of jobs that are sent in one round trip."""
BATCH_BYTES: Final = 16 << 20
"""Largest size of the jobs that are sent in one round trip."""
LARGE_BYTES: Final = 1 << 20
"""Size from which a chunk's writer pauses, so that the chunk leaves at once."""
PAUSE_SECONDS: Final = 1e-6
"""Length of the pause that is requested; the system makes it about 50 us."""
LINGER_SECONDS: Final = 1.0
"""Idle time after which the thread ends; the next job starts a new one."""

Commands = Sequence[Sequence[Any]]
"""Redis commands, each a name and its arguments."""


class JobGroup:
    """Jobs of one writer. They run in order; once a chunk fails for good, all later jobs fail."""

    failure: ReplayError | None = None
    """Error of the chunk that could not be stored; None: no chunk failed."""


@dataclass(frozen=True)
class Queue:
    """State of the queue to Redis."""

    chunks: int
    """Number of chunks that are not stored yet."""
    bytes: int
    """Memory that the jobs in the queue occupy, before compression."""
    waited_seconds: float
    """Seconds that writers have waited for room in the queue so far, summed over all writers."""


@dataclass(eq=False)
class Job:
    """Task for the background thread, and its result."""

    sender: "Sender" = field(repr=False)
    """Sender that runs the job."""
    group: JobGroup
    """Jobs of the same writer."""
    doing: str
    """Description of the job, for error messages."""
    size: int
    """Memory that the job occupies, in bytes."""
    commands: Callable[[], Commands]
    """Function that makes the commands to send."""
    finish: Callable[[Sequence[Any]], Any]
    """Function that makes the result from the replies to the commands."""
    is_chunk: bool
    """Whether the job stores a chunk."""
    done: bool = False
    """Whether the job succeeded or failed."""
    value: Any = None
    """Result of a job that succeeded."""
    error: ReplayError | None = None
    """Error of a job that failed."""

    def prepare(self) -> Commands:
        """Return the commands, made at the first call."""
        commands = self.commands()
        self.commands = lambda: commands
        return commands

    def result(self) -> Any:
        """Wait for the job, and return its result.

        Raises:
            StoreUnavailable, StoreFull: nothing was stored for `patience_seconds`. The job stays in the
                queue.
            ReplayError: the job failed for good.
        """
        return self.sender.wait(self)


class InterruptibleCondition(threading.Condition):
    """Condition that passes on a Ctrl-C which arrives in the instant in which `wait` releases the lock.

    Python's own condition then releases a lock that it no longer holds, and raises RuntimeError instead.
    """

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        except RuntimeError:
            if raised[0] is not KeyboardInterrupt:
                raise


class Sender:
    """Background thread with a queue of jobs, bounded in bytes. Any number of threads may use it.

    While Redis is unreachable or full, the thread repeats its attempts. Callers that wait fail after
    `patience_seconds` without progress, and may wait again. A queued job is dropped only if its writer gives
    it up.
    """

    def __init__(self, client: Client, config: StoreConfig) -> None:
        self._client = client
        self._limit = config.queue_bytes
        self._patience = config.patience_seconds
        self._waited = 0.0
        self._reset()
        _SENDERS.add(self)

    def _reset(self) -> None:
        """Start with an empty queue and no thread. A forked process does so too, since it inherits no
        thread."""
        self._changed = InterruptibleCondition()
        self._jobs: dict[Job, None] = {}
        """Jobs that are not done, the oldest first."""
        self._bytes = 0
        """Size of the jobs in the queue."""
        self._full = False
        """Whether a writer has waited for room since the queue was last half empty."""
        self._progress = time.monotonic()
        """Time of the last success, or of the first job in the queue if that is later."""
        self._failure: TemporaryFailure | None = None
        """Reason for the last failed attempt; None: the last attempt succeeded."""
        self._thread: threading.Thread | None = None

    def put(self, group: JobGroup, doing: str, size: int, commands: Callable[[], Commands]) -> None:
        """Queue a chunk. Waits only while the queue is full.

        Args:
            group: jobs of the chunk's writer.
            doing: what the job does, for error messages.
            size: memory of the chunk's arrays, in bytes.
            commands: makes the commands that store the chunk, which must be safe to repeat. It is called
                once, in the background.

        Raises:
            StoreUnavailable, StoreFull: the queue stayed full, and the chunk was not queued.
            ReplayError: an earlier chunk of the group cannot be stored.
        """
        with self._changed:
            self._wait_for_room(size + JOB_BYTES, doing)
            if group.failure is not None:
                raise group.failure
            size += JOB_BYTES
            self._queue(Job(self, group, doing, size, commands, _without_error, is_chunk=True))
        if size >= LARGE_BYTES:
            # A thread that releases the interpreter only while it copies a row gets it back before the sender
            # wakes up. Without a pause, no chunk of an episode would leave before its last step.
            time.sleep(PAUSE_SECONDS)

    def call(
        self,
        group: JobGroup,
        doing: str,
        finish: Callable[[Sequence[Any]], Any],
        commands: Callable[[], Commands] = tuple,
    ) -> Job:
        """Queue a call that runs once all earlier chunks of the group are stored. Does not wait.

        Args:
            group: jobs of the caller's writer. If a chunk of it cannot be stored, the call fails with its
                error.
            doing: what the call does, for error messages.
            finish: runs the call once, with the replies to `commands`; it must be safe to repeat.
            commands: makes commands to send directly after the chunks, before it is known whether they were
                stored. It is called once, in the background.
        """
        job = Job(self, group, doing, JOB_BYTES, commands, finish, is_chunk=False)
        with self._changed:
            if group.failure is not None:
                self._end(job, error=group.failure)
            else:
                self._queue(job)
        return job

    def drop(self, group: JobGroup, why: ReplayError) -> None:
        """Remove the group's jobs from the queue; they fail with the error `why`."""
        with self._changed:
            for job in [job for job in self._jobs if job.group is group]:
                self._end(job, error=why)

    def wait(self, job: Job) -> Any:
        """Wait for a job, and return its result; errors as for `Job.result`."""
        with self._changed:
            self._wait_until(lambda: job.done, job.doing, since=time.monotonic())
        if job.error is not None:
            raise job.error
        return job.value

    def flush(self) -> None:
        """Wait until the queue is empty.

        Raises:
            StoreUnavailable, StoreFull: nothing was stored for `patience_seconds`.
        """
        with self._changed:
            self._wait_until(lambda: not self._jobs, "storing what is left", since=time.monotonic())

    def close(self) -> None:
        """Wait until the queue is empty; after `patience_seconds` without progress, drop the jobs that are
        left.

        Raises:
            StoreUnavailable, StoreFull: commits were dropped.
        """
        with self._changed:
            # The patience counts from the last success if Redis is already known to be unreachable.
            since = self._progress if self._failure else time.monotonic()
            try:
                self._wait_until(lambda: not self._jobs, "storing what is left", since)
            except StoreError as error:
                lost = [job for job in self._jobs if not job.is_chunk]
                for job in list(self._jobs):
                    self._end(job, error=error)
                if lost:
                    raise type(error)(f"{error}; gave up {len(lost)}: {lost[0].doing}, ...") from None

    def state(self) -> Queue:
        """Return how full the queue is."""
        with self._changed:
            chunks = sum(job.is_chunk for job in self._jobs)
            return Queue(chunks, self._bytes, self._waited)

    # Callers that wait, with the lock held

    def _wait_for_room(self, size: int, doing: str) -> None:
        if not self._jobs or self._bytes + size <= self._limit:
            return
        started = time.monotonic()
        if not self._full:
            self._full = True
            why = self._failure or "it stores fewer bytes than writers produce"
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
                failure = self._failure or TemporaryFailure(
                    f"Redis at {self._client.shown} did not answer", "no reply"
                )
                raise failure.after(self._patience, doing)
            self._changed.wait(left)

    def _queue(self, job: Job) -> None:
        if not self._jobs:
            self._progress = time.monotonic()
        self._jobs[job] = None
        self._bytes += job.size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="longview-sender", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _end(self, job: Job, value: Any = None, error: ReplayError | None = None) -> None:
        if job.done:  # it was dropped while it was being sent
            return
        if self._jobs.pop(job, job) is None:
            self._bytes -= job.size
        if self._full and self._bytes <= self._limit // 2:
            self._full = False
            log.warning("Redis at %s has caught up", self._client.shown)
        job.done, job.value, job.error = True, value, error
        self._changed.notify_all()

    # The background thread

    def _run(self) -> None:
        pauses = retry_delays()
        while batch := self._next_batch():
            try:
                for job, outcome in self._attempts(batch):
                    try:
                        value = self._client.attempt(job.doing, outcome)
                    except ReplayError as error:
                        self._fail(job, error)
                    else:
                        self._succeed(job, value)
                    pauses = retry_delays()
            except TemporaryFailure as failure:
                if self._failure is None:
                    log.warning("%s; trying again for %g s", failure, self._patience)
                self._failure = failure.with_traceback(None)
                time.sleep(next(pauses))
                self._client.reconnect()
            except ReplayError as error:
                for job in batch:
                    self._fail(job, error)
            except Exception as error:
                log.exception("%s", batch[0].doing)
                for job in batch:
                    self._fail(job, StoreError(f"{job.doing}: {error!r}"))

    def _next_batch(self) -> list[Job]:
        """Return the next jobs to send together, or none if the queue stayed empty for `LINGER_SECONDS`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._jobs, LINGER_SECONDS):
                self._thread = None
                return []
            batch = [next(iter(self._jobs))]
            self._fill(batch)
            return batch

    def _fill(self, batch: list[Job]) -> None:
        """Add the next jobs of the queue to a batch, up to its limits."""
        size = sum(job.size for job in batch)
        for job in islice(self._jobs, BATCH):
            if job not in batch:
                size += job.size
                if len(batch) == BATCH or size > BATCH_BYTES:
                    break
                batch.append(job)

    def _attempts(self, batch: list[Job]) -> Iterator[tuple[Job, Callable[[], Any]]]:
        """Send a batch once, and yield each job with the function that finishes it. The batch grows while it
        is sent."""
        sent: list[tuple[Job, int]] = []

        def commands() -> Iterator[Sequence[Any]]:
            for job in batch:
                try:
                    if not job.done:  # it is done already if an earlier chunk of its group failed
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
            self._progress, self._failure = time.monotonic(), None
            self._end(job, value)

    def _fail(self, job: Job, error: ReplayError) -> None:
        log.error("%s", error)
        with self._changed:
            if job.is_chunk:  # without it, the rest of the episode is useless
                job.group.failure = error
                self.drop(job.group, error)
            self._end(job, error=error)


def _without_error(replies: Sequence[Any]) -> None:
    """Raise the first error among the replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


_SENDERS: "weakref.WeakSet[Sender]" = weakref.WeakSet()
"""All senders that may have jobs left. The thread of a sender with jobs keeps the sender alive."""


def _close_all() -> None:
    for sender in list(_SENDERS):
        try:
            sender.close()
        except StoreError as error:
            log.error("%s", error)


def _reset_all() -> None:
    for sender in list(_SENDERS):
        sender._reset()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_reset_all)
