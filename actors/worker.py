"""The work of an actor: it rolls out the episodes of an order, stores them, and reports running totals."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from longview.actors.config import ActorsConfig, CollectConfig, History
from longview.actors.control import Control
from longview.actors.donors import Donor
from longview.actors.rollout import Assignment, Clock, EpisodeEnd, Policy, Recorder, rollout
from longview.actors.task import Task, make_simulator
from longview.monitoring.hub import Totals, encode_report
from longview.replay.episode import EpisodeMeta, episode_id, episode_index
from longview.replay.redis.sender import Queue

log = logging.getLogger(__name__)

PURPOSES = ("demo", "correction", "rollout", "evaluation")
"""Purposes of an order; seeds depend on their places here."""
REPORT_SECONDS = 1.0
"""Least time between two reports while an order is worked on."""


class Store(Protocol):
    """The part of the episode store that an actor uses."""

    def writer(self, meta: EpisodeMeta) -> Recorder:
        """Begin an episode."""

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that are not committed."""

    def queue(self) -> Queue:
        """Return the state of the queue to the store."""


@dataclass(frozen=True)
class Order:
    """Consecutive episodes for one actor. Ids and seeds follow from the indices, so an order done twice adds
    nothing to the store."""

    purpose: str
    """`demo`, `correction` and `rollout` collect into that source; `evaluation` records nothing."""
    first: int
    """Index of the first episode."""
    count: int
    """Number of episodes."""
    context_length: int = 0
    """T_o that the policy acts with; 0 for the expert alone."""
    version: int | None = None
    """Policy version to act with; None for the expert alone."""
    typical_steps: float = 0.0
    """Mean length of a demonstration in steps: the expert takes over before, where a random step decides."""
    delay: int = 0
    """Steps for which a decision is awaited while the robot moves on, as for `rollout`."""


@dataclass(frozen=True)
class Result:
    """Result of an order."""

    outcomes: Mapping[str, int]
    """Episodes by outcome: all of an evaluation, otherwise the ones that are new in the store."""
    steps: int
    """Control steps simulated."""
    best_rewards: float = 0.0
    """Sum of the largest rewards of these episodes, without the invalid ones."""
    expert_steps: int = 0
    """Steps of the expert: those among `steps`, and those of its plans."""
    endings: Mapping[int, str] = field(default_factory=dict)
    """Outcome of each episode that `outcomes` counts, by the episode's index."""
    worn: bool = False
    """Whether the actor has rendered so much that a new process should replace it."""


def episode_seed(run_seed: int, purpose: str, index: int) -> int:
    """Compute the seed of a purpose's episode. Seeds are even for collected episodes and odd for evaluation,
    so no policy is evaluated on a seed that it was trained on. Every context length and version is evaluated
    on the same seeds."""
    stream = np.random.SeedSequence(run_seed, spawn_key=(PURPOSES.index(purpose), index))
    return int(stream.generate_state(1)[0]) // 4 * 2 + (purpose == "evaluation")


