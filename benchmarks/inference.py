"""What an inference server adds to a decision, and what it saves an actor.

64 clients, threads of two processes, ask one server for 1,000 simulators in rounds. What a round takes longer
than the same batch in one session is the servers' own: Ray's calls, gathering, taking apart.
"""

# ruff: noqa: E402
# Ray reads its authentication mode when it is imported.
from longview.cluster.roles.auth import choose_ray_auth

choose_ray_auth(None)

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds
from numpy.typing import NDArray

from longview.actors.task import load_task
from longview.actors.worker import Order
from longview.cluster.driver.launch import ray_cluster, start_actor, start_servers
from longview.cluster.roles.inference import served, server_of
from longview.cluster.roles.ray import Handle, start
from longview.cluster.run.config import RunConfig, read_config
from longview.learner.policy import policy_to_bytes
from longview.learner.session import PolicySession
from longview.replay.episode import TaskSpec

CLIENTS, PROCESSES, SIMULATORS = 64, 2, 1000
TASK, T_O = load_task("return_point"), 8
ACTED = load_task("lift")
"""Task of the actors, in which simulators and policy both weigh."""

TARGETS = {"overhead": "<= 1"}

Frames = dict[str, NDArray[Any]]


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    where = machine(torch_threads=torch.get_num_threads(), quick=options.quick)
    with ray_cluster(RunConfig(), None):
        rounds = overhead(options.quick)
    with ray_cluster(RunConfig(), None):
        rates, ratios = actors(options.quick)
    finish(results(where, [*rounds, *rates], ratios), TARGETS, options.json)


# Rounds of requests


def overhead(quick: bool) -> list[Row]:
    """Measure what a request costs besides its part of the decision."""
    settings = ["actors={count: 64, simulators: 16}", f"inference={{servers: 1, max_batch: {SIMULATORS}}}"]
    config = read_config(None, settings, task=TASK.spec.name)
    policy = config.learner.policy.make(TASK.spec)
    weights = [ray.put(policy_to_bytes(policy))]
    _servers = start_servers(config, cpus=0, reports=False)  # a server ends with its handle
    names = [f"actor-{index}" for index in range(CLIENTS)]
    shares = [len(share) for share in np.array_split(np.arange(SIMULATORS), CLIENTS)]
    processes = [
        start(Clients, config, names[part::PROCESSES], shares[part::PROCESSES], weights, num_cpus=0)
        for part in range(PROCESSES)
    ]
    alone, latencies = Asking(PolicySession(policy, SIMULATORS), TASK.spec, SIMULATORS), list[float]()

    def through_server() -> float:
        parts = ray.get([process.round.remote() for process in processes])
        latencies.extend(1000 * (end - begun) for part in parts for begun, end in part)
        begun, ends = zip(*(each for part in parts for each in part), strict=True)
        return 1000 * (max(ends) - min(begun))

    sides = {"served": through_server, "local": lambda: 1000 * seconds(alone.decide)}
    for side in sides.values():
        side()
    latencies.clear()
    samples = interleaved(sides, rounds=9 if quick else 40)
    case = f"{TASK.spec.name}, tiny, T_o {T_O}, {CLIENTS} clients, {SIMULATORS} simulators"
    added = [(a - b) / CLIENTS for a, b in zip(samples["served"], samples["local"], strict=True)]
    return [
        Row("round", f"{case}, served", "ms", samples["served"]),
        Row("round", f"{case}, one session", "ms", samples["local"]),
        Row("overhead", case, "ms/request", added),
        Row("answer_p99", case, "ms", [float(np.percentile(latencies, 99))]),
    ]


