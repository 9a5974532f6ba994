"""How far a run is."""

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from longview.cluster.run.config import RunConfig
from longview.cluster.run.folder import Run
from longview.cluster.run.series import Series
from longview.monitoring.snapshot import Snapshot, rate
from longview.monitoring.success import Evaluation
from longview.replay.episode import TaskSpec
from longview.replay.stats import StoreStats

log = logging.getLogger(__name__)


@dataclass
class RunProgress:
    """How far a run is: what the live view shows and the summary holds."""

    run: Run
    config: RunConfig
    spec: TaskSpec
    phase: str = "start"
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each phase."""
    actors: int = field(init=False)
    """How many there should be."""
    demonstrations: int = 0
    version: int | None = None
    evaluations: dict[tuple[int, int], Evaluation] = field(default_factory=dict)
    history: list[Evaluation] = field(default_factory=list)
    metrics: Snapshot = field(default_factory=Snapshot)
    restarts: dict[str, Counter[str]] = field(default_factory=dict)
    """Ray actors that were started again, by role and cause."""
    errors: int = 0
    """Orders that failed without the actor's death."""
    prometheus: str | None = None
    """Address of the run's own Prometheus, if it has one."""
    stats: StoreStats | None = None
    """The store's last counts."""
    _entered: float = field(default_factory=time.monotonic)
    _done_before: int = 0
    _series: Series = field(init=False)
    _looks: deque[tuple[float, Snapshot]] = field(default_factory=lambda: deque(maxlen=10))

    def __post_init__(self) -> None:
        self.actors = self.config.actors.count
        self._series = Series(self.run.series)

    @property
    def wanted(self) -> int:
        """Demonstrations to start from; an expert gives those to validate on, too."""
        held_out = self.config.learner.validation_episodes if self.config.demonstrations is None else 0
        return self.config.demonstration_count(self.spec) + held_out

    def enter(self, phase: str) -> None:
        """Go on to the next phase."""
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
            self._looks.append((time.monotonic(), metrics))

    def steps_per_second(self) -> float:
        """Environment steps per second, all actors together, over the last few updates."""
        return rate(self._looks, "longview_env_steps_total")

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def done(self) -> tuple[int, int]:
        """How much of the phase is done, and how much there is: demonstrations, training steps or
        episodes."""
        if self.phase == "train":
            return int(self.metrics.total("longview_learner_step")), self.config.learner.steps
        if self.phase == "evaluate":
            rows = self.evaluations.values()
            return sum(row.rolled_out for row in rows), sum(row.wanted for row in rows)
        return self.demonstrations, self.wanted

    def time_left(self) -> float | None:
        """Seconds the phase will still take, going by its pace so far; None if that is unknown."""
        done, wanted = self.done()
        done -= self._done_before
        in_phase = time.monotonic() - self._entered
        return (wanted - self._done_before - done) * in_phase / done if done > 0 else None

    def latest_success(self) -> list[Evaluation]:
        """The latest evaluation at every context length, unfinished ones included."""
        latest = {found.context_length: found for found in self.history}
        latest |= {found.context_length: found for found in self.evaluations.values() if found.rolled_out}
        return [latest[length] for length in sorted(latest)]

    def newest_round(self) -> list[Evaluation]:
        """The evaluations of the newest version that has one at every context length, by context length; if
        none has, of the newest of those that have most."""
        rounds: dict[int, dict[int, Evaluation]] = {}
        for found in self.history:
            rounds.setdefault(found.version, {})[found.context_length] = found
        if not rounds:
            return []
        _, newest = max(rounds.items(), key=lambda item: (len(item[1]), item[0]))
        return [newest[length] for length in sorted(newest)]

    def evaluated(self, version: int) -> set[int]:
        """Context lengths at which a version has had its final evaluation."""
        wanted = self.config.evaluation.final_episodes
        return {
            found.context_length
            for found in self.history
            if found.version == version and found.rolled_out >= wanted
        }
