"""Writer of one episode, step by step."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.replay.codec import MAX_CHUNKS, Record, encode_chunk, encode_record, longer, new_chunk, seal
from longview.replay.config import StoreConfig
from longview.replay.episode import (
    ACTION,
    BY_PERSON,
    CONTROLLER,
    OPTIONAL,
    OUTCOMES,
    Array,
    EpisodeMeta,
    TaskSpec,
    implied_controller,
    learnable,
    validate_step,
)
from longview.replay.errors import EpisodeError, MissingChunks
from longview.replay.pictures import stored_as_jpeg
from longview.replay.redis.blocks import BlockPool
from longview.replay.redis.sender import Commands, Job, JobGroup, Sender
from longview.replay.redis.sink import Sink

_ARRAYS = (np.ndarray, np.generic)
Buffers = dict[str, tuple[Array, np.dtype[Any], tuple[int, ...]]]
"""Array of the current chunk (K, ...), dtype and shape of one step, by array name."""


class EpisodeWriter:
    """Writer of one episode, made by `EpisodeStore.writer`. It queues a chunk after every K steps.

    Only `commit` waits for Redis, unless the queue is full. A call that fails because Redis is unreachable or
    full has changed nothing and may be repeated; earlier steps are still in the queue.
    """

    def __init__(
        self,
        meta: EpisodeMeta,
        spec: TaskSpec,
        token: str,
        config: StoreConfig,
        sink: Sink,
        sender: Sender,
        memory: BlockPool,
        extras: Mapping[str, Any] | None = None,
        lossy: Collection[str] = (),
    ) -> None:
        self._id = meta.id
        self._chunk_steps = config.steps_per_chunk(sum(array.bytes for array in spec.arrays().values()))
        """Steps per chunk K."""
        self._record = Record(meta, "", 0, 0, 0, 0, token, self._chunk_steps, extras or {})
        """Record of the chunks that were encoded so far; the background thread replaces it."""
        encode_record(self._record)  # so that values that cannot be stored fail now
        self._as_jpeg = stored_as_jpeg(spec, lossy, config.pictures)
        self._sent: list[Commands] | None = []
        """Commands that stored the chunks, to send them again if a crash of Redis loses chunks or they expire
        before the commit; None once the chunks exceed `queue_bytes`."""
        self._spec = spec
        self._controller = implied_controller(meta)
        """Controller of the steps that do not say it; None if every step must."""
        self._config = config
        self._sink = sink
        self._sender = sender
        self._memory = memory
        self._jobs = JobGroup()
        self._buffers: Buffers = {}
        """Arrays of the current chunk; empty before its first step."""
        self._held: Collection[str] = ()
        """Names of the arrays that every step holds; empty before the first step."""
        self._rows = 0
        """Steps in the current chunk."""
        self._queued = 0
        """Steps in the chunks that were queued."""
        self._renewed = time.monotonic()
        """Time at which the life of the stored chunks was last extended."""
        self._commit: Job | None = None
        self._outcome = ""
        self._aborted = False

    def append(self, step: Mapping[str, Array]) -> None:
        """Add one step. The arrays are copied.

        Args:
            step: one row of every array of the task, by name; one of `OPTIONAL` in all steps or in none.
                `controller` may be left out, except in a correction: then it follows from the episode's
                source.

        Raises:
            EpisodeError: the step does not fit the task, or the episode is committed or aborted.
            StoreUnavailable, StoreFull: the queue stayed full for `patience_seconds`.
            StoreError, CodecError: an earlier chunk cannot be stored.
        """
        if self._aborted or self._commit is not None:
            raise EpisodeError(f"episode {self._id} is committed or aborted already")
        if self._jobs.failure is not None:
            raise self._jobs.failure
        if self._rows == self._chunk_steps:
            self._queue_chunk()
        if self._controller is not None and CONTROLLER not in step:
            step = {**step, CONTROLLER: self._controller}
        buffers = self._buffers or self._new_chunk(step)
        if step.keys() != buffers.keys():
            self._refuse(step)
        row = self._rows
        for name, array in step.items():
            buffer, dtype, shape = buffers[name]
            if not isinstance(array, _ARRAYS) or array.dtype != dtype or array.shape != shape:
                self._refuse(step)
            buffer[row] = array
        self._buffers, self._held = buffers, buffers.keys()
        self._rows += 1

    def extend(self, steps: Mapping[str, Array]) -> None:
        """Add consecutive steps.

        Args:
            steps: rows (steps, ...) of every array of the task, by name.

        Raises:
            ReplayError: as for `append`.
        """
        for row in range(len(steps[ACTION])):
            self.append({name: rows[row] for name, rows in steps.items()})

    def commit(self, outcome: str, meta: EpisodeMeta | None = None) -> bool:
        """Make the episode visible, and wait for it. Repeating the call has no further effect.

        Args:
            outcome: how the episode ended, one of `OUTCOMES`.
            meta: description of the episode, where its steps have changed it; None keeps the first one.

        Returns:
            True if the store now holds this writer's episode, False if it already held another one of this
            id.

        Raises:
            EpisodeError: as for `finish`.
            StoreUnavailable: Redis was unreachable for `patience_seconds`. The background thread tries on, so
                the episode may still become visible.
            StoreFull: the episode does not fit, and nothing may be evicted.
            MissingChunks: Redis lost chunks, and the episode was too large to keep them in the writer.
        """
        return bool(self.finish(outcome, meta).result())

    def finish(self, outcome: str, meta: EpisodeMeta | None = None) -> Job:
        """Queue the commit, and return its job, whose `result` returns and raises like `commit`.

        Args:
            outcome: how the episode ended, one of `OUTCOMES`.
            meta: description of the episode, where its steps have changed it; None keeps the first one.

        Raises:
            EpisodeError: the episode has no steps, the outcome is unknown, the description has another id or
                task, or the episode was aborted or committed with another outcome.
            StoreUnavailable, StoreFull: the queue stayed full for `patience_seconds`.
        """
        steps, before = self._queued + self._rows, self._commit
        if before is not None and before.error is None and outcome == self._outcome:
            return before
        ended = self._aborted or (before is not None and before.error is None)
        if ended or not steps or outcome not in OUTCOMES:
            state = "aborted" if self._aborted else "committed" if ended else "open"
            raise EpisodeError(
                f"episode {self._id}: expected an open episode with steps and an outcome of "
                f"{', '.join(OUTCOMES)}; it is {state}, has {steps} steps, outcome {outcome!r}"
            )
        meta = self._record.meta if meta is None else meta
        if (meta.id, meta.task) != (self._id, self._spec.name):
            raise EpisodeError(
                f"episode {self._id} of {self._spec.name} cannot become {meta.id} of {meta.task}"
            )
        if self._rows:
            self._queue_chunk()
        self._outcome = outcome
        self._commit = self._sender.call(
            self._jobs,
            f"committing episode {self._id}",
            partial(self._make_visible, outcome, meta),
            lambda: self._sink.committing(replace(self._record, outcome=outcome, meta=meta)),
        )
        return self._commit

    def abort(self) -> None:
        """Give the episode up, and remove its chunks in the background. A committed episode stays."""
        if self._aborted or (self._commit is not None and self._commit.done and self._commit.error is None):
            return
        self._aborted = True
        self._sender.drop(self._jobs, EpisodeError(f"episode {self._id} was aborted"))
        if self._queued:
            doing = f"discarding episode {self._id}"
            self._sender.call(self._jobs, doing, lambda _: self._sink.discard(self._record))

    def _queue_chunk(self) -> None:
        """Queue the current chunk, and start a new one.

        Raises:
            EpisodeError: the episode is too long, a value is not finite, or a controller is unknown.
            StoreUnavailable, StoreFull: the queue stayed full for `patience_seconds`.
        """
        if self._queued >= MAX_CHUNKS * self._chunk_steps:
            raise EpisodeError(
                f"episode {self._id}: has {MAX_CHUNKS} chunks already, the largest number; "
                "raise replay.chunk_steps and replay.chunk_bytes"
            )
        arrays = {name: buffer[: self._rows] for name, (buffer, *_) in self._buffers.items()}
        steps = f"steps {self._queued} to {self._queued + self._rows - 1}"
        for name, array in arrays.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise EpisodeError(f"episode {self._id}: {name} holds values that are not finite in {steps}")
        if (highest := arrays[CONTROLLER].max()) > BY_PERSON:
            raise EpisodeError(
                f"episode {self._id}: {CONTROLLER} is 0, 1 or 2, but up to {highest} in {steps}"
            )
        level, size = self._config.compression, sum(array.nbytes for array in arrays.values())
        encode: Callable[[], bytes | memoryview] = partial(encode_chunk, arrays, level, self._as_jpeg)
        if self._rows == self._chunk_steps and not self._as_jpeg:
            encode = partial(seal, self._chunk, level)
        work = partial(self._store, learnable(arrays), encode)
        self._sender.put(self._jobs, f"writing episode {self._id}", size, work)
        self._queued += self._rows
        self._buffers, self._rows = {}, 0

    def _store(self, learnable: NDArray[np.bool_], encode: Callable[[], bytes | memoryview]) -> Commands:
        """Encode the next chunk and return the commands that store it; called in the background, in order.

        Args:
            learnable: tells which of the chunk's steps (K,) there is something to learn from.
            encode: encodes the chunk.
        """
        chunk, record = encode(), self._record
        commands = self._sink.chunk(record, chunk)
        if time.monotonic() - self._renewed > self._config.orphan_seconds / 2:
            self._renewed = time.monotonic()
            commands = [*self._sink.renew(record), *commands]
        self._record = longer(record, learnable, len(chunk))
        if self._record.bytes > self._config.queue_bytes:
            self._sent = None
        if self._sent is not None:
            self._sent.append(commands)
        return commands

    def _make_visible(self, outcome: str, meta: EpisodeMeta, replies: Sequence[Any]) -> bool:
        """Try once to commit, in the background; `replies` are the replies to `Sink.committing`."""
        record = replace(self._record, outcome=outcome, meta=meta)
        try:
            committed = self._sink.commit(record, replies)
        except MissingChunks:
            if self._sent is None:
                raise
            for commands in self._sent:
                self._sink.send(commands)
            committed = self._sink.commit(record)
        self._sent = None
        return committed

    def _new_chunk(self, step: Mapping[str, Array]) -> Buffers:
        """Allocate the arrays of a chunk, with those of `OPTIONAL` that the episode's first step has."""
        specs = self._spec.arrays(self._held or step)
        shapes = [(name, spec.dtype, (self._chunk_steps, *spec.shape)) for name, spec in specs.items()]
        self._chunk, arrays = new_chunk(shapes, self._memory.take)
        return {name: (array, array.dtype, array.shape[1:]) for name, array in arrays.items()}

    def _refuse(self, step: Mapping[str, Array]) -> None:
        """Raise the EpisodeError that says why a step does not fit."""
        where = f"episode {self._id}, step {self._queued + self._rows}"
        try:
            validate_step({name: np.asarray(array) for name, array in step.items()}, self._spec)
        except EpisodeError as error:
            raise EpisodeError(f"{where}: {error}") from None
        differing = " and ".join(name for name in OPTIONAL if (name in step) != (name in self._held))
        raise EpisodeError(f"{where}: {differing} must be in all steps of an episode or in none")
