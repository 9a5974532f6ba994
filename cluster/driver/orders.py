"""Decides which orders the actors get, and in which sequence. Knows nothing of Ray.

First come the demonstrations. Then every version that the learner publishes gets a round of evaluation, which
is each context length in turn with that one version, and beside it a batch of collected episodes. After the
last version comes the final evaluation alone.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from longview.actors.worker import Order, Result
from longview.cluster.run.config import RunConfig
from longview.monitoring.success import Evaluation
from longview.replay.episode import TaskSpec


class Orders:
    """Orders of a run. Each order taken is later either finished or given back."""

    def __init__(self, config: RunConfig, spec: TaskSpec, *, purpose: str, collected: int) -> None:
        """
        Args:
            config: the run's config.
            spec: spec of the run's task.
            purpose: purpose of collected episodes: `correction` where an expert can label them, else
                `rollout`.
            collected: index of the next collected episode: one after those of earlier launches of the run.
        """
        self._config = config
        self._lengths = config.context_lengths(spec)
        self._purpose = purpose
        self._next_collected = collected
        self._batch = 2 * config.actors.simulators
        self._waiting: dict[str, deque[Order]] = {"demo": deque(), "evaluation": deque(), "collect": deque()}
        self._given: dict[str, int] = dict.fromkeys(self._waiting, 0)
        self._concluded = False
        self.evaluations: dict[tuple[int, int], Evaluation] = {}
        """Evaluations of the newest round, by version and context length."""

    def demonstrate(self, missing: Iterable[int]) -> None:
        """Order the demonstrations with these indices."""
        share = max(1, math.ceil(len(missing := list(missing)) / self._config.actors.count))
        for first, count in _runs(missing, min(share, self._batch)):
            self._waiting["demo"].append(Order("demo", first, count, beta=1.0))

    def published(self, version: int) -> None:
        """Order evaluation of and collection with a new version, each only if that of an earlier version is
        done."""
        if self._config.evaluation.episodes and not self._open("evaluation"):
            self._evaluate(version, self._lengths, self._config.evaluation.episodes)
        if self._config.actors.episodes_per_version and not self._open("collect"):
            count = self._config.actors.episodes_per_version
            # Each version collects at the next context length in turn.
            length = self._lengths[self._next_collected // count % len(self._lengths)]
            indices = range(self._next_collected, self._next_collected + count)
            self._next_collected += count
            for first, size in _runs(indices, self._batch):
                self._waiting["collect"].append(
                    Order(self._purpose, first, size, length, self._beta(version), version)
                )

    def conclude(self, version: int, done: Collection[int] = ()) -> None:
        """Replace all waiting orders by the final evaluation.

        Args:
            version: the last version.
            done: context lengths whose final evaluation an earlier launch has done.
        """
        self._concluded = True
        for queue in self._waiting.values():
            queue.clear()
        lengths = [length for length in self._lengths if length not in done]
        self._evaluate(version, lengths, self._config.evaluation.final_episodes)

    def take(self, newest: int | None) -> Order | None:
        """Take the next order for an idle actor; None if none waits. Collecting uses the newest version."""
        kinds = [kind for kind, queue in self._waiting.items() if queue]
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: self._given[kind])
        self._given[kind] += 1
        order = self._waiting[kind].popleft()
        if kind == "collect" and newest is not None:
            order = replace(order, version=newest, beta=self._beta(newest))
        return order

    def give_back(self, order: Order) -> None:
        """An actor died or failed over it: it is the next to be given again."""
        self._given[_kind(order)] -= 1
        if not self._concluded or (order.version, order.context_length) in self.evaluations:
            self._waiting[_kind(order)].appendleft(order)

    def finish(self, order: Order, result: Result) -> Evaluation | None:
        """Take in an order's result; returns the evaluation that the order completed, if any."""
        self._given[_kind(order)] -= 1
        if order.purpose != "evaluation" or order.version is None:
            return None
        key = order.version, order.context_length
        if key not in self.evaluations:  # `conclude` has replaced its round
            return None
        self.evaluations[key] = evaluation = self.evaluations[key].plus(result.outcomes, result.steps)
        return evaluation if evaluation.finished else None

    @property
    def idle(self) -> bool:
        """Whether all orders are finished."""
        return not any(self._open(kind) for kind in self._waiting)

    def _open(self, kind: str) -> int:
        return len(self._waiting[kind]) + self._given[kind]

    def _beta(self, version: int) -> float:
        if self._purpose != "correction":
            return 0.0
        return max(0.0, 1.0 - version / (self._config.actors.beta_until * self._config.learner.steps))

    def _evaluate(self, version: int, lengths: Sequence[int], episodes: int) -> None:
        self.evaluations = {(version, length): Evaluation(version, length, episodes) for length in lengths}
        self._waiting["evaluation"].extend(
            Order("evaluation", first, count, length, version=version)
            for length in lengths
            for first, count in _runs(range(episodes), self._batch)
        )


def _kind(order: Order) -> str:
    return order.purpose if order.purpose in ("demo", "evaluation") else "collect"


def _runs(indices: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Split ascending indices into consecutive runs of at most `longest`, each as (first, count)."""
    first = count = 0
    for index in indices:
        if count and index == first + count and count < longest:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
