"""How fast the loop runs: simulators, actors, learner, and the way of new weights to the actors."""

# ruff: noqa: E402
# Ray reads its authentication mode when it is imported.
from longview.cluster.roles.auth import choose_ray_auth

choose_ray_auth(None)

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds
from numpy.typing import NDArray
from training import training

from longview.actors.config import ActorsConfig, CollectConfig, EvaluationConfig
from longview.actors.rollout import Policy
from longview.actors.task import Environment, Task, load_task
from longview.actors.worker import Order, Worker
from longview.cluster.driver.collection import Collection
from longview.cluster.driver.dispatch import Dispatcher
from longview.cluster.driver.launch import TICK_SECONDS, ray_cluster
from longview.cluster.driver.orders import Orders
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.ray import ALWAYS_BACK, Handle, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import RunConfig
from longview.cluster.run.services import redis_server
from longview.learner import curriculum
from longview.learner.config import CurriculumConfig, LearnerConfig, policy_config
from longview.learner.policy import Policy as TrainedPolicy
from longview.learner.policy import policy_to_bytes
from longview.learner.session import PolicySession
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.episode import Episode, TaskSpec, episode_id
from longview.replay.store import EpisodeStore, StoreAddress

SIMULATORS = 8
"""M, where an actor's own overhead is measured."""
EXECUTE = policy_config().execute
RETURN_POINT = load_task("return_point")
LONGEST = RETURN_POINT.spec.context_lengths[-1]
EVALUATED = 200
"""Episodes per trained policy."""

TARGETS = {
    "actor_overhead": "<= 150",
    "success_progressive_minus_fixed": ">= -5",
    "actor_over_bare_env": ">= 0.8",
    "progressive_over_fixed": "<= 0.65",
}


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    where = machine(torch_threads=torch.get_num_threads(), quick=options.quick)
    with TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as url:
        processes = across_processes(url, Path(folder) / "checkpoints", options.quick)
        overhead = actor_overhead(url, options.quick)
        lift = actor_and_bare_lift(url, options.quick)
        episodes = demonstrations(url)
        learner = learner_rate(episodes, options.quick)
        training = progressive_and_fixed(episodes, options.quick)
    ratios = {
        "actor_over_bare_env": ratio(lift[0].samples, lift[1].samples),
        "progressive_over_fixed": ratio(training[0].samples, training[1].samples),
    }
    rows = [*processes, *overhead, *lift, *learner, *training]
    finish(results(where, rows, ratios), TARGETS, options.json)


# An actor against its bare simulators, in this process


def actor_overhead(url: str, quick: bool) -> list[Row]:
    """Measure what an actor adds to a step where simulator and policy cost next to nothing."""
    task, hub = load_task("counting"), Hub()
    store = open_store(url, task.spec)
    worker = make_worker(task, SIMULATORS, store, hub)
    samples = actor_and_bare(
        worker, Still(), store, context_length=8, episodes=400, rounds=5 if quick else 15
    )
    case = f"counting, M {SIMULATORS}"
    added = [1e6 * (actor - bare) for actor, bare in zip(samples["actor"], samples["bare"], strict=True)]
    return [Row("actor_overhead", case, "us/step", added), *spent(hub, case)]


def actor_and_bare_lift(url: str, quick: bool) -> list[Row]:
    """Measure the steps per second of an actor with a diffusion policy, and of its simulators alone."""
    task, hub, simulators = load_task("lift"), Hub(), ActorsConfig().simulators
    store = open_store(url, task.spec)
    worker = make_worker(task, simulators, store, hub)
    policy = PolicySession(untrained(task.spec), simulators)
    longest = task.spec.context_lengths[-1]
    rounds = 3 if quick else 7
    samples = actor_and_bare(worker, policy, store, longest, episodes=simulators, rounds=rounds)
    case = f"lift, M {simulators}, T_o {longest}"
    rates = {side: [1 / step for step in steps] for side, steps in samples.items()}
    return [
        Row("actor_rate", case, "steps/s", rates["actor"]),
        Row("bare_rate", case, "steps/s", rates["bare"]),
        *spent(hub, case),
    ]


