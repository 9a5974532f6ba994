"""Episodes of robots on their way into an episode store, with who was in control at each step.

A thread writes, so that no robot waits for Redis. If an episode cannot be recorded as a whole, because frames
are missing or the store does not keep up, it is given up, and the robot goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from longview.cluster.serving.deciding import Question
from longview.replay.episode import (
    ACTION,
    BY_PERSON,
    BY_POLICY,
    CONTROLLER,
    OBSERVATION_PREFIX,
    REWARD,
    Array,
    EpisodeMeta,
    TaskSpec,
    episode_id,
)
from longview.replay.errors import ReplayError

if TYPE_CHECKING:
    from longview.replay.redis.writer import EpisodeWriter
    from longview.replay.store import EpisodeStore

log = logging.getLogger(__name__)

BACKLOG: Final = 256
"""Most calls of all robots that wait to be written."""
CUT_OFF: Final = "failure"
"""Outcome of an episode that ended without one: nothing is imitated as a success that was not called one."""


@dataclass(eq=False)
class Recording:
    """Recording of one episode."""

    recorder: "Recorder"
    """Recorder that writes it."""
    meta: EpisodeMeta
    """Description of the episode as a correction. It is a demonstration if a person did it all."""
    present: Mapping[str, Array] = field(default_factory=dict)
    """Newest frame (1, ...) by key, whose action is not known yet; empty before the first call."""
    by_person: bool = True
    """Whether a person was in control at every step so far, for the thread alone."""
    writer: "EpisodeWriter | None" = None
    """Writer of the episode, for the thread alone; None before the first step."""
    lost: bool = False
    """Whether the episode was given up."""


class Recorder:
    """Thread that writes the episodes of all robots into a store."""

    def __init__(self, store: "EpisodeStore", spec: TaskSpec, count: Callable[[str], None]) -> None:
        """
        Args:
            store: the store; it is not closed here.
            spec: task of the policy, which is registered unless one with these arrays is already.
            count: called with the outcome of each episode, or with `lost`.

        Raises:
            StoreError: the store holds a task of this name with other arrays, or cannot be reached.
        """
        if spec.name in store.tasks():  # a run may have chosen other context lengths than the store's task
            spec = replace(store.spec(spec.name), observation=spec.observation, action=spec.action)
        store.register(spec)
        self._store, self._task, self._count = store, spec.name, count
        self._jobs: Queue[Callable[[], None] | None] = Queue(BACKLOG)
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def begin(self, version: int, T_o: int) -> Recording:
        """Begin an episode.

        Args:
            version: version of the policy that acts.
            T_o: context length that it acts with.
        """
        id = episode_id("serve", self._task, time.time_ns())
        return Recording(self, EpisodeMeta(id, self._task, 0, "correction", (version,), T_o))

    def add(self, recording: Recording, question: Question, controller: NDArray[np.uint8] | None) -> None:
        """Add the steps before the newest frame of a question.

        Args:
            recording: the episode.
            question: its newest frames, and the actions executed since the last ones.
            controller: who was in control of each action; None: the policy.
        """
        frames = {
            key: np.concatenate([recording.present[key], new]) if recording.present else new
            for key, new in question.frames.items()
        }
        recording.present = {key: rows[-1:] for key, rows in frames.items()}
        steps, actions = len(next(iter(frames.values()))) - 1, question.executed
        if question.skipped or len(actions) != steps:
            self._lose(recording, "a frame or an action is missing")
        elif steps:
            if controller is None:
                controller = np.full(steps, BY_POLICY)
            self._do(recording, lambda: self._append(recording, frames, actions, controller))

    def end(self, recording: Recording, outcome: str = CUT_OFF) -> None:
        """End an episode. An episode without steps leaves nothing."""
        self._do(recording, lambda: self._commit(recording, outcome))

    def close(self) -> None:
        """Wait until all that was added is written."""
        self._jobs.put(None)
        self._thread.join()

    def _do(self, recording: Recording, job: Callable[[], None]) -> None:
        """Let the thread do something for an episode, unless the episode is lost."""

        def attempt() -> None:
            if recording.lost:
                return
            try:
                job()
            except ReplayError as error:
                self._lose(recording, str(error))

        if recording.lost:
            return
        try:
            self._jobs.put_nowait(attempt)
        except Full:
            self._lose(recording, "the store does not keep up")

    def _lose(self, recording: Recording, reason: str) -> None:
        """Give an episode up."""
        if not recording.lost:
            recording.lost = True
            self._count("lost")
            log.warning("episode %s is not recorded: %s", recording.meta.id, reason)
            with suppress(Full):  # chunks without a commit expire anyway
                self._jobs.put_nowait(lambda: _abort(recording))

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _append(
        self,
        recording: Recording,
        frames: Mapping[str, Array],
        actions: NDArray[np.float32],
        controller: NDArray[np.uint8],
    ) -> None:
        if recording.writer is None:
            recording.writer = self._store.writer(recording.meta)
        recording.by_person &= bool((controller == BY_PERSON).all())
        for row, (action, who) in enumerate(zip(actions, controller, strict=True)):
            step = {OBSERVATION_PREFIX + key: rows[row] for key, rows in frames.items()}
            recording.writer.append(step | {ACTION: action, REWARD: np.float32(0), CONTROLLER: who})

    def _commit(self, recording: Recording, outcome: str) -> None:
        if recording.writer is not None:
            meta = recording.meta
            if recording.by_person:
                meta = replace(meta, source="human", policy_versions=(), context_length=0)
            recording.writer.commit(outcome, meta)
            self._count(outcome)


def _abort(recording: Recording) -> None:
    if recording.writer is not None:
        recording.writer.abort()
