"""Mirrors of a run's figures: TensorBoard and Weights & Biases, over training steps.

The figures are those that the hub has. Each mirror works in a thread of its own, so that no mirror, slow or
broken, holds up the run. A resumed run goes on where its curves ended, and repeats no point.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from longview.monitoring.metrics import metric
from longview.monitoring.snapshot import Looks, Snapshot, rate

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 5.0
"""Time between two points of a curve, at least."""
WAITING: Final = 100
"""Points that may wait for a mirror. Further ones are left out of it."""
CLOSE_SECONDS: Final = 30.0
"""Longest wait, when the run has ended, for mirrors that have not written everything."""
UPLOAD_SECONDS: Final = 20.0
"""Longest wait for the upload of W&B. What has not been uploaded stays in the run's folder."""

OF_STEP: Final = {
    "loss": "longview_loss",
    "gradient_norm": "longview_gradient_norm",
    "training/out_of_range": "longview_out_of_range_ratio",
    "training/gpu_memory_bytes": "longview_gpu_memory_bytes",
    "acting/actors": "longview_actors",
    "acting/staleness": "longview_staleness_mean",
    "store/episodes": "longview_store_episodes",
    "store/bytes": "longview_store_bytes",
    "store/quarantined": "longview_store_quarantined_episodes",
    "run/restarts": "longview_actor_restarts_total",
    "run/errors": "longview_errors_total",
}
"""Metrics of the present training step, by the name of their figure."""
RATES: Final = {
    "speed/windows_per_second": "longview_samples_trained_total",
    "speed/environment_steps_per_second": "longview_env_steps_total",
    "training/data_wait": "longview_learner_data_wait_seconds_total",
}
"""Counters whose growth per second is a figure."""
OF_VERSION: Final = {
    "longview_policy_version": {
        "validation_loss": "longview_validation_loss",
        "action_error": "longview_action_error_ratio",
    },
    "longview_evaluation_version": {
        "success": "longview_success_ratio",
        "completed": "longview_completion_ratio",
        "contextual_success": "longview_contextual_success_ratio",
    },
}
"""Metrics of a policy version, which is their place on the axis of training steps, by the metric that has the
version."""

Figures = Mapping[str, float]
"""Values by name, such as `loss/T_o_8`."""
Write = Callable[[int, Figures], None]
"""Function that writes the figures of a training step into a mirror."""


@dataclass(frozen=True)
class MirroredRun:
    """Facts about a run that its mirrors show."""

    name: str
    """Name of the run."""
    id: str
    """Identity of the run, the same after a resume."""
    task: str
    """Name of the task."""
    folder: Path
    """Folder of the run."""
    config: Mapping[str, Any]
    """Config as plain types, without any password."""