def actor_and_bare(
    worker: Worker, policy: Policy, store: EpisodeStore, context_length: int, episodes: int, rounds: int
) -> dict[str, list[float]]:
    """Measure the seconds per step of an actor that fills the store, and of its simulators alone. The latter
    get the same seeds and actions, so that both do the same physics."""
    task, first = worker.task.spec.name, count(0, episodes)
    recorded: list[Episode] = []

    def actor() -> float:
        order = Order("rollout", next(first), episodes, context_length, version=1)
        started = time.perf_counter()
        steps = worker.work(order, policy).steps
        elapsed = time.perf_counter() - started
        indices = range(order.first, order.first + episodes)
        recorded[:] = [store.read(episode_id(order.purpose, task, index)) for index in indices]
        return elapsed / steps

    def bare() -> float:
        return seconds(lambda: replay(worker.envs, recorded)) / sum(episode.length for episode in recorded)

    actor()  # warms up, and records what to replay
    return interleaved({"actor": actor, "bare": bare}, rounds)


def replay(envs: Sequence[Environment], episodes: Sequence[Episode]) -> None:
    """Step the simulators in lockstep through recorded episodes."""
    for first in range(0, len(episodes), len(envs)):
        lanes = list(zip(envs, episodes[first : first + len(envs)], strict=False))
        for env, episode in lanes:
            env.reset(seed=episode.meta.seed)
        for step in range(max(episode.length for _, episode in lanes)):
            for env, episode in lanes:
                if step < episode.length:
                    env.step(episode.arrays["action"][step])


class Still:
    """A policy whose actions are always zero."""

    execute = EXECUTE

    def act(self, slots: Sequence[int], *_: Any) -> NDArray[np.float32]:
        return np.zeros((len(slots), EXECUTE, 1), np.float32)


def spent(hub: Hub, case: str) -> list[Row]:
    """Read from the actor's reports how much time each part of a step took, on average."""
    totals = hub.snapshot()
    steps = totals.total("longview_env_steps_total")
    return [
        Row("actor_time", f"{case}: {part}", "us/step", [1e6 * total / steps])
        for part, total in totals.by("longview_actor_seconds_total", "part").items()
    ]


# Learner


def demonstrations(url: str) -> EpisodeStore:
    """Fill a store with the task's N demonstrations, which soon lie decoded in its memory."""
    store = open_store(url, RETURN_POINT.spec)
    worker = make_worker(RETURN_POINT, SIMULATORS, store, Hub())
    worker.work(Order("demo", 0, RETURN_POINT.spec.demonstrations), None)
    return store


def learner_rate(episodes: EpisodeStore, quick: bool) -> list[Row]:
    """Measure samples per second by context length, in one training that alternates between lengths."""
    steps = (6 if quick else 25) * LONGEST
    seed = 2  # with which even a quick run has some steps of each
    config = replace(
        LearnerConfig(),
        curriculum=CurriculumConfig("sprinkle", full=0.0),
        steps=steps,
        warmup=1,
        report_every=1,
    )
    times: list[float] = []
    training(RETURN_POINT, episodes, config, seed, report=lambda _: times.append(time.perf_counter()))
    rates: dict[int, list[float]] = {length: [] for length in (1, 8, LONGEST)}
    for step, elapsed in enumerate(np.diff(times), start=1):
        length = curriculum.context_length(config.curriculum, seed, step, steps, LONGEST)
        if length in rates:
            rates[length].append(config.batch_size / float(elapsed))
    return [Row("learner_rate", f"T_o {length}", "samples/s", found) for length, found in rates.items()]


