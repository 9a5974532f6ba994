"""Decides which episodes the actors collect with the policy while it is trained, and when they wait."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from longview.actors.worker import Order, Result
from longview.cluster.run.config import RunConfig
from longview.learner.config import AHEAD
from longview.replay.episode import TaskSpec
from longview.replay.limiter import Limiter
from longview.replay.stats import Count

NOTHING = Count()
"""Count of a run that has collected nothing yet."""


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
        sizes: Callable[[], tuple[int, int]] = lambda: (0, 0),
        typical: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """
        Args:
            config: the run's config.
            spec: spec of the run's task.
            first: index of the next episode: one after those of earlier launches.
            before: what earlier launches of the run have collected.
            sizes: returns the steps that were ever committed for the learner, and those that are stored.
            typical: returns the mean length of a demonstration in steps.
        """
        self._config, self._settings, self._spec = config, config.collect, spec
        self._lengths = config.context_lengths(spec)
        self._next = first
        self._again: deque[Order] = deque()
        self._steps, self._under_way = before.steps, 0.0
        self._expert_steps = before.steps if self._settings.kind == "labels" else before.learnable
        self._sizes, self._typical = sizes, typical
        self._draws = config.learner.batch_size // config.learner.windows(spec, config.learners)
        self.limiter = Limiter(
            samples_per_insert=config.replay.samples_per_insert,
            minimum_steps=config.replay.minimum_steps,
            inserts_per_sample=self._settings.steps_per_training_step / self._draws,
        )
        self.held = ""
        """Reason for which the limiter made actors wait when the last order was asked for; empty if none."""

    def take(self, newest: int | None, trained: int) -> Order | None:
        """Return the next order; None if nothing is collected, or if actors have to wait.

        Args:
            newest: the newest policy version; None before the first.
            trained: training steps done, as last reported.
        """
        self.held = ""
        if self._settings.source is None:
            return None
        self.held = self._reason(newest, trained)
        if self.held:
            return None
        assert newest is not None
        order = self._again.popleft() if self._again else self._make()
        self._under_way += order.count * order.typical_steps
        return replace(order, version=newest)

    def give_back(self, order: Order) -> None:
        """Take back an order that its actor could not do; it is the next to be given."""
        self._under_way -= order.count * order.typical_steps
        self._again.appendleft(order)

    def finish(self, order: Order, result: Result) -> None:
        """Count what an order has brought."""
        self._under_way -= order.count * order.typical_steps
        self._steps += result.steps
        self._expert_steps += result.expert_steps

    def _reason(self, newest: int | None, trained: int) -> str:
        if newest is None:
            return "the learner has published no version yet"
        given = self._settings.expert_steps
        if given is not None and self._expert_steps >= given:
            return f"the expert has made {self._expert_steps} steps, collect.expert_steps is {given}"
        behind, limit = trained - newest, self._settings.max_staleness
        if limit is not None and behind > limit:
            return f"the newest version is {behind} training steps old, collect.max_staleness is {limit}"
        # The learner draws ahead, and tells its step only now and then. Its next draw may be any of these.
        unknown = self._config.learner.report_every + AHEAD + 1
        self.limiter.drawn = max(trained, newest) * self._draws
        return self.limiter.hold(self._steps + self._under_way, unknown * self._draws, *self._sizes())

    def _make(self) -> Order:
        """Make the order of the next episodes."""
        source, count, first = self._settings.source, self._config.actors.simulators, self._next
        assert source is not None
        self._next += count
        if weights := self._settings.context_lengths:
            share = np.array(list(weights.values())) / sum(weights.values())
            drawn = np.random.default_rng((self._config.seed, first)).choice(len(share), p=share)
            length = list(weights)[drawn]
        else:
            length = self._lengths[first // count % len(self._lengths)]
        return Order(source, first, count, length, typical_steps=self._typical())
