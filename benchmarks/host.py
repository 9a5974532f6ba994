"""Measure what a learner does beside its steps: batches from the store, snapshots, exchange of ranks."""

# ruff: noqa: E402
# Ray reads its authentication mode when it is imported.
from longview.cluster.roles.auth import choose_ray_auth

choose_ray_auth(None)

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zstandard
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds
from policies import SPECS, drawer
from redis import Redis
from store import CHUNK, CHUNKS, PICTURES, cpu_seconds, open_store, recording, store_spec, write

from longview.cluster.driver.launch import ray_cluster
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.hub import MetricsHub
from longview.cluster.roles.ray import ALWAYS_BACK, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.run.config import RunConfig
from longview.cluster.run.services import redis_server
from longview.learner import ranks
from longview.learner.config import CurriculumConfig, LearnerConfig, policy_config
from longview.learner.flat import flatten
from longview.learner.normalize import measure
from longview.learner.policy import policy_to_bytes
from longview.learner.recipe import Recipe
from longview.learner.snapshots import writing
from longview.learner.train import prepared, train
from longview.replay.episode import Episode, Segment
from longview.replay.redis import keys
from longview.replay.store import EpisodeStore

CONTEXT = 80
"""Context length T_o of the batches."""
EPISODES = 16
"""Stored episodes that batches are drawn from."""
HEADER = 16
"""Bytes before a chunk's compressed body."""
CORES = len(os.sched_getaffinity(0))
TARGETS = {
    "prepared_over_decode": ">= 0.5",
    "prepared_over_decode_without_redis": ">= 0.7",
    "training_held_up": "<= 500",
    "driver_held_up": "<= 500",
}


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    where = machine(torch_threads=1, quick=options.quick)
    rows, ratios = batches(options.quick)
    exchanged, shares = ranks_together(options.quick)
    rows += [*exchanged, *held_up(options.quick)]
    finish(results(where, rows, ratios | shares), TARGETS, options.json)


# Batches


def batches(quick: bool) -> tuple[list[Row], dict[str, float]]:
    """Measure windows per second of the prefetcher from a Redis on this machine with nothing cached, and what
    bare decoding of the same chunks on all cores would allow."""
    spec = store_spec("prepared", PICTURES)
    config = LearnerConfig(policy_config(context_length=CONTEXT), curriculum=CurriculumConfig("fixed"))
    steps = range(4 if quick else 24)
    needed: dict[int, set[tuple[str, int]]] = {}
    """Chunks that each training step needs: id and number."""
    with TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as url:
        store, redis = open_store(url, spec, cache_bytes=0), Redis.from_url(url)
        for number in range(EPISODES):
            write(store, spec, number, recording(spec, CHUNKS * CHUNK))

        def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
            rng = np.random.default_rng(step)
            segments = store.sample({"rollout/success": 1.0}, count, before, after, rng)
            needed[step] = {place for segment in segments for place in chunks_of(segment)}
            return segments

        recipe = Recipe(config, spec, seed=0, rank=0, world=1, draw=draw)
        redis_s: list[float] = []

        def prepare() -> None:
            used = cpu_seconds(redis)
            for _ in prepared(recipe, steps, torch.device("cpu")):
                pass
            redis_s.append(cpu_seconds(redis) - used)

        prepare()
        redis_s.clear()
        stored = stored_chunks(store, redis, [place for step in steps for place in sorted(needed[step])])
        sides: Mapping[str, Callable[[], object]] = {"prepared": prepare, "decoded": partial(decode, stored)}
        times = interleaved({side: partial(seconds, call) for side, call in sides.items()}, 3 if quick else 9)
        store.close()
    windows = len(steps) * config.batch_size
    own = [taken - redis / CORES for taken, redis in zip(times["prepared"], redis_s, strict=True)]
    rows = [
        Row("batches", f"two cameras, T_o {CONTEXT}, {side}", "windows/s", [windows / t for t in taken])
        for side, taken in times.items()
    ]
    return rows, {
        "prepared_over_decode": ratio(times["decoded"], times["prepared"]),
        "prepared_over_decode_without_redis": ratio(times["decoded"], own),
    }


