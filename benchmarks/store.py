"""Speed of the episode store, compared with bare Redis, TorchRL and other codecs; actors that one Redis
serves.

Comparisons with TorchRL and LZ4 need `pip install torchrl lz4` and are skipped without it.
"""

import importlib
import importlib.util
import multiprocessing
import socket
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import zstandard
from common import Row, arguments, finish, interleaved, machine, ratio, results, seconds
from numpy.typing import NDArray
from redis import Connection, Redis
from rich.console import Console

from longview.actors.config import CamerasConfig
from longview.actors.task import load_task
from longview.cluster.run.services import redis_server
from longview.replay.codec import Record, decode_chunk, encode_chunk
from longview.replay.config import StoreConfig
from longview.replay.episode import (
    BY_EXPERT,
    CONTROLLER,
    SOURCES,
    ArraySpec,
    EpisodeMeta,
    Selection,
    TaskSpec,
    episode_id,
)
from longview.replay.redis import keys
from longview.replay.redis.client import Client, Script
from longview.replay.redis.index import Index
from longview.replay.redis.sink import Sink
from longview.replay.sampling import draw
from longview.replay.store import EpisodeStore

CHUNK, CHUNKS = 64, 4
"""Steps per chunk, and chunks per episode."""
BUDGET = 512 << 20
"""Byte budget of a benchmark's namespace; old episodes are evicted, as in a long run."""
KEPT = 8
"""Episodes that the store and bare Redis keep while they are compared."""
SERVERS = 8
"""Servers to compare on, one after the other; the ratio varies between servers."""
WINDOW = 80
"""Context length T_o of the windows."""
WINDOWS = 8
"""Windows per batch."""
DRAWN = 256
"""Steps per draw from the index alone."""
ACTORS = {"states": 870.0, "pictures": 13.0}
"""Steps per second of an actor of lift: with states only, and with two cameras that a CPU renders."""

TARGETS = {
    "write_over_raw": ">= 0.7",
    "read_over_raw": ">= 0.7",
    "torchrl_over_ours": ">= 1",
    "draw_1e6_over_1e3": "<= 1.2",
}
"""Bounds that the ratios should meet."""

Steps = Sequence[Mapping[str, NDArray[Any]]]
"""Steps of an episode: arrays without time axis, by name."""


def main() -> None:
    options = arguments(__doc__ or "")
    where = machine(quick=options.quick)
    ratios: dict[str, float] = {}
    raw = against_raw(options.quick)
    ratios["write_over_raw"] = ratio(raw["ours in"], raw["raw in"])
    ratios["read_over_raw"] = ratio(raw["ours out"], raw["raw out"])
    with TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as url:
        rows = [Row("bytes", f"pictures, codec none: {side}", "MB/s", rates) for side, rates in raw.items()]
        rows += default_codec(url, STATE, "states", options.quick)
        rows += default_codec(url, PICTURES, "pictures", options.quick)
        rows += codecs(options.quick)
        windows = windows_of(url, options.quick)
        rows += [
            Row("batch", f"{WINDOWS} windows of {WINDOW}: {side}", "s", t) for side, t in windows.items()
        ]
        if "TorchRL, Redis" in windows:
            ratios["torchrl_over_ours"] = ratio(windows["TorchRL, Redis"], windows["ours"])
            ratios["torchrl_over_ours_uncached"] = ratio(windows["TorchRL, Redis"], windows["ours, no cache"])
        drawn = draws(options.quick)
        rows += [
            Row("draw", f"{DRAWN} steps of {case} episodes", "us", times) for case, times in drawn.items()
        ]
        ratios["draw_1e6_over_1e3"] = ratio(drawn["1,000,000"], drawn["1,000"])
        stored = {row.case.partition(",")[0]: row.value for row in rows if row.measure == "stored"}
        rows += saturation(url, stored, options.quick)
    finish(results(where, rows, ratios), TARGETS, options.json)


# Episodes


STATE = {"state": ArraySpec((32,))}
"""Observation of 32 numbers."""
PICTURES = STATE | {name: ArraySpec((84, 84, 3), "uint8") for name in ("front", "wrist")}
"""Observation of 32 numbers and two pictures."""