def progressive_and_fixed(episodes: EpisodeStore, quick: bool) -> list[Row]:
    """Compare trainings by the default curriculum and by the longest context throughout, with equal steps.

    The policy is large enough that most of the time goes into the context, as it does with cameras. In a
    quick run the fixed costs of a training weigh more, so the two come closer.
    """
    default = LearnerConfig(policy_config(token_size=384, future_actions=14), steps=1000, batch_size=128)
    if quick:
        default = replace(default, steps=40, warmup=10)
    configs = {
        "progressive": default,
        "fixed": replace(default, curriculum=replace(default.curriculum, kind="fixed")),
    }
    policies: dict[str, list[TrainedPolicy]] = {kind: [] for kind in configs}

    def trained(kind: str) -> float:
        made = policies[kind]
        return seconds(lambda: made.append(training(RETURN_POINT, episodes, configs[kind], seed=len(made))))

    sides = {kind: lambda kind=kind: trained(kind) for kind in configs}
    times = interleaved(sides, rounds=3)
    case = f"return_point, T_o {LONGEST}, {default.steps} steps"
    rows = [Row(f"training_{kind}", case, "s", samples) for kind, samples in times.items()]
    return rows if quick else rows + successes(policies, case)


def successes(policies: dict[str, list[TrainedPolicy]], case: str) -> list[Row]:
    """Measure the success of trained policies at the longest context, and the lead of the first kind."""
    rates = {kind: [100 * success(policy) for policy in made] for kind, made in policies.items()}
    ahead = [a - b for a, b in zip(*rates.values(), strict=True)]
    rows = [Row(f"success_{kind}", case, "%", samples) for kind, samples in rates.items()]
    return [*rows, Row(f"success_{'_minus_'.join(rates)}", case, "points", ahead)]


def success(policy: TrainedPolicy) -> float:
    """Measure a policy's success rate at its longest context."""
    worker = make_worker(RETURN_POINT, 50, None, Hub())
    order = Order("evaluation", 0, EVALUATED, policy.horizon.context, version=0)
    return worker.work(order, PolicySession(policy, 50)).outcomes.get("success", 0) / EVALUATED


# Actors in processes of their own, under Ray


def across_processes(url: str, checkpoints: Path, quick: bool) -> list[Row]:
    """Measure a run's own roles: the way of new weights, and the rates of one and of two actors."""
    config = RunConfig(evaluation=EvaluationConfig(episodes=0))
    weights = policy_to_bytes(untrained(RETURN_POINT.spec))
    open_store(url, RETURN_POINT.spec).close()
    with ray_cluster(config, None):
        hub = start(MetricsHub, "benchmark", "127.0.0.1", 0, name=HUB, **ALWAYS_BACK)
        board = start(WeightBoard, checkpoints, **ALWAYS_BACK)
        store = StoreAddress(url, RETURN_POINT.spec.name)
        actors = [start(TimedActor, config, f"actor-{index}", store, num_cpus=1) for index in range(2)]
        ray.get(hub.__ray_ready__.remote())
        return [
            *publish_to_use(config, board, actors, weights, quick),
            *environment_rate(config, actors, weights, quick),
        ]


class TimedActor(RolloutActor):
    """An actor that also tells when it first acted with its present weights."""

    def _load(self, version: int, weights: bytes) -> None:
        super()._load(version, weights)
        self._session = FirstAction(self._session)

    def first_action(self) -> tuple[int | None, float]:
        """Return the present version, and the monotonic time of the first decision with it."""
        return (None, 0.0) if self._session is None else (self._version, self._session.at)


