"""Progress of a run, as the live view shows it and the summary holds it."""

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from longview.cluster.run.config import RunConfig
from longview.cluster.run.copies import Copies
from longview.cluster.run.folder import Run
from longview.cluster.run.series import Series
from longview.monitoring.mirrors import Mirrors
from longview.monitoring.snapshot import Snapshot, rate
from longview.monitoring.success import Evaluation
from longview.replay.episode import TaskSpec
from longview.replay.stats import StoreStats

log = logging.getLogger(__name__)


@dataclass
class RunProgress:
    """Progress of a run, brought up to date by its driver."""

    run: Run
    """The run's folder."""
    config: RunConfig
    """The run's config."""
    spec: TaskSpec
    """Spec of the run's task."""
    phase: str = "start"
    """Present phase: `start`, or one of `phases`; at the end `finished` or another status."""
    started: float = field(default_factory=time.monotonic)
    """Monotonic time of the start."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each phase so far, the present one left out."""
    actors: int = field(init=False)
    """Rollout actors that the run wants to have."""
    demonstrations: int = 0
    """Demonstrations in the store."""
    expert_steps: int = 0
    """Steps that the expert has made for what was collected, those of its plans included."""
    version: int | None = None
    """Newest published policy version; None before the first."""
    evaluations: dict[tuple[int, int], Evaluation] = field(default_factory=dict)
    """The newest round of evaluation, finished or not, by version and context length."""
    history: list[Evaluation] = field(default_factory=list)
    """Finished evaluations, oldest first, those of earlier launches included."""
    metrics: Snapshot = field(default_factory=Snapshot)
    """The hub's newest numbers."""
    restarts: dict[str, Counter[str]] = field(default_factory=dict)
    """Ray actors that were started again, by role and cause."""
    errors: int = 0
    """Orders that failed without the actor's death."""
    copies: Copies | None = None
    """Copies of the results at a URL, if the config wants them."""
    mirrors: Mirrors | None = None
    """Mirrors of the hub's figures, if the config wants any."""
    prometheus: str | None = None
    """Address of the run's own Prometheus, if it has one."""
    held_out: dict[str, Any] | None = None
    """Action error on held-out episodes, as summary.json has it; None before it is measured."""
    stats: StoreStats | None = None
    """The store's counts at the end of the run."""
    _entered: float = field(default_factory=time.monotonic)
    _done_before: int = 0
    _series: Series = field(init=False)
    _looks: deque[tuple[float, Snapshot]] = field(default_factory=lambda: deque(maxlen=10))

    def __post_init__(self) -> None:
        self.actors = self.config.rollout_actors
        self._series = Series(self.run.series)

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases of the run, in order."""
        return ("import" if self.config.data.spec else "collect", "train", "evaluate")

    @property
    def wanted(self) -> int:
        """Demonstrations to start from, those that are held out for validation included. None are held out of
        an import where they would be half or more (`held_out` in roles/rank.py), so none are added then."""
        count, held_out = self.config.demonstration_count(self.spec), self.config.learner.validation_episodes
        imported = self.config.demonstrations is not None
        if self.config.data.spec or (imported and count <= held_out):
            return count
        return count + held_out

    def enter(self, phase: str) -> None:
        """Begin the next phase."""
        now = time.monotonic()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._entered
        self.phase, self._entered = phase, now
        self._done_before, _ = self.done()
        log.info("phase: %s", phase)

    def update(self, metrics: Snapshot) -> None:
        """Take in the hub's newest numbers."""
        if metrics is not self.metrics:
            self.metrics = metrics
            self._series.add(metrics)
            if self.mirrors is not None:
                self.mirrors.add(metrics)
            self._looks.append((time.monotonic(), metrics))

    def steps_per_second(self) -> float:
        """Compute the environment steps per second of all actors together, over the last few updates."""
        return rate(self._looks, "longview_env_steps_total")

    def elapsed(self) -> float:
        """Compute the seconds since the start."""
        return time.monotonic() - self.started

    def done(self) -> tuple[int, int]:
        """Count what is done in this phase, and what the phase has to do: demonstrations, training steps or
        evaluation episodes."""
        if self.phase == "train":
            return int(self.metrics.total("longview_learner_step")), self.config.learner.steps
        if self.phase == "evaluate":
            rows = self.evaluations.values()
            return sum(row.rolled_out for row in rows), sum(row.wanted for row in rows)
        return self.demonstrations, self.wanted

    def time_left(self) -> float | None:
        """Estimate the seconds until the phase ends from its pace so far; None while nothing is done."""
        done, wanted = self.done()
        done -= self._done_before
        in_phase = time.monotonic() - self._entered
        return (wanted - self._done_before - done) * in_phase / done if done > 0 else None

    def latest_success(self) -> list[Evaluation]:
        """Choose the latest evaluation at every context length, unfinished ones included."""
        latest = {found.context_length: found for found in self.history}
        latest |= {found.context_length: found for found in self.evaluations.values() if found.rolled_out}
        return [latest[length] for length in sorted(latest)]

    def newest_round(self) -> list[Evaluation]:
        """Choose one version's evaluations, by ascending context length: those of the version that has been
        evaluated at most context lengths, and of the newest among equals."""
        rounds: dict[int, dict[int, Evaluation]] = {}
        for found in self.history:
            rounds.setdefault(found.version, {})[found.context_length] = found
        if not rounds:
            return []
        _, newest = max(rounds.items(), key=lambda item: (len(item[1]), item[0]))
        return [newest[length] for length in sorted(newest)]

    def evaluated(self, version: int) -> dict[int, Evaluation]:
        """Find the evaluations of a version, by context length. A later one holds the episodes of an earlier
        one."""
        return {found.context_length: found for found in self.history if found.version == version}
