"""What is lost when Redis is killed with -9 under writers, again and again: episodes that were acknowledged and
are gone, and how old they were; and how long it takes until writing goes on."""

import multiprocessing
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import Row, finish, machine, parser, results

from cluster.services import find_redis_server
from replay.client import Client
from replay.config import StoreConfig
from replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from replay.errors import StoreUnavailable
from replay.store import EpisodeStore

SPEC = TaskSpec("walk", {"position": ArraySpec((32,))}, ArraySpec((7,), low=-1, high=1), 20.0, 100, (1,), 1)
CONFIG = StoreConfig(chunk_steps=16)
NAMESPACE = "durability"
STEPS = 40
"""Of an episode: three chunks."""

TARGETS = {
    "missing_always": "<= 0",
    "lost_seconds_always": "<= 0",
    "lost_seconds_everysec": "<= 1",
    "broken_always": "<= 0",
    "broken_everysec": "<= 0",
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--kills", type=int, default=20, help="of Redis, for each kind of fsync")
    options.add_argument("--writers", type=int, default=8, help="processes that write")
    chosen = options.parse_args()
    kills = min(chosen.kills, 5) if chosen.quick else chosen.kills
    where = machine(quick=chosen.quick)
    rows = []
    for fsync in ("always", "everysec"):
        case = f"{kills} kills under {chosen.writers} writers"
        rows += rows_of(measured(fsync, kills, chosen.writers), fsync, case)
    finish(results(where, rows, {}), TARGETS, chosen.json)


@dataclass
class Outcome:
    """Of one kind of fsync."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    """By id, when that was."""
    visible: int = 0
    """Episodes in the store in the end, acknowledged or not."""
    missing: list[str] = field(default_factory=list)
    """Acknowledged, and not there."""
    broken: int = 0
    """What is in the store and not what was written, or otherwise wrong with it."""
    kills: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)
    """Seconds from each start to the first acknowledgement after it."""


def rows_of(outcome: Outcome, fsync: str, case: str) -> list[Row]:
    found = len(outcome.acknowledged) - len(outcome.missing)
    return [
        Row(f"acknowledged_{fsync}", case, "episodes", [len(outcome.acknowledged)]),
        Row(f"found_{fsync}", case, "episodes", [found]),
        Row(f"missing_{fsync}", case, "episodes", [len(outcome.missing)]),
        Row(f"lost_seconds_{fsync}", f"{case}, each", "s", lost_seconds(outcome)),
        Row(f"broken_{fsync}", case, "episodes", [outcome.broken]),
        Row(f"recovery_{fsync}", f"{case}, each", "s", outcome.recovered),
    ]


def lost_seconds(outcome: Outcome) -> list[float]:
    """For each kill, how long before it the oldest episode was acknowledged that it cost; 0 if none."""
    lost = [0.0] * len(outcome.kills)
    for id in outcome.missing:
        acknowledged = outcome.acknowledged[id]
        number, killed = next((n, at) for n, at in enumerate(outcome.kills) if at > acknowledged)
        lost[number] = max(lost[number], killed - acknowledged)
    return lost


def measured(fsync: str, kills: int, writers: int) -> Outcome:
    """Kill Redis under writers; then compare what they were told with what is there."""
    outcome, chance = Outcome(), random.Random(0)
    with TemporaryDirectory(dir="/tmp") as folder, redis(Path(folder), fsync) as server:
        store = EpisodeStore.connect(server.url, NAMESPACE, CONFIG)
        store.register(SPEC)
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        logs = [Path(folder) / f"writer-{number}" for number in range(writers)]
        processes = [
            context.Process(target=write, args=(server.url, number, log, stop), daemon=True)
            for number, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        everybody_wrote(logs, 0.0)
        for _ in range(kills):
            time.sleep(chance.uniform(0.2, 1.5))
            server.kill()
            outcome.kills.append(time.monotonic())
            started = server.start()
            outcome.recovered.append(everybody_wrote(logs, started) - started)
        stop.set()
        for process in processes:
            process.join(60)
            if process.exitcode != 0:
                raise RuntimeError(f"a writer ended with {process.exitcode}")
        for log in logs:
            outcome.acknowledged |= acknowledged(log)
        there = store.ids()
        outcome.visible = len(there)
        outcome.missing = sorted(outcome.acknowledged.keys() - set(there))
        outcome.broken = len(store.verify().findings) + sum(not is_whole(store, id) for id in there)
        store.close()
    return outcome


def write(url: str, writer: int, log: Path, stop: object) -> None:
    """Write episodes, one after the other, and note each that was acknowledged."""
    store = EpisodeStore.connect(url, NAMESPACE, CONFIG)
    number = 0
    with log.open("w", buffering=1) as lines:
        while not stop.is_set():  # type: ignore[attr-defined]
            meta = EpisodeMeta(f"rollout.{writer}.{number:09d}", SPEC.name, number, "rollout")
            episode = store.writer(meta)
            for row in range(STEPS):
                episode.append(step_of(number + row))
            if episode.commit("success"):
                lines.write(f"{meta.id} {time.monotonic()}\n")
            number += 1
    store.close()


def step_of(number: int) -> dict[str, np.ndarray]:
    return {
        "observation.position": np.full(32, number, np.float32),
        "action": np.zeros(7, np.float32),
        "reward": np.array(number, np.float32),
    }


def is_whole(store: EpisodeStore, id: str) -> bool:
    episode = store.read(id)
    expected = np.arange(episode.meta.seed, episode.meta.seed + STEPS, dtype=np.float32)
    seen = episode.arrays["observation.position"]
    return bool((episode.arrays["reward"] == expected).all() and (seen == expected[:, None]).all())


def acknowledged(log: Path) -> dict[str, float]:
    """Ids, and when they were acknowledged."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {id: float(at) for id, at in (line.split() for line in lines if line.count(" ") == 1)}


def everybody_wrote(logs: list[Path], since: float) -> float:
    """Wait until every writer has had an episode acknowledged since then; when the first one was."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        news = [[at for at in acknowledged(log).values() if at > since] for log in logs]
        if all(news):
            return min(min(times) for times in news)
        time.sleep(0.05)
    raise RuntimeError("writers did not go on")


class Server:
    """A redis-server that can be killed and started again on its data."""

    def __init__(self, folder: Path, fsync: str) -> None:
        path = folder / "socket"
        self.url = f"unix://{path}"
        self._command = [find_redis_server(), "--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
        self.start()

    def start(self) -> float:
        """Start it; when it answered."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while True:
            try:
                client = Client(self.url, CONFIG)
            except StoreUnavailable:
                continue
            client.redis.close()
            return time.monotonic()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def redis(folder: Path, fsync: str) -> Iterator[Server]:
    server = Server(folder, fsync)
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    main()
