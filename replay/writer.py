"""Writing one episode, step by step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from replay.codec import Record, encode_chunk, encode_record
from replay.config import StoreConfig
from replay.episode import EXPERT_ACTION, OUTCOMES, Array, EpisodeMeta, TaskSpec, validate_step
from replay.errors import EpisodeError

_ARRAYS = (np.ndarray, np.generic)


@dataclass(frozen=True)
class Sink:
    """Where a writer's bytes go."""

    put: Callable[[int, bytes], None]
    """Store a chunk under its number."""
    commit: Callable[[Record, bytes], bool]
    """Store the last chunk and make the episode visible; False: another writer's already was."""
    discard: Callable[[], None]
    """Remove what was put."""


class EpisodeWriter:
    """Takes an episode's steps and sends every K of them on their way; made by `EpisodeStore.writer`.

    When a call fails because Redis is away or full, nothing of it was done, and it may be repeated.
    """

    def __init__(
        self, meta: EpisodeMeta, spec: TaskSpec, token: str, config: StoreConfig, sink: Sink
    ) -> None:
        self._record = Record(meta, outcome="", length=0, chunks=0, bytes=0, token=token)
        encode_record(self._record)
        self._spec = spec
        self._config = config
        self._sink = sink
        self._buffers: dict[str, Array] = {}
        self._rows = 0
        self._open = True

    def append(self, step: Mapping[str, Array]) -> None:
        """Add one step: one row of every array of the task, and of `expert_action` in all steps or in none.

        Raises:
            EpisodeError: the step does not fit the task, or the writer is finished.
            StoreUnavailable: Redis stayed away while a chunk was due.
        """
        if not self._open:
            raise EpisodeError(f"episode {self._record.meta.id} is committed or aborted already")
        if self._rows == self._config.chunk_steps:
            self._put()
        buffers = self._buffers or self._allocate(step)
        if step.keys() != buffers.keys():
            self._refuse(step)
        row = self._rows
        for name, array in step.items():
            buffer = buffers[name]
            if (
                not isinstance(array, _ARRAYS)
                or array.dtype != buffer.dtype
                or array.shape != buffer.shape[1:]
            ):
                self._refuse(step)
            buffer[row] = array
        self._buffers = buffers
        self._rows += 1

    def commit(self, outcome: str) -> bool:
        """Make the episode visible, exactly once however often this is repeated.

        Returns:
            True if this writer's episode is the one in the store, False if another one of this id was there.

        Raises:
            EpisodeError: there are no steps, the outcome is unknown, or the episode was aborted.
            StoreUnavailable: Redis stayed away.
            StoreFull: there is no room, and nothing that may be evicted.
            StoreError: chunks have expired, since the last of them was written `orphan_seconds` ago.
        """
        if not self._open or not self._rows or outcome not in OUTCOMES:
            state = "open" if self._open else "committed or aborted"
            raise EpisodeError(
                f"episode {self._record.meta.id}: expected an open episode with steps and an outcome of "
                f"{', '.join(OUTCOMES)}; it is {state}, has {self._steps} steps, outcome {outcome!r}"
            )
        last = self._encode()
        committed = self._sink.commit(replace(self._after(last), outcome=outcome), last)
        self._open = False
        return committed

    def abort(self) -> None:
        """Give the episode up and remove what was stored of it; nothing happens if it is finished."""
        if self._open:
            self._open = False
            self._sink.discard()

    @property
    def _steps(self) -> int:
        return self._record.length + self._rows

    def _put(self) -> None:
        chunk = self._encode()
        self._sink.put(self._record.chunks, chunk)
        self._record = self._after(chunk)
        self._rows = 0

    def _after(self, chunk: bytes) -> Record:
        """The record once the buffered rows have left as this chunk."""
        record = self._record
        return replace(record, length=self._steps, chunks=record.chunks + 1, bytes=record.bytes + len(chunk))

    def _encode(self) -> bytes:
        arrays = {name: buffer[: self._rows] for name, buffer in self._buffers.items()}
        for name, array in arrays.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                steps = f"steps {self._record.length} to {self._steps - 1}"
                raise EpisodeError(
                    f"episode {self._record.meta.id}: {name} holds values that are not finite in {steps}"
                )
        return encode_chunk(arrays, self._config.compression)

    def _allocate(self, step: Mapping[str, Array]) -> dict[str, Array]:
        specs = self._spec.arrays()
        if EXPERT_ACTION in step:
            specs[EXPERT_ACTION] = self._spec.action
        rows = self._config.chunk_steps
        return {name: np.empty((rows, *spec.shape), spec.dtype) for name, spec in specs.items()}

    def _refuse(self, step: Mapping[str, Array]) -> None:
        where = f"episode {self._record.meta.id}, step {self._steps}"
        try:
            validate_step({name: np.asarray(array) for name, array in step.items()}, self._spec)
        except EpisodeError as error:
            raise EpisodeError(f"{where}: {error}") from None
        raise EpisodeError(f"{where}: {EXPERT_ACTION} must be in all steps of an episode or in none")