def chunks_of(segment: Segment) -> list[tuple[str, int]]:
    """Return the chunks that hold a segment: the episode's id and their numbers."""
    stop = segment.start + len(segment.arrays["action"])
    return [(segment.meta.id, number) for number in range(segment.start // CHUNK, -(-stop // CHUNK))]


def stored_chunks(store: EpisodeStore, redis: Redis, places: list[tuple[str, int]]) -> list[bytes]:
    """Read chunks as they are stored."""
    records, space = {record.meta.id: record for record in store.records()}, store._namespace
    names = {
        place: keys.chunks(space.tag_of(place[0]), place[0], records[place[0]].token, [place[1]])[0]
        for place in set(places)
    }
    values = {place: redis.get(name) for place, name in names.items()}
    return [bytes(values[place]) for place in places]  # type: ignore[arg-type]


def decode(stored: list[bytes]) -> None:
    """Decompress chunks on all cores, and do nothing with them."""
    with ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(
            lambda data: len(zstandard.ZstdDecompressor().decompress(memoryview(data)[HEADER:])), stored
        ):
            pass


# Snapshots


def held_up(quick: bool) -> list[Row]:
    """Measure for how long publishing and saving of the largest policy hold up training and driver."""
    policy = policy_config(size="paper").make(SPECS["images"])
    data, weights = policy_to_bytes(policy), flatten(policy).vector.data
    case, rounds = f"paper, {len(data) / 1e6:.0f} MB", 2 if quick else 5
    vectors = dict.fromkeys(("weights", "exp_avg", "exp_avg_sq"), weights)
    rows = []
    for what, training in (("a publication", {}), ("a checkpoint", vectors)):
        with TemporaryDirectory() as folder:
            config, held = LearnerConfig(keep_checkpoints=1), list[float]()
            with writing(config, data, lambda version, published: None, Path(folder)) as snapshots:
                for step in range(1 + rounds):  # the first snapshot finds fresh memory
                    take = partial(snapshots.take, step, weights, training, not training)
                    held.append(1000 * seconds(take))
                    snapshots.wait()
        rows.append(Row("training_held_up", f"{case}, {what}", "ms", held[1:]))
    return [*rows, Row("driver_held_up", f"{case}, a version", "ms", driver_held_up(data, rounds))]


def driver_held_up(data: bytes, rounds: int) -> list[float]:
    """Return the milliseconds of the longest turn that the driver spends on each new version."""
    with TemporaryDirectory() as folder, ray_cluster(RunConfig(), None):
        start(MetricsHub, "benchmark", "127.0.0.1", 0, name=HUB, **ALWAYS_BACK)
        board = start(WeightBoard, Path(folder), **ALWAYS_BACK)
        held, longest = HeldWeights(board), list[float]()
        for version in range(1, 1 + rounds):
            board.publish.remote(version, np.frombuffer(data, np.uint8))
            turns = list[float]()
            while held.newest != version:
                turns.append(1000 * seconds(lambda: held.refresh(keep=set())))
                time.sleep(0.05)
            longest.append(max(turns))
    return longest


# Ranks


def ranks_together(quick: bool) -> tuple[list[Row], dict[str, float]]:
    """Measure training on one rank, on two ranks that share out the batch, and in two processes that know
    nothing of each other and take half a batch each, which is the most that two ranks could reach."""
    sides = {"one rank": (1, False), "two ranks": (2, True), "two apart": (2, False)}
    calls = {side: partial(rate, *how, steps=20 if quick else 100) for side, how in sides.items()}
    rates = interleaved(calls, 1 if quick else 5)
    rows = [Row("ranks", f"small, state, {side}", "windows/s", found) for side, found in rates.items()]
    return rows, {
        "two_ranks_over_one": ratio(rates["two ranks"], rates["one rank"]),
        "two_apart_over_one": ratio(rates["two apart"], rates["one rank"]),
    }


def rate(processes: int, joined: bool, steps: int) -> float:
    """Return the windows per second of all processes together."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = [pool.submit(trained, rank, processes, joined, steps, folder) for rank in range(processes)]
        return sum(it.result() for it in running)


def trained(rank: int, processes: int, joined: bool, steps: int, folder: str) -> float:
    """Train for some steps in this process, and return its windows per second."""
    torch.set_num_threads(1)
    spec, world = SPECS["state"], processes if joined else 1
    if joined:
        ranks.join(f"file://{folder}/meeting", rank, world, "cpu", timeout_s=300)
    draw = drawer(spec, 200)
    (segment,) = draw(0, 200, 200, 1)
    config = LearnerConfig(
        policy=policy_config(size="small", context_length=CONTEXT), curriculum=CurriculumConfig("fixed"),
        batch_size=64 * world // processes, steps=steps, warmup=1, report_every=steps // 4,
        publish_every=steps, checkpoint_every=steps,
    )  # fmt: skip
    ends: list[float] = []
    """Time at which each step ended."""

    def stop() -> bool:
        ends.append(time.perf_counter())
        return False

    train(
        config, spec, seed=0, draw=draw, statistics=lambda: measure([episode_of(segment)], spec),
        publish=lambda version, data: None, report=lambda progress: None, should_stop=stop,
        checkpoints=Path(folder) / str(rank), rank=rank if joined else 0, world=world,
    )  # fmt: skip
    if joined:
        torch.distributed.destroy_process_group()
    warm = ends[steps // 4 :]  # the first steps meet cold caches
    return config.batch_size / world * (len(warm) - 1) / (warm[-1] - warm[0])


def episode_of(segment: Segment) -> Episode:
    """Return a segment that holds a whole episode as that episode."""
    return Episode(segment.meta, "success", segment.arrays)


if __name__ == "__main__":
    main()
