"""Writing one episode, step by step."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from longview.replay.codec import MAX_CHUNKS, Record, encode_chunk, encode_record, new_chunk, seal
from longview.replay.config import StoreConfig
from longview.replay.episode import EXPERT_ACTION, OUTCOMES, Array, EpisodeMeta, TaskSpec, validate_step
from longview.replay.errors import EpisodeError, MissingChunks
from longview.replay.redis.blocks import BlockPool
from longview.replay.redis.sender import Commands, Job, JobGroup, Sender
from longview.replay.redis.sink import Sink

_ARRAYS = (np.ndarray, np.generic)
Buffers = dict[str, tuple[Array, np.dtype[Any], tuple[int, ...]]]
"""By name: views of a chunk's bytes, (K, ...), and the dtype and shape that a row must have."""


class EpisodeWriter:
    """Takes an episode's steps and hands over every K of them to be sent; made by `EpisodeStore.writer`.

    Nothing here waits for Redis but `commit`, as long as the queue of what is to be sent has room. When a
    call fails because Redis is away or full, nothing of it was done, and it may be repeated: what was taken
    before is still in the queue.
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
    ) -> None:
        self._id = meta.id
        self._record = Record(meta, "", 0, 0, 0, token, config.chunk_steps, extras or {})
        """Of what is encoded so far, in the background."""
        encode_record(self._record)
        self._sent: list[Commands] | None = []
        """What stored the chunks, as long as that is no more than `queue_bytes`: a Redis that crashes may
        lose some, and an episode that takes very long outlives them."""
        self._spec = spec
        self._config = config
        self._sink = sink
        self._sender = sender
        self._memory = memory
        self._jobs = JobGroup()
        self._buffers: Buffers = {}
        """Of the chunk that is being filled."""
        self._rows = 0
        self._handed_over = 0
        """Steps that have left the buffers."""
        self._renewed = time.monotonic()
        """When the chunks that are stored were last seen to."""
        self._commit: Job | None = None
        self._outcome = ""
        self._aborted = False

    def append(self, step: Mapping[str, Array]) -> None:
        """Add one step: one row of every array of the task, and of `expert_action` in all steps or in none.

        Raises:
            EpisodeError: the step does not fit the task, or the writer is finished.
            StoreUnavailable, StoreFull: the queue is full, and stayed so for `patience_seconds`.
            StoreError, CodecError: an earlier chunk cannot be stored.
        """
        if self._aborted or self._commit is not None:
            raise EpisodeError(f"episode {self._id} is committed or aborted already")
        if self._jobs.failure is not None:
            raise self._jobs.failure
        if self._rows == self._config.chunk_steps:
            self._hand_over()
        buffers = self._buffers or self._new_chunk(step)
        if step.keys() != buffers.keys():
            self._refuse(step)
        row = self._rows
        for name, array in step.items():
            buffer, dtype, shape = buffers[name]
            if not isinstance(array, _ARRAYS) or array.dtype != dtype or array.shape != shape:
                self._refuse(step)
            buffer[row] = array
        self._buffers = buffers
        self._rows += 1

    def commit(self, outcome: str) -> bool:
        """Make the episode visible, exactly once however often this is repeated, and wait for that.

        Returns:
            True if this writer's episode is the one in the store, False if another one of this id was there.

        Raises:
            as `finish`.
            StoreUnavailable: Redis stayed away. The episode may still become visible, as this is tried on.
            StoreFull: there is no room, and nothing that may be evicted.
            MissingChunks: Redis has lost chunks, and they were too large to be kept here.
        """
        return bool(self.finish(outcome).result())

    def finish(self, outcome: str) -> Job:
        """Have the episode made visible, in the background; `result` of what is returned is as of `commit`.

        Raises:
            EpisodeError: there are no steps, the outcome is unknown, or the episode was aborted, or committed
                with another outcome.
            StoreUnavailable, StoreFull: the queue is full, and stayed so for `patience_seconds`.
        """
        steps, before = self._handed_over + self._rows, self._commit
        if before is not None and before.error is None and outcome == self._outcome:
            return before
        ended = self._aborted or (before is not None and before.error is None)
        if ended or not steps or outcome not in OUTCOMES:
            state = "aborted" if self._aborted else "committed" if ended else "open"
            raise EpisodeError(
                f"episode {self._id}: expected an open episode with steps and an outcome of "
                f"{', '.join(OUTCOMES)}; it is {state}, has {steps} steps, outcome {outcome!r}"
            )
        if self._rows:
            self._hand_over()
        self._outcome = outcome
        self._commit = self._sender.call(
            self._jobs,
            f"committing episode {self._id}",
            partial(self._make_visible, outcome),
            lambda: self._sink.committing(replace(self._record, outcome=outcome)),
        )
        return self._commit

    def abort(self) -> None:
        """Give the episode up, and have what was stored of it removed; nothing happens if it is committed."""
        if self._aborted or (self._commit is not None and self._commit.done and self._commit.error is None):
            return
        self._aborted = True
        self._sender.drop(self._jobs, EpisodeError(f"episode {self._id} was aborted"))
        if self._handed_over:
            doing = f"discarding episode {self._id}"
            self._sender.call(self._jobs, doing, lambda _: self._sink.discard(self._record))

    def _hand_over(self) -> None:
        if self._handed_over >= MAX_CHUNKS * self._config.chunk_steps:
            raise EpisodeError(
                f"episode {self._id}: has {MAX_CHUNKS} chunks already, the most there may be; "
                "raise replay.chunk_steps"
            )
        arrays = {name: buffer[: self._rows] for name, (buffer, *_) in self._buffers.items()}
        for name, array in arrays.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                steps = f"steps {self._handed_over} to {self._handed_over + self._rows - 1}"
                raise EpisodeError(f"episode {self._id}: {name} holds values that are not finite in {steps}")
        level, size = self._config.compression, sum(array.nbytes for array in arrays.values())
        full = self._rows == self._config.chunk_steps
        encode = partial(seal, self._chunk, level) if full else partial(encode_chunk, arrays, level)
        work = partial(self._store, self._rows, encode)
        self._sender.put(self._jobs, f"writing episode {self._id}", size, work)
        self._handed_over += self._rows
        self._buffers, self._rows = {}, 0

    def _store(self, rows: int, encode: Callable[[], bytes | memoryview]) -> Commands:
        """Runs in the background, chunk after chunk."""
        chunk, record = encode(), self._record
        commands = self._sink.chunk(record, chunk)
        if time.monotonic() - self._renewed > self._config.orphan_seconds / 2:
            self._renewed = time.monotonic()
            commands = [*self._sink.renew(record), *commands]
        self._record = replace(
            record, length=record.length + rows, chunks=record.chunks + 1, bytes=record.bytes + len(chunk)
        )
        if self._record.bytes > self._config.queue_bytes:
            self._sent = None
        if self._sent is not None:
            self._sent.append(commands)
        return commands

    def _make_visible(self, outcome: str, replies: Sequence[Any]) -> bool:
        """One attempt to commit, in the background; `replies` are those to `Sink.committing`."""
        record = replace(self._record, outcome=outcome)
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
        specs = self._spec.arrays()
        if EXPERT_ACTION in step:
            specs[EXPERT_ACTION] = self._spec.action
        rows = self._config.chunk_steps
        shapes = [(name, spec.dtype, (rows, *spec.shape)) for name, spec in specs.items()]
        self._chunk, arrays = new_chunk(shapes, self._memory.take)
        return {name: (array, array.dtype, array.shape[1:]) for name, array in arrays.items()}

    def _refuse(self, step: Mapping[str, Array]) -> None:
        where = f"episode {self._id}, step {self._handed_over + self._rows}"
        try:
            validate_step({name: np.asarray(array) for name, array in step.items()}, self._spec)
        except EpisodeError as error:
            raise EpisodeError(f"{where}: {error}") from None
        raise EpisodeError(f"{where}: {EXPERT_ACTION} must be in all steps of an episode or in none")