class Asking:
    """Simulators in the middle of their episodes, whose policy is asked for all of them at once."""

    def __init__(self, policy: Any, spec: TaskSpec, simulators: int) -> None:
        self._policy, self._slots = policy, range(simulators)
        rng, steps = np.random.default_rng(0), policy.execute
        frames: Frames = {
            key: rng.uniform(-1, 1, (steps, *array.shape)).astype(array.dtype)
            for key, array in spec.observation.items()
        }
        self._frames, self._executed = frames, np.zeros((steps, *spec.action.shape), np.float32)
        self._rngs = rng.spawn(simulators)
        first = {key: array[:1] for key, array in frames.items()}
        self._ask(first, self._executed[:0], begin=True)

    def decide(self) -> None:
        self._ask(self._frames, self._executed, begin=False)

    def _ask(self, frames: Frames, executed: NDArray[np.float32], begin: bool) -> None:
        count = len(self._slots)
        self._policy.act(
            self._slots, [frames] * count, [executed] * count, np.full(count, begin), T_O, self._rngs
        )


class Clients:
    """Clients of one process, a thread each."""

    def __init__(
        self, config: RunConfig, names: Sequence[str], shares: Sequence[int], weights: Sequence[Any]
    ) -> None:
        """
        Args:
            config: config with the server.
            names: names of the clients.
            shares: number of simulators of each client.
            weights: a list of one reference to the policy's weights.
        """
        self._clients = [
            Asking(served(str(server_of(name, config)), name, 0, weights), TASK.spec, share)
            for name, share in zip(names, shares, strict=True)
        ]
        self._threads = ThreadPoolExecutor(len(names))
        self._ready = threading.Barrier(len(names))

    def round(self) -> list[tuple[float, float]]:
        """Have all clients ask at once; returns the monotonic times of each request and its answer."""
        return list(self._threads.map(self._one, self._clients))

    def _one(self, client: Asking) -> tuple[float, float]:
        self._ready.wait()
        begun = time.monotonic()
        client.decide()
        return begun, time.monotonic()


# Whole actors


def actors(quick: bool) -> tuple[list[Row], dict[str, float]]:
    """Measure the environment steps per second of two actors, and the memory of one, with and without a
    server."""
    settings = ["actors={count: 2, simulators: 8}", "learner.policy={size: small, execute: 8}"]
    configs = {
        "served": read_config(None, [*settings, "inference.servers=1"], task=ACTED.spec.name),
        "local": read_config(None, settings, task=ACTED.spec.name),
    }
    weights = [ray.put(policy_to_bytes(configs["local"].learner.policy.make(ACTED.spec)))]
    longest, first = ACTED.spec.context_lengths[-1], count(0, 8)
    _servers = start_servers(configs["served"], cpus=0, reports=False)
    pairs = {
        side: [start_actor(config, None, 0, f"actor-{index}") for index in range(2)]
        for side, config in configs.items()
    }

    def rate(pair: Sequence[Handle]) -> float:
        orders = [Order("evaluation", next(first), 8, longest, version=0) for _ in pair]
        started = time.perf_counter()
        work = [
            actor.work.remote(order, 0, weights, 0.0, {}) for actor, order in zip(pair, orders, strict=True)
        ]
        steps = sum(int(result.steps) for result in ray.get(work))
        return steps / (time.perf_counter() - started)

    sides = {side: lambda pair=pair: rate(pair) for side, pair in pairs.items()}
    for side in sides.values():
        side()
    samples = interleaved(sides, rounds=2 if quick else 7)
    case = f"{ACTED.spec.name}, small, T_o {longest}, 2 actors, M 8"
    memory = {
        side: [float(each) for each in ray.get([actor.__ray_call__.remote(private_memory) for actor in pair])]
        for side, pair in pairs.items()
    }
    rows = [Row("env_steps", f"{case}, {side}", "steps/s", rates) for side, rates in samples.items()]
    rows += [Row("actor_memory", f"{case}, {side}", "MiB", sizes) for side, sizes in memory.items()]
    ratios = {
        "served_over_local": ratio(samples["served"], samples["local"]),
        "memory_served_over_local": ratio(memory["served"], memory["local"]),
    }
    return rows, ratios


def private_memory(_: Any) -> float:
    """Return the MiB of this process that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = (line.split() for line in lines if line.startswith("Private_"))
    return sum(int(kilobytes) for _, kilobytes, _ in private) / 1024


if __name__ == "__main__":
    main()