@contextmanager
def tensorboard(run: MirroredRun) -> Iterator[Write]:
    """Write event files for TensorBoard into `tensorboard/` in the run's folder."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with closing(EventFileWriter(str(run.folder / "tensorboard"))) as events:

        def write(step: int, figures: Figures) -> None:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
            events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            events.flush()

        yield write


@contextmanager
def wandb(run: MirroredRun) -> Iterator[Write]:
    """Write a run of Weights & Biases, with its project named after the task.

    W&B's own environment variables choose project, entity, server, and offline mode. Without a key or a
    connection the run is written offline, for `wandb sync`. W&B gets the figures and the config: no output,
    command line, code or numbers of the machine.
    """
    import wandb as package

    settings = package.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=UPLOAD_SECONDS,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,  # holds the command line, in which a URL may have a password
        x_disable_stats=True,
        x_save_requirements=False,
    )
    mode = package.setup(settings).settings.mode
    project = re.sub(r"[/\\#?%:]", "-", run.task)[:128]
    start = partial(
        package.init,
        project=os.environ.get("WANDB_PROJECT", project),
        name=run.name,
        id=run.id,
        resume="allow",
        dir=run.folder,
        config=dict(run.config),
        settings=settings,
    )
    try:
        if mode == "online" and not package.login(prompt=False):
            raise package.errors.UsageError("it knows no key, see `wandb login`")
        started = start()
    except package.Error as error:
        log.warning("W&B is written offline, for `wandb sync`: %s", error)
        started = start(mode="offline")
    with started:
        started.define_metric("*", step_metric="training_step")
        yield lambda step, figures: started.log({"training_step": step, **figures})


MIRRORS: Final[Mapping[str, Callable[[MirroredRun], AbstractContextManager[Write]]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}
"""Mirrors by name, which is also the name of their package and of the extra that brings it."""


class Mirrors:
    """Mirrors of one run, until `close`. They write every figure at most once for a training step, those of
    earlier launches included."""

    def __init__(
        self,
        mirrors: Mapping[str, AbstractContextManager[Write]],
        file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            mirrors: mirrors by name, not entered yet.
            file: keeps the last training step of each figure for a resume.
            clock: returns the time in seconds.
        """
        self._file, self._clock = file, clock
        self._last_step: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        """Last training step that was written, by figure."""
        self._held: dict[str, tuple[int, Figures]] = {}
        """Newest version and its figures, by the metric that has the version. They are written once a newer
        version comes, because a later evaluation may extend that of the same version."""
        self._looks: Looks = ()
        """Look that the last point was made of, and the newest look."""
        self._threads = [_Thread(name, mirror) for name, mirror in mirrors.items()]

    def add(self, metrics: Snapshot) -> None:
        """Take in the hub's newest numbers, and write those that are due."""
        for version, table in OF_VERSION.items():
            point = int(metrics.total(version)), _figures(metrics, table)
            held = self._held.get(version, point)
            if held[0] != point[0]:
                self._write(*held)
            self._held[version] = point
        look = self._clock(), metrics
        self._looks = (*self._looks[:1], look)
        if look[0] - self._looks[0][0] >= EVERY_SECONDS:
            self._write_step()

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Write what is held back, and end the mirrors.

        Args:
            patience: longest wait in seconds for all of them together.
        """
        self._write_step()
        for held in self._held.values():
            self._write(*held)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.join(deadline)

    def _write_step(self) -> None:
        """Write the figures of the newest look. Before the training has begun there are none."""
        if not self._looks:
            return
        _, metrics = newest = self._looks[-1]
        if metrics.get("longview_learner_step"):
            rates = {tag: rate(self._looks, name) for tag, name in RATES.items() if metrics.get(name)}
            step = int(metrics.total("longview_learner_step"))
            self._write(step, {**_figures(metrics, OF_STEP), **(rates if len(self._looks) > 1 else {})})
        self._looks = (newest,)

    def _write(self, step: int, figures: Figures) -> None:
        """Write the figures that have no point at this training step yet, or at a later one.

        The steps are kept before the mirrors write. A crash in between costs a point, and doubles none.
        """
        new = {tag: value for tag, value in figures.items() if step > self._last_step.get(tag, -1)}
        if not new:
            return
        self._last_step |= dict.fromkeys(new, step)
        draft = self._file.with_name(f".{self._file.name}")
        try:
            draft.write_text(json.dumps(self._last_step))
            draft.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written: a resumed run may repeat points: %s", self._file, error)
        for thread in self._threads:
            thread.write(step, new)


class _Thread:
    """Thread of one mirror. If the mirror fails, that is logged, and the mirror gets nothing more."""

    def __init__(self, name: str, mirror: AbstractContextManager[Write]) -> None:
        self._name, self._mirror = name, mirror
        self._points = SimpleQueue[tuple[int, Figures] | None]()
        """Points that wait to be written; None ends the thread."""
        self._late = False
        self._thread = threading.Thread(target=self._work, name=f"mirror-{name}", daemon=True)
        self._thread.start()

    def write(self, step: int, figures: Figures) -> None:
        """Hand a point over, unless too many wait."""
        if self._points.qsize() < WAITING:
            self._points.put((step, figures))
        elif self._thread.is_alive() and not self._late:
            self._late = True
            log.warning("mirror %s is too slow: points are left out of it", self._name)

    def end(self) -> None:
        """Have the thread end once everything is written."""
        self._points.put(None)

    def join(self, deadline: float) -> None:
        """Wait until the thread has ended, at most until this monotonic time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.warning("mirror %s has not written everything in time", self._name)

    def _work(self) -> None:
        try:
            with self._mirror as write:
                while (point := self._points.get()) is not None:
                    write(*point)
        except Exception as error:  # every mirror has errors of its own
            log.warning("mirror %s has failed, and the run goes on without it: %s", self._name, error)


def mirrors_of(names: Sequence[str], run: MirroredRun) -> Mirrors:
    """Start the mirrors of a run.

    Args:
        names: some of `MIRRORS`.
        run: facts about the run.
    """
    return Mirrors({name: MIRRORS[name](run) for name in names}, run.folder / "mirrors.json")


def _figures(metrics: Snapshot, table: Mapping[str, str]) -> dict[str, float]:
    """Read figures from the hub's numbers: one for each context length, or the sum over all labels. Metrics
    that nobody has reported are left out."""
    figures: dict[str, float] = {}
    for tag, name in table.items():
        if "context_length" in metric(name).labels:
            found = metrics.by(name, "context_length")
            figures |= {f"{tag}/T_o_{length}": value for length, value in found.items()}
        elif metrics.get(name):
            figures[tag] = metrics.total(name)
    return figures