def store_spec(name: str, observation: Mapping[str, ArraySpec]) -> TaskSpec:
    """Make the spec of a task without a simulator."""
    action = ArraySpec((7,), low=-1.0, high=1.0)
    return TaskSpec(name, observation, action, 20.0, 1000, (1,), demonstrations=1)


def open_store(url: str, spec: TaskSpec, **config: Any) -> EpisodeStore:
    """Open a namespace that is named like the task."""
    settings: dict[str, Any] = {"byte_budget": BUDGET, "refresh_seconds": 0.0}
    store = EpisodeStore.connect(url, spec.name, StoreConfig(**(settings | config)))
    store.register(spec)
    return store


@cache
def lift_steps(length: int) -> dict[str, NDArray[Any]]:
    """Record steps of lift with two cameras and random actions; return the arrays (length, ...) by name."""
    env = load_task("lift", CamerasConfig(("agentview", "robot0_eye_in_hand"), 84)).make()
    env.reset(seed=0)
    rng, steps = np.random.default_rng(0), []
    for _ in range(length):
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        observation, reward, *_ = env.step(action)
        steps.append({**observation, "action": action, "reward": np.float32(reward)})
    env.close()
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def recording(spec: TaskSpec, length: int) -> Steps:
    """Make the steps of an episode that compress like real ones: pictures of lift, and states on a random
    walk.

    The pictures repeat after `CHUNK` steps, so that they are in the processor's cache, like pictures that a
    simulator has just rendered.
    """
    rng = np.random.default_rng(0)
    pictures = iter(array for array in lift_steps(CHUNK).values() if array.dtype == np.uint8)
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in spec.arrays().items():
        if array.is_image:
            arrays[name] = next(pictures)
        elif name == CONTROLLER:
            arrays[name] = np.full(length, BY_EXPERT)
        else:
            walk = 0.01 * rng.standard_normal((length, *array.shape)).cumsum(axis=0)
            arrays[name] = walk.astype(np.float32)
    return [
        {name: np.asarray(rows[step % len(rows)]) for name, rows in arrays.items()} for step in range(length)
    ]


def megabytes(steps: Steps) -> float:
    """Return the size of all arrays in MB."""
    return sum(array.nbytes for step in steps for array in step.values()) / 1e6


def write(store: EpisodeStore, spec: TaskSpec, number: int, steps: Steps) -> str:
    """Write and commit an episode; return its id."""
    id = episode_id("rollout", spec.name, number)
    writer = store.writer(EpisodeMeta(id, spec.name, seed=0, source="rollout"))
    for step in steps:
        writer.append(step)
    writer.commit("success")
    return id


def rate(call: Callable[[], object], amount: float) -> Callable[[], float]:
    """Return a function that measures the call's amount per second."""
    return lambda: amount / seconds(call)


# Against bare Redis


def against_raw(quick: bool) -> dict[str, list[float]]:
    """Measure the MB/s of writing and reading uncompressed episodes, and values of the same sizes in bare
    Redis.

    Bare Redis means SET and GET in a pipeline of redis-py. Several servers take part, because the places of
    their memory and file change the ratios by several hundredths.
    """
    samples: dict[str, list[float]] = {}
    for _ in range(1 if quick else SERVERS):
        with TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as url:
            for side, rates in against_raw_of(url, 9 if quick else 100).items():
                samples.setdefault(side, []).extend(rates)
    return samples