@dataclass
class Worker:
    """One actor: M simulators, made once, and running totals since it started."""

    task: Task
    """The task that all simulators simulate."""
    config: ActorsConfig
    """Settings of the actors; M is `config.simulators`."""
    run_seed: int
    """Seed of the run; all seeds of episodes follow from it."""
    name: str
    """Name of the reporter; stays the same when the actor restarts."""
    store: Store | None
    """Store for collected episodes; None where nothing is collected."""
    report: Callable[[bytes], None]
    """Sends a report to the hub."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """What is collected with a policy."""
    history: History = "own"
    """Past frames that a policy is shown in evaluations. `other` is this worker's part; `reversed` the
    policy's."""
    incarnation: int = field(default_factory=time.time_ns)
    """Number of this start of the actor; higher after a restart."""
    totals: Totals = field(default_factory=Totals)
    """Running totals since the start."""

    def __post_init__(self) -> None:
        self.envs = [make_simulator(self.task) for _ in range(self.config.simulators)]
        self._clock, self._sent, self._episodes, self._waited = Clock(), Clock(), 0, 0.0
        self._idle_since = time.perf_counter()
        for name in ("longview_invalid_episodes_total", "longview_refused_actions_total"):
            self.totals.add(name, 0, task=self.task.spec.name)  # so that Prometheus sees the first one
        self._send()

    def rest(self, held: Mapping[str, float]) -> None:
        """Report what the idle actor has waited for.

        Args:
            held: seconds of it by reason, as for `work`.
        """
        self._waited_for(held)
        self._send()

    def work(
        self,
        order: Order,
        policy: Policy | None,
        newest_version: int = 0,
        held: Mapping[str, float] = MappingProxyType({}),
    ) -> Result:
        """Do an order: return once all its episodes are in the store.

        Args:
            order: the order.
            policy: acts, at `order.version`; None for the expert alone.
            newest_version: the newest published version; its distance to the order's is the staleness.
            held: seconds without an order since the last order or `rest`, by reason: a field of `Clock`. What
                they leave of this time counts as waiting.
        """
        if order.version is not None:
            for name in ("longview_staleness_max", "longview_staleness_mean"):
                self.totals.set(name, newest_version - order.version)
        self._waited_for(held)
        donors = self._donors(order, policy)
        before = replace(self._clock)
        endings, best_rewards = dict[int, str](), 0.0
        refusals: list[str] = []
        under_way: deque[EpisodeEnd] = deque()
        for end in rollout(
            self.task,
            self.envs,
            self._assignments(order, donors),
            policy=policy,
            context_length=order.context_length,
            record=self.store.writer if self.store is not None and order.purpose != "evaluation" else None,
            clock=self._clock,
            delay=order.delay,
        ):
            self._count(end)
            best_rewards += end.best_reward * (end.outcome != "invalid")
            if end.refusal is not None:
                refusals.append(end.refusal)
            under_way.append(end)
            while under_way and (under_way[0].receipt is None or under_way[0].receipt.done):
                self._settle(order, under_way.popleft(), endings)
        # An order is done when all its episodes are in the store.
        started = time.perf_counter()
        for end in under_way:
            self._settle(order, end, endings)
        self._clock.store += time.perf_counter() - started
        self._send()
        self._idle_since = time.perf_counter()
        if refusals:
            log.warning("%s: %d actions refused, the first: %s", order, len(refusals), refusals[0])
        worn = bool(self.config.cameras.names) and self._episodes >= self.config.recycle
        steps = self._clock.steps - before.steps
        expert_steps = self._clock.expert_steps - before.expert_steps
        outcomes = Counter(endings.values())
        return Result(outcomes, steps, best_rewards, expert_steps, endings, worn)

    def loaded(self, seconds: float) -> None:
        """Count seconds since the last order that loading a policy took: they were not spent waiting."""
        self._clock.weights += seconds
        self._idle_since += seconds

    def _waited_for(self, held: Mapping[str, float]) -> None:
        """Count the time since the last order or `rest`, some of which has a reason."""
        now = time.perf_counter()
        for part, seconds in held.items():
            setattr(self._clock, part, getattr(self._clock, part) + seconds)
        # The reasons' time is the driver's, and may be longer by the time of a message.
        self._clock.waiting += max(0.0, now - self._idle_since - sum(held.values()))
        self._idle_since = now

    def _donors(self, order: Order, policy: Policy | None) -> dict[int, Donor]:
        """Roll out the episodes whose past an evaluation shows in place of its own, by the index of the
        episode that is shown it: the episode after it, as the same policy acts in it with its own history.

        It follows from the indices, so that an episode ends alike however episodes are shared out.
        """
        if self.history != "other" or order.purpose != "evaluation" or policy is None:
            return {}
        donors = {index: Donor() for index in range(order.first, order.first + order.count)}
        ends = rollout(
            self.task,
            self.envs,
            self._assignments(replace(order, first=order.first + 1), {}),
            policy=policy,
            context_length=order.context_length,
            record=lambda meta: donors[episode_index(meta.id) - 1],
            clock=self._clock,
            delay=order.delay,
        )
        deque(ends, maxlen=0)
        return donors

    def _assignments(self, order: Order, donors: Mapping[int, Donor]) -> Iterator[Assignment]:
        """Yield the episodes of an order that are to be rolled out, each with the donor of its index."""
        control = self._control(order)
        indices = range(order.first, order.first + order.count)
        ids = {index: episode_id(order.purpose, self.task.spec.name, index) for index in indices}
        wanted = set(ids.values())
        if order.purpose != "evaluation" and self.store is not None:
            # An earlier attempt at this order may have stored some of its episodes.
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
            yield Assignment(
                meta,
                control,
                # An evaluation of the expert shows it as it is.
                noise=0.0 if order.purpose == "evaluation" else self.config.noise,
                collect=self.collect,
                typical_steps=order.typical_steps,
                donor=donors.get(index),
            )

    def _control(self, order: Order) -> Control:
        """Return who acts in the episodes of an order.

        Raises:
            ValueError: corrections are ordered, and `collect.kind` does not say how they are made.
        """
        if order.version is None:
            return "expert"
        if order.purpose != "correction":
            return "policy"
        match self.collect.kind:
            case "takeover" | "labels":
                return self.collect.kind
        raise ValueError(f"collect.kind={self.collect.kind} makes no corrections, which {order} asks for")

    def _count(self, end: EpisodeEnd) -> None:
        task = self.task.spec.name
        self._episodes += 1
        self.totals.add("longview_invalid_episodes_total", end.outcome == "invalid", task=task)
        self.totals.add("longview_refused_actions_total", end.refusal is not None, task=task)
        if time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._send()

    def _settle(self, order: Order, end: EpisodeEnd, endings: dict[int, str]) -> None:
        if order.purpose == "evaluation" or (end.receipt is not None and end.receipt.result()):
            endings[episode_index(end.meta.id)] = end.outcome
            labels = {"task": self.task.spec.name, "source": order.purpose, "outcome": end.outcome}
            self.totals.add("longview_episodes_total", 1, **labels)

    def _send(self) -> None:
        now, sent = replace(self._clock), self._sent
        spec, steps = self.task.spec, now.steps - sent.steps
        self.totals.add("longview_env_steps_total", steps, task=spec.name)
        expert_steps = now.expert_steps - sent.expert_steps
        self.totals.add("longview_expert_steps_total", expert_steps, task=spec.name)
        self.totals.add("longview_simulated_seconds_total", steps / spec.control_hz, task=spec.name)
        for part in ("simulator", "policy", "expert", "store", "weights", "limited", "ended", "waiting"):
            spent = getattr(now, part) - getattr(sent, part)
            self.totals.add("longview_actor_seconds_total", spent, part=part)
        if self.store is not None:
            queue = self.store.queue()
            self.totals.set("longview_store_queue_depth", queue.chunks)
            self.totals.add("longview_store_backpressure_seconds_total", queue.waited_seconds - self._waited)
            self._waited = queue.waited_seconds
        self.report(encode_report("actor", self.name, self.incarnation, self.totals))
        self._sent, self._reported_at = now, time.monotonic()
