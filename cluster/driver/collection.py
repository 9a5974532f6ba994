"""Decides which episodes the actors collect with the policy while it is trained, and when they wait."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from longview.actors.worker import Order, Result
from longview.cluster.run.config import RunConfig
from longview.replay.episode import TaskSpec
from longview.replay.limiter import Limiter
from longview.replay.stats import Count

log = logging.getLogger(__name__)

NOTHING = Count()
"""Count of a run that has collected nothing yet."""


class Hold(NamedTuple):
    """Why actors get no order to collect."""

    part: Literal["waiting", "limited", "ended"]
    """Part of an actor's time that this is, as `longview_actor_seconds_total` has it."""
    reason: str
    """The reason in words."""


class Collection:
    """Episodes that a run collects, in orders of as many as an actor has simulators. There are no rounds: an
    actor that asks gets the next order, with the newest weights."""

    def __init__(
        self,
        config: RunConfig,
        spec: TaskSpec,
        *,
        first: int = 0,
        before: Count = NOTHING,
        expert_steps: int = 0,
        sizes: Callable[[], tuple[int, int]] = lambda: (0, 0),
        typical: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """
        Args:
            config: the run's config.
            spec: spec of the run's task.
            first: index of the next episode: one after those of earlier launches.
            before: what earlier launches of the run have collected.
            expert_steps: steps that the expert has made for them, those of its plans included.
            sizes: returns the steps that were ever committed for the learner, and those that are stored.
            typical: returns the mean length of a demonstration in steps.
        """
        self._config, self._settings, self._spec = config, config.collect, spec
        self._lengths = config.context_lengths(spec)
        self._next = first
        self._again: deque[Order] = deque()
        self._made = first // config.actors.simulators
        self._steps, self._under_way = before.steps, 0.0
        self._episodes, self._episodes_under_way = before.episodes, 0
        self.expert_steps = expert_steps
        """Steps that the expert has made, those of its plans included."""
        self._sizes, self._typical = sizes, typical
        self._draws = config.learners * config.learner.segments(spec, config.learners)
        self.limiter = Limiter(
            samples_per_insert=config.replay.samples_per_insert,
            minimum_steps=config.replay.minimum_steps,
            inserts_per_sample=self._settings.steps_per_training_step / self._draws,
        )
        self._said = set[str]()
        """Parts of an actor's time whose first reason the log has."""
        self.held: Hold | None = None
        """Why there was no order when one was last asked for; None if there was, or nothing is collected."""

    def take(self, newest: int | None, trained: int) -> Order | None:
        """Return the next order; None if nothing is collected, or if actors have to wait.

        Args:
            newest: the newest policy version; None before the first.
            trained: training steps done, as last reported.
        """
        self.held = None
        if self._settings.source is None:
            return None
        self.held = self._hold(newest, trained)
        if self.held is not None:
            if self.held.part not in self._said:
                log.info("actors have nothing to collect: %s", self.held.reason)
                self._said.add(self.held.part)
            return None
        assert newest is not None
        order = self._again.popleft() if self._again else self._make()
        self._under_way += order.count * order.typical_steps
        self._episodes_under_way += order.count
        return replace(order, version=newest)

    def give_back(self, order: Order) -> None:
        """Take back an order that its actor could not do; it is the next to be given."""
        self._settle(order)
        self._again.appendleft(order)

    def finish(self, order: Order, result: Result) -> None:
        """Count what an order has brought."""
        self._settle(order)
        self._steps += result.steps
        self._episodes += order.count
        self.expert_steps += result.expert_steps

    def _settle(self, order: Order) -> None:
        """An order is no longer under way."""
        self._under_way -= order.count * order.typical_steps
        self._episodes_under_way -= order.count

    def _hold(self, newest: int | None, trained: int) -> Hold | None:
        if newest is None:
            return Hold("waiting", "the learner has published no version yet")
        given, made = self._settings.expert_steps, self.expert_steps
        if given is not None and made >= given:
            return Hold("ended", f"the expert has made {made} steps, collect.expert_steps is {given}")
        if self._episodes_under_way and self._affordable() <= 0:
            return Hold("ended", f"the expert's last steps of collect.expert_steps {given} are under way")
        behind, limit = trained - newest, self._settings.max_staleness
        if limit is not None and behind > limit:
            reason = f"the newest version is {behind} training steps old, collect.max_staleness is {limit}"
            return Hold("limited", reason)
        # The learner draws ahead, and tells its step only now and then. Its next draw may be any of these.
        unknown = self._config.learner.report_every + self._config.learner.drawn_ahead + 1
        self.limiter.drawn = max(trained, newest) * self._draws
        written, allowed = self._steps + self._under_way, self._settings.steps_per_training_step
        if not self.limiter.holds(written, unknown * self._draws, self._sizes):
            return None
        ahead = f"{written:.0f} steps are collected or under way after {trained} training steps"
        return Hold("limited", f"{ahead}, collect.steps_per_training_step is {allowed:g}")

    def _affordable(self) -> float:
        """Estimate how many more episodes fit into `collect.expert_steps`, those under way taken off.

        Until the first result an episode counts as a whole demonstration of the expert's.
        """
        if self._settings.expert_steps is None:
            return np.inf
        each = self.expert_steps / self._episodes if self._episodes else self._typical()
        left = self._settings.expert_steps - self.expert_steps
        return left / max(1.0, each) - self._episodes_under_way

    def _make(self) -> Order:
        """Make the order of the next episodes: as many as an actor has simulators, or as the expert's steps
        still suffice for."""
        source, first = self._settings.source, self._next
        assert source is not None
        count = int(max(1, min(self._config.actors.simulators, self._affordable())))
        if weights := self._settings.context_lengths:
            share = np.array(list(weights.values())) / sum(weights.values())
            drawn = np.random.default_rng((self._config.seed, first)).choice(len(share), p=share)
            length = list(weights)[drawn]
        else:
            length = self._lengths[self._made % len(self._lengths)]
        self._next += count
        self._made += 1
        return Order(source, first, count, length, typical_steps=self._typical())