class FirstAction:
    """A policy that remembers when it first decided."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.execute = policy.execute
        self.at = 0.0

    def act(self, *arguments: Any) -> NDArray[np.float32]:
        actions = self._policy.act(*arguments)
        self.at = self.at or time.monotonic()
        return actions


def publish_to_use(
    config: RunConfig, board: Handle, actors: Sequence[Handle], weights: bytes, quick: bool
) -> list[Row]:
    """Measure the milliseconds from the publication of a version to the first decision with it. Idle actors
    wait for it; busy ones finish their order first."""
    rows = []
    for case in ("idle", "busy"):
        driver = Driver(config, board, actors)
        samples = [driver.publish(weights, busy=case == "busy") for _ in range(5 if quick else 14)]
        # The first ones are the first to import torch in their actors.
        rows.append(Row("publish_to_use", f"return_point, {case} actors", "ms", samples[len(actors) :]))
    return rows


class Driver:
    """The part of a run's driver that brings new weights to the actors, while they collect."""

    def __init__(self, config: RunConfig, board: Handle, actors: Sequence[Handle]) -> None:
        """
        Args:
            config: the run's config.
            board: the weight board.
            actors: the rollout actors.
        """
        self._limit = config.learner.publish_every
        collect = CollectConfig("rollout", steps_per_training_step=1e9, max_staleness=self._limit)
        config = replace(config, collect=collect)
        self._board, self._actors, self._rng = board, actors, np.random.default_rng(0)
        self._dispatcher = Dispatcher(
            Orders(config, RETURN_POINT.spec, Collection(config, RETURN_POINT.spec))
        )
        for index, actor in enumerate(actors):
            self._dispatcher.add(f"actor-{index}", actor)
        self._held = HeldWeights(board)
        self._held.refresh(keep=set())
        self._version = self._held.newest or 0
        self._given: set[int] = set()

    def publish(self, weights: bytes, busy: bool) -> float:
        """Publish a new version at a random moment, as a learner does, and measure the milliseconds until an
        actor acts with it.

        Args:
            weights: the version's weights.
            busy: keep the actors at work with the version before until then.
        """
        self._version += 1
        published: list[float] = []

        def publish() -> None:
            published.append(time.monotonic())
            self._board.publish.remote(self._version, weights)

        delay = self._rng.uniform(1.0, 2.0) if busy else self._rng.uniform(0, TICK_SECONDS)
        threading.Timer(delay, publish).start()
        # Idle actors wait because the version before is one step too old.
        trained = self._version + (0 if busy else self._limit)
        while self._version not in self._given:
            self._tick(trained)
        while self._dispatcher.versions:
            self._tick(self._version + self._limit + 1)
        acted = ray.get([actor.first_action.remote() for actor in self._actors])
        return 1000 * (min(float(at) for held, at in acted if held == self._version) - published[0])

    def _tick(self, trained: int) -> None:
        self._dispatcher.dispatch(self._held.newest, trained, self._held.of)
        self._given |= self._dispatcher.versions
        for _ in self._dispatcher.collect(TICK_SECONDS):
            pass
        self._held.refresh(keep=self._dispatcher.versions)


def environment_rate(config: RunConfig, actors: Sequence[Handle], weights: bytes, quick: bool) -> list[Row]:
    """Measure the environment steps per second of one actor alone, and of all together."""
    reference, first = ray.put(weights), count(1000, 2 * config.actors.simulators)

    def steps_per_second(busy: Sequence[Handle]) -> float:
        orders = [
            Order("rollout", next(first), 2 * config.actors.simulators, LONGEST, version=0) for _ in busy
        ]
        started = time.perf_counter()
        done = [
            actor.work.remote(order, 0, [reference], 0.0, {})
            for actor, order in zip(busy, orders, strict=True)
        ]
        steps = sum(int(result.steps) for result in ray.get(done))
        return steps / (time.perf_counter() - started)

    steps_per_second(actors)
    sides = {
        "1 actor": lambda: steps_per_second(actors[:1]),
        f"{len(actors)} actors, sum": lambda: steps_per_second(actors),
    }
    samples = interleaved(sides, rounds=3 if quick else 9)
    case = f"return_point, M {config.actors.simulators}, T_o {LONGEST}"
    return [Row("env_steps", f"{case}, {side}", "steps/s", rates) for side, rates in samples.items()]


# Parts


def open_store(url: str, spec: TaskSpec) -> EpisodeStore:
    """Open a store in a namespace of the task's own."""
    store = EpisodeStore.connect(url, spec.name, StoreConfig())
    store.register(spec)
    return store


def make_worker(task: Task, simulators: int, store: EpisodeStore | None, hub: Hub) -> Worker:
    return Worker(task, ActorsConfig(simulators=simulators), 0, "actor-0", store, hub.report)


def untrained(spec: TaskSpec) -> TrainedPolicy:
    """The default policy; how long it takes to decide does not depend on its weights."""
    return policy_config().make(spec)


if __name__ == "__main__":
    main()
