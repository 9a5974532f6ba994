"""An actor's work: orders in; episodes into the store, running totals to the hub, results out."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from longview.actors.config import ActorsConfig
from longview.actors.rollout import Assignment, Clock, EpisodeEnd, Policy, Recorder, rollout
from longview.actors.task import Task, make_simulator
from longview.monitoring.hub import Totals, encode_report
from longview.replay.episode import EpisodeMeta, episode_id
from longview.replay.redis.sender import Queue

log = logging.getLogger(__name__)

PURPOSES = ("demo", "dagger", "rollout", "evaluation")
REPORT_SECONDS = 1.0


class Store(Protocol):
    """What an actor needs of the episode store."""

    def writer(self, meta: EpisodeMeta) -> Recorder:
        """Open an episode."""

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of these episodes that are not committed."""

    def queue(self) -> Queue:
        """What is on its way."""


@dataclass(frozen=True)
class Order:
    """Consecutive episodes for one actor. Doing an order twice adds nothing to the store: ids and seeds
    follow from the indices."""

    purpose: str
    """`demo`, `dagger`, `rollout`: collect into that source. `evaluation`: record nothing."""
    first: int
    count: int
    context_length: int = 0
    beta: float = 0.0
    """Chance that a decision is the expert's."""
    version: int | None = None
    """The policy version to act with; None for the expert alone."""


@dataclass(frozen=True)
class Result:
    """What came of an order."""

    outcomes: Mapping[str, int]
    """Episodes by outcome: of an evaluation all, else those that are now in the store and were not before."""
    steps: int
    worn: bool = False
    """The actor has rendered so much that another process should take its place."""


def episode_seed(run_seed: int, purpose: str, index: int) -> int:
    """Seed of the index-th episode of a purpose: even for collected episodes, odd for evaluation, so that
    no policy is ever evaluated on a seed that it was trained on. Every context length and version is
    evaluated on the same seeds."""
    stream = np.random.SeedSequence(run_seed, spawn_key=(PURPOSES.index(purpose), index))
    return int(stream.generate_state(1)[0]) // 4 * 2 + (purpose == "evaluation")


@dataclass
class Worker:
    """One actor: M simulators, made once, and the totals it has reported since it started."""

    task: Task
    config: ActorsConfig
    run_seed: int
    name: str
    """Who reports: stays the same when the actor is restarted."""
    execute: int
    """T_a."""
    store: Store | None
    """None where nothing is collected."""
    report: Callable[[bytes], None]
    incarnation: int = field(default_factory=time.time_ns)
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        self.envs = [make_simulator(self.task) for _ in range(self.config.simulators)]
        self._clock, self._sent, self._episodes, self._waited = Clock(), Clock(), 0, 0.0
        self._idle_since = time.perf_counter()
        for name in ("longview_invalid_episodes_total", "longview_refused_actions_total"):
            self.totals.add(name, 0, task=self.task.spec.name)  # to be seen before the first one happens
        self._send()

    def work(self, order: Order, policy: Policy | None, newest_version: int = 0) -> Result:
        """Do an order.

        Args:
            order: what to do.
            policy: who acts, at `order.version`; None for the expert alone.
            newest_version: the newest that was published; its distance to the order's is the staleness.
        """
        if order.version is not None:
            for name in ("longview_staleness_max", "longview_staleness_mean"):
                self.totals.set(name, newest_version - order.version)
        self._clock.waiting += time.perf_counter() - self._idle_since
        before = self._clock.steps
        outcomes: Counter[str] = Counter()
        refusals: list[str] = []
        under_way: deque[EpisodeEnd] = deque()
        # Decisions depend on the order alone, so an evaluation that is repeated gives the same result.
        rng = np.random.default_rng((self.run_seed, order.version or 0, order.context_length, order.first))
        for end in rollout(
            self.task,
            self.envs,
            self._assignments(order),
            policy=policy,
            context_length=order.context_length,
            execute=self.execute,
            record=self.store.writer if self.store is not None and order.purpose != "evaluation" else None,
            rng=rng,
            clock=self._clock,
        ):
            self._count(end)
            if end.refusal is not None:
                refusals.append(end.refusal)
            under_way.append(end)
            while under_way and (under_way[0].receipt is None or under_way[0].receipt.done):
                self._settle(order, under_way.popleft(), outcomes)
        # An order is done when all its episodes are in the store.
        started = time.perf_counter()
        for end in under_way:
            self._settle(order, end, outcomes)
        self._clock.store += time.perf_counter() - started
        self._send()
        self._idle_since = time.perf_counter()
        if refusals:
            log.warning("%s: %d actions refused, the first: %s", order, len(refusals), refusals[0])
        worn = bool(self.config.cameras.names) and self._episodes >= self.config.recycle
        return Result(outcomes, self._clock.steps - before, worn)

    def _assignments(self, order: Order) -> Iterator[Assignment]:
        expert = order.purpose in ("demo", "dagger")
        indices = range(order.first, order.first + order.count)
        ids = {index: episode_id(order.purpose, self.task.spec.name, index) for index in indices}
        wanted = set(ids.values())
        if order.purpose != "evaluation" and self.store is not None:
            # An earlier attempt at this order may have got further than nothing.
            wanted = set(self.store.missing(list(ids.values())))
        for index, id in ids.items():
            if id not in wanted:
                continue
            meta = EpisodeMeta(
                id=id,
                task=self.task.spec.name,
                seed=episode_seed(self.run_seed, order.purpose, index),
                source="rollout" if order.purpose == "evaluation" else order.purpose,
                policy_versions=() if order.version is None else (order.version,),
                context_length=order.context_length,
            )
            yield Assignment(meta, beta=order.beta, noise=self.config.noise if expert else 0.0, label=expert)

    def _count(self, end: EpisodeEnd) -> None:
        task = self.task.spec.name
        self._episodes += 1
        self.totals.add("longview_invalid_episodes_total", end.outcome == "invalid", task=task)
        self.totals.add("longview_refused_actions_total", end.refusal is not None, task=task)
        if time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._send()

    def _settle(self, order: Order, end: EpisodeEnd, outcomes: Counter[str]) -> None:
        if order.purpose == "evaluation" or (end.receipt is not None and end.receipt.result()):
            outcomes[end.outcome] += 1
            labels = {"task": self.task.spec.name, "source": order.purpose, "outcome": end.outcome}
            self.totals.add("longview_episodes_total", 1, **labels)

    def _send(self) -> None:
        now, sent = replace(self._clock), self._sent
        spec, steps = self.task.spec, now.steps - sent.steps
        self.totals.add("longview_env_steps_total", steps, task=spec.name)
        self.totals.add("longview_simulated_seconds_total", steps / spec.control_hz, task=spec.name)
        for part in ("simulator", "policy", "store", "waiting"):
            spent = getattr(now, part) - getattr(sent, part)
            self.totals.add("longview_actor_seconds_total", spent, part=part)
        if self.store is not None:
            queue = self.store.queue()
            self.totals.set("longview_store_queue_depth", queue.chunks)
            self.totals.add("longview_store_backpressure_seconds_total", queue.waited_seconds - self._waited)
            self._waited = queue.waited_seconds
        self.report(encode_report("actor", self.name, self.incarnation, self.totals))
        self._sent, self._reported_at = now, time.monotonic()
