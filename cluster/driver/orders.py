"""Decides which orders the actors get, and in which sequence. Knows nothing of Ray.

First come the demonstrations. Then every version that the learner publishes gets a round of evaluation, which
is each context length in turn with that one version. Meanwhile a share of the actors collects. After the last
version comes the final evaluation alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from longview.actors.worker import Order, Result
from longview.cluster.driver.collection import Collection, Hold
from longview.cluster.run.config import RunConfig
from longview.monitoring.success import Evaluation
from longview.replay.episode import TaskSpec


class Orders:
    """Orders of a run. Each order taken is later either finished or given back."""

    def __init__(self, config: RunConfig, spec: TaskSpec, collection: Collection) -> None:
        """
        Args:
            config: the run's config.
            spec: spec of the run's task.
            collection: orders the episodes that are collected with the policy.
        """
        self._config = config
        self._lengths = config.context_lengths(spec)
        self._collection = collection
        self._waiting: dict[str, deque[Order]] = {"demo": deque(), "evaluation": deque()}
        self._given: dict[str, int] = {"demo": 0, "evaluation": 0, "collect": 0}
        self._shared = {"evaluation": 0, "collect": 0}
        """Episodes given while there were both to evaluate and to collect."""
        self._concluded = False
        self.actors = config.actors.count
        """Number of actors, which `longview scale` may change."""
        self.evaluations: dict[tuple[int, int], Evaluation] = {}
        """Evaluations of the newest round, by version and context length."""

    def demonstrate(self, missing: Iterable[int]) -> None:
        """Order the demonstrations with these indices."""
        self._waiting["demo"].extend(Order("demo", first, count) for first, count in _runs(missing))

    def published(self, version: int) -> None:
        """Order the evaluation of a new version, if that of an earlier version is done."""
        if self._config.evaluation.episodes and not self._open("evaluation"):
            self._evaluate(version, self._lengths, self._config.evaluation.episodes, {})

    def conclude(self, version: int, earlier: Mapping[int, Evaluation] | None = None) -> None:
        """Replace all waiting orders by the final evaluation.

        Args:
            version: the last version.
            earlier: evaluations of this version by earlier launches, by context length. Only the episodes
                that they lack are ordered.
        """
        self._concluded = True
        for queue in self._waiting.values():
            queue.clear()
        self._evaluate(version, self._lengths, self._config.evaluation.final_episodes, earlier or {})

    def take(self, newest: int | None, trained: int = 0) -> Order | None:
        """Take the next order for an idle actor; None if there is none.

        Args:
            newest: the newest policy version, which collects.
            trained: training steps done, as last reported.
        """
        if self._waiting["demo"]:
            return self._cut("demo")
        evaluates = bool(self._waiting["evaluation"])
        due = self._shared["collect"] <= self._config.collect.share * sum(self._shared.values())
        collects = not self._concluded and (due or not evaluates)
        if collects and (order := self._collection.take(newest, trained)) is not None:
            self._given["collect"] += 1
            self._shared["collect"] += order.count * evaluates
            return order
        if not evaluates:
            return None
        order = self._cut("evaluation")
        self._shared["evaluation"] += order.count * (not collects)  # not while there is nothing to collect
        return order

    def give_back(self, order: Order) -> None:
        """An actor died or failed over it: it is the next to be given again."""
        kind = _kind(order)
        self._given[kind] -= 1
        if kind == "collect":
            self._collection.give_back(order)
        elif not self._concluded or (order.version, order.context_length) in self.evaluations:
            self._waiting[kind].appendleft(order)

    def finish(self, order: Order, result: Result) -> Evaluation | None:
        """Take in an order's result; returns the evaluation that the order completed, if any."""
        self._given[_kind(order)] -= 1
        if _kind(order) == "collect":
            self._collection.finish(order, result)
        if order.purpose != "evaluation" or order.version is None:
            return None
        key = order.version, order.context_length
        if key not in self.evaluations:  # `conclude` has replaced its round
            return None
        self.evaluations[key] = evaluation = self.evaluations[key].plus(
            result.outcomes, result.steps, result.best_rewards, result.endings
        )
        return evaluation if evaluation.finished else None

    @property
    def held(self) -> Hold | None:
        """Why actors have nothing to collect; None if they have, or nothing is collected."""
        return None if self._concluded else self._collection.held

    @property
    def idle(self) -> bool:
        """Whether all orders are finished."""
        return not any(self._open(kind) for kind in self._waiting)

    def _open(self, kind: str) -> int:
        return len(self._waiting.get(kind, ())) + self._given[kind]

    def _evaluate(
        self, version: int, lengths: Sequence[int], episodes: int, earlier: Mapping[int, Evaluation]
    ) -> None:
        self.evaluations = {}
        for length in lengths:
            begun = replace(earlier.get(length, Evaluation(version, length, 0)), wanted=episodes)
            if not begun.finished:
                done = begun.rolled_out
                self.evaluations[version, length] = begun
                self._waiting["evaluation"].append(
                    Order(
                        "evaluation",
                        done,
                        episodes - done,
                        length,
                        version=version,
                        delay=self._config.evaluation.delay,
                    )
                )

    def _cut(self, kind: str) -> Order:
        """Take episodes off the first waiting order: fewer when few are left, so that all actors work to the
        end."""
        left = sum(order.count for order in self._waiting[kind])
        order = self._waiting[kind].popleft()
        most = 2 * self._config.actors.simulators
        count = min(order.count, most, max(1, left // (2 * self.actors)))
        if count < order.count:
            rest = replace(order, first=order.first + count, count=order.count - count)
            self._waiting[kind].appendleft(rest)
        self._given[kind] += 1
        return replace(order, count=count)


def _kind(order: Order) -> str:
    return order.purpose if order.purpose in ("demo", "evaluation") else "collect"


def _runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Join ascending indices into runs of consecutive ones, each as (first, count)."""
    for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        (_, first), *rest = run
        yield first, 1 + len(rest)