def against_raw_of(url: str, rounds: int) -> dict[str, list[float]]:
    """Measure like `against_raw` on one server. Both sides remove old values, because fresh memory is
    slower."""
    spec = store_spec("raw", PICTURES)
    steps = recording(spec, CHUNKS * CHUNK)
    store = open_store(url, spec, compression=0, byte_budget=int(1e6 * KEPT * megabytes(steps)), shards=1)
    ids = [write(store, spec, 0, steps)]
    (record,) = store.records()
    redis = Redis.from_url(url)
    rng, written = np.random.default_rng(0), [0]
    values = [rng.bytes(record.bytes // record.chunks) for _ in range(record.chunks)]

    def names(number: int) -> list[str]:
        return [f"raw:{number}:{index}" for index in range(len(values))]

    def put() -> None:
        written.append(len(written))
        with redis.pipeline(transaction=False) as pipe:
            for name, value in zip(names(written[-1]), values, strict=True):
                pipe.set(name, value)
            pipe.unlink(*names(written[-1] - KEPT + 1))
            pipe.execute()

    def get() -> None:
        with redis.pipeline(transaction=False) as pipe:
            for name in names(written[-1]):
                pipe.get(name)
            pipe.execute()

    sides: dict[str, Callable[[], object]] = {
        "ours in": lambda: ids.append(write(store, spec, len(ids), steps)),
        "raw in": put,
        "ours out": lambda: store.read(ids[-1]),
        "raw out": get,
    }
    put()
    amount = megabytes(steps)
    return interleaved({name: rate(call, amount) for name, call in sides.items()}, rounds)


# Codecs


def default_codec(url: str, observation: Mapping[str, ArraySpec], case: str, quick: bool) -> list[Row]:
    """Measure the default codec: MB/s of writing and reading, time of an append, and stored bytes per
    step."""
    spec, length = store_spec(case, observation), CHUNKS * CHUNK
    store, steps = open_store(url, spec), recording(spec, length)
    ids = [write(store, spec, 0, steps)]
    (record,) = store.records()
    appending: list[float] = []

    def put() -> None:
        ids.append(episode_id("rollout", case, len(ids)))
        writer = store.writer(EpisodeMeta(ids[-1], case, seed=0, source="rollout"))
        appending.append(1e6 / length * seconds(lambda: [writer.append(step) for step in steps]))
        writer.commit("success")

    sides: dict[str, Callable[[], object]] = {"in": put, "out": lambda: store.read(ids[-1])}
    amount = megabytes(steps)
    samples = interleaved({side: rate(call, amount) for side, call in sides.items()}, 9 if quick else 40)
    return [
        *(Row("bytes", f"{case}, default codec: {side}", "MB/s", rates) for side, rates in samples.items()),
        Row("append", f"{case}, default codec", "us/step", appending),
        Row("stored", f"{case}, default codec", "bytes/step", [record.bytes / record.length]),
    ]


def codecs(quick: bool) -> list[Row]:
    """Measure codecs on a chunk of lift's pictures and a chunk of its states: size, MB/s of encoding and
    decoding.

    The store's codecs encode arrays; the others compress the store's uncompressed chunk.
    """
    rows, every = [], lift_steps(CHUNK)
    pictures = {name: array for name, array in every.items() if array.dtype == np.uint8}
    states = {name: every[name] for name in every.keys() - pictures.keys()}
    for case, arrays in (("pictures", pictures), ("states", states)):
        raw = encode_chunk(arrays, 0)
        rounds = (5 if quick else 20) if len(raw) > 1e6 else 200
        for name, (encode, decode) in known_codecs(arrays, raw).items():
            stored, amount = encode(), len(raw) / 1e6
            sides = {"in": rate(encode, amount), "out": rate(partial(decode, stored), amount)}
            rows.append(Row("codec_size", f"{case}, {name}", "of a byte", [len(stored) / len(raw)]))
            for side, rates in interleaved(sides, rounds).items():
                rows.append(Row(f"codec_{side}", f"{case}, {name}", "MB/s", rates))
    return rows


Codec = tuple[Callable[[], bytes], Callable[[bytes], object]]
"""Function that encodes the chunk, and function that decodes."""


def known_codecs(arrays: Mapping[str, NDArray[Any]], raw: bytes) -> dict[str, Codec]:
    """Return the codecs by name, for a chunk given as arrays and as uncompressed bytes."""
    found: dict[str, Codec] = {
        f"ours, zstd {level}" if level else "ours, none": (partial(encode_chunk, arrays, level), decode_chunk)
        for level in (0, 1, 3, 9)
    }
    found["zstd -5"] = (partial(zstandard.compress, raw, -5), zstandard.decompress)
    found["zlib 1"] = (partial(zlib.compress, raw, 1), zlib.decompress)
    if importlib.util.find_spec("lz4"):
        lz4 = importlib.import_module("lz4.frame")
        found["lz4"] = (partial(lz4.compress, raw), lz4.decompress)
    return found


# Against TorchRL


def windows_of(url: str, quick: bool) -> dict[str, list[float]]:
    """Measure the seconds per batch of windows of pictures and states, as tensors.

    The sides hold the same episodes: the store with a learner's cache, the store without a cache, and slices
    of TorchRL from its storage in Redis and in memory.
    """
    from longview.learner.config import Horizon
    from longview.learner.windows import build, nows

    spec, length, episodes = store_spec("windows", PICTURES), 200, 6
    steps = recording(spec, length)
    horizon = Horizon(context=WINDOW, past=2, future=10, execute=4)

    def batch(store: EpisodeStore, rng: np.random.Generator) -> object:
        segments = store.sample({"rollout/success": 1.0}, WINDOWS, WINDOW - 1, horizon.after, rng)
        return build(segments, spec, horizon, WINDOW, nows(segments, 1, rng))

    store = open_store(url, spec)
    sides: dict[str, Callable[[], object]] = {
        "ours": partial(batch, store, np.random.default_rng(0)),
        "ours, no cache": partial(batch, open_store(url, spec, cache_bytes=0), np.random.default_rng(0)),
    }
    for number in range(episodes):
        write(store, spec, number, steps)
    if importlib.util.find_spec("torchrl"):
        sides |= torchrl_sides(url, steps, episodes)
    else:
        Console().print("torchrl is not installed: its rows and ratios are skipped")
    for once in sides.values():
        once()
    times = {name: partial(seconds, side) for name, side in sides.items()}
    return interleaved(times, 5 if quick else 20)


def torchrl_sides(url: str, steps: Steps, episodes: int) -> dict[str, Callable[[], object]]:
    """Fill TorchRL's buffers with the same steps; return functions that read a batch from each."""
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
    from torchrl.data.replay_buffers import StoreStorage

    size = len(steps) * episodes
    arrays = {name: torch.from_numpy(np.stack([step[name] for step in steps])) for name in steps[0]}
    sides: dict[str, Callable[[], object]] = {}
    for name, storage in {
        "TorchRL, Redis": StoreStorage(size, unix_socket_path=url.removeprefix("unix://")),
        "TorchRL, memory": LazyTensorStorage(size),
    }.items():
        sampler = SliceSampler(slice_len=WINDOW, traj_key="episode", cache_values=True)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=WINDOWS * WINDOW)
        for number in range(episodes):
            columns = arrays | {"episode": torch.full((len(steps),), number)}
            buffer.extend(TensorDict(columns, batch_size=[len(steps)]))

        sides[name] = partial(torchrl_batch, buffer, list(arrays))
    return sides


def torchrl_batch(buffer: Any, names: Sequence[str]) -> object:
    """Read all arrays of a batch of TorchRL."""
    drawn = buffer.sample()
    return [drawn.get(name) for name in names]


# The index


def draws(quick: bool) -> dict[str, list[float]]:
    """Measure the microseconds of a draw: the choice of episodes and of their steps, from the index alone."""
    selection = Selection({"demo": 1.0, "demo/success": 1.0})
    sides = {}
    for episodes in (1_000, 1_000_000):
        rng, index = np.random.default_rng(0), Index(1)
        entries: list[bytes] = []
        for number, steps in enumerate(rng.integers(50, 500, episodes).tolist()):
            outcome = "success" if steps % 2 else "failure"
            entries += [
                f"{episode_id('demo', 't', number)}:{steps}:{steps}:{outcome}:t".encode(),
                b"%d" % (number + 1),
            ]
        demos = list(SOURCES).index("demo")
        lists = [entries if source == demos else [] for source in range(len(SOURCES))]
        index.apply(0, [1, [b"clock", b"%d" % episodes], [], [], *lists])
        index.plan(selection)

        sides[f"{episodes:,}"] = drawing(index, selection, rng)
    return interleaved(sides, 200 if quick else 1000)


def drawing(index: Index, selection: Selection, rng: np.random.Generator) -> Callable[[], float]:
    """Return a function that measures one draw in microseconds."""
    return lambda: 1e6 * seconds(lambda: draw(index.plan(selection), DRAWN, rng))


# Saturation of one Redis


def saturation(url: str, stored: Mapping[str, float], quick: bool) -> list[Row]:
    """Measure the steps per second that one Redis accepts from a growing number of processes, and the number
    of actors that this serves.

    The processes send prepared bytes, so that Redis is the bottleneck.

    Args:
        url: address of Redis.
        stored: bytes per step, by case.
        quick: whether to measure briefly.
    """
    rows = []
    for case, bytes_per_step in stored.items():
        most = 0.0
        for processes in (1, 2) if quick else (1, 2, 3, 4):
            rate, busy = load(url, f"load-{case}-{processes}", int(CHUNK * bytes_per_step), processes, quick)
            most = max(most, rate)
            label = f"{case}, {processes} processes"
            rows += [
                Row("taken", label, "steps/s", [rate]),
                Row("taken_bytes", label, "MB/s", [rate * bytes_per_step / 1e6]),
                Row("redis_cpu", label, "%", [100 * busy]),
            ]
        rows.append(Row("actors", f"{case}, {ACTORS[case]:g} steps/s each", "actors", [most / ACTORS[case]]))
    return rows


def load(url: str, name: str, size: int, processes: int, quick: bool) -> tuple[float, float]:
    """Return the steps per second that Redis accepts from some processes, and the share of a core that it
    uses."""
    store = open_store(url, store_spec(name, STATE), shards=1)
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(processes + 1), context.Queue()
    arguments = [
        (url, name, number, size, 2.0 if quick else 8.0, start, found) for number in range(processes)
    ]
    running = [context.Process(target=simulated_actors, args=args) for args in arguments]
    for process in running:
        process.start()
    redis = Redis.from_url(url)
    start.wait()
    began, used = time.perf_counter(), cpu_seconds(redis)
    episodes = sum(found.get() for _ in running)
    elapsed, used = time.perf_counter() - began, cpu_seconds(redis) - used
    for process in running:
        process.join()
    committed = sum(count.episodes for count in store.stats().committed.values())
    assert committed == episodes, f"{episodes} episodes were sent, {committed} committed"
    return episodes * CHUNKS * CHUNK / elapsed, used / elapsed


def simulated_actors(
    url: str, name: str, number: int, size: int, seconds: float, start: Any, found: Any
) -> None:
    """Send episodes for some seconds, one after the other, and put their number into the queue `found`."""
    request, reply = conversation(name, size)
    with socket.socket(socket.AF_UNIX) as redis:
        redis.connect(url.removeprefix("unix://"))
        start.wait()
        ends, sent = time.perf_counter() + seconds, 0
        while time.perf_counter() < ends:
            id = episode_id("rollout", "load", 10_000_000 * number + sent)
            redis.sendall(request.replace(SOME_ID.encode(), id.encode()))
            received = b""
            while not received.endswith(reply):
                received += redis.recv(4096)
            sent += 1
    found.put(sent)


SOME_ID = episode_id("rollout", "load", 999_999_999)
"""Id in the prepared bytes, to be replaced by each episode's own id of the same length."""


def conversation(name: str, size: int) -> tuple[bytes, bytes]:
    """Return the bytes that a writer sends for the episode `SOME_ID`, and the end of the reply.

    Args:
        name: namespace.
        size: bytes of each of the `CHUNKS` chunks.
    """
    commands: list[Sequence[Any]] = []

    class Recorder:
        """Client that records the command of a commit instead of running it."""

        def script(self, source: str, replicated: bool = False) -> Script:
            def run(names: Sequence[str], args: Sequence[Any]) -> list[bytes]:
                commands.append(("EVAL", source, len(names), *names, *args))
                return [b"committed"]

            return run

    tag = keys.tag(name, 0)
    sink = Sink(cast(Client, Recorder()), lambda id: tag, 1, StoreConfig(byte_budget=BUDGET))
    meta = EpisodeMeta(SOME_ID, name, 0, "rollout")
    record = Record(meta, "success", 0, learnable=0, chunks=0, bytes=0, token="0" * 16, chunk_steps=CHUNK)
    chunk = np.random.default_rng(0).bytes(size)
    for _ in range(CHUNKS):
        commands += sink.chunk(record, chunk)
        length, chunks = record.length + CHUNK, record.chunks + 1
        record = replace(record, length=length, chunks=chunks, bytes=record.bytes + size)
    sink.commit(record)
    packed = Connection().pack_commands(commands)
    return b"".join(packed), b"$9\r\ncommitted\r\n"


def cpu_seconds(redis: Redis) -> float:
    """Return the CPU seconds that Redis has used so far."""
    used = redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


if __name__ == "__main__":
    main()
