"""What is lost when Redis is killed with -9 under writers, or the power of its machine is cut, again and
again: acknowledged episodes that are gone, how old they were, how long it takes until writing goes on.

A power cut is a kill after which the file system, of its own on a loop device, is what was on its device at
that moment: without all that the kernel still held back. It needs root.
"""

import fcntl
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import Row, finish, machine, parser, results

from longview.cluster.run.services import find_redis_server
from longview.replay.config import StoreConfig
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.errors import StoreUnavailable
from longview.replay.redis.client import Client
from longview.replay.store import EpisodeStore

SPEC = TaskSpec("walk", {"position": ArraySpec((32,))}, ArraySpec((7,), low=-1, high=1), 20.0, 100, (1,), 1)
CONFIG = StoreConfig(chunk_steps=16)
NAMESPACE = "durability"
STEPS = 40
"""Of an episode: three chunks."""

KINDS = ("always", "everysec")
ENDS = {"killed": "kills", "cut": "power cuts"}
TARGETS = {
    f"{measure}_{end}_{fsync}": "<= 0"
    for measure in ("missing", "broken")
    for end in ENDS
    for fsync in KINDS
    if (measure, fsync) != ("missing", "everysec")
} | {f"lost_seconds_{end}_everysec": "<= 1" for end in ENDS}
DISK_MIB = 2048
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)
"""EXT4_IOC_SHUTDOWN: from now on the file system writes nothing more, not even its journal."""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--kills", type=int, default=20, help="of Redis, of each kind")
    cuts = 0 if os.geteuid() else 20
    options.add_argument("--cuts", type=int, default=cuts, help="of the power, of each kind; only for root")
    options.add_argument("--writers", type=int, default=8, help="processes that write")
    chosen = options.parse_args()
    where = machine(quick=chosen.quick)
    rows = []
    for end, asked in {"killed": chosen.kills, "cut": chosen.cuts}.items():
        count = min(asked, 3) if chosen.quick else asked
        for fsync in KINDS if count else ():
            case = f"{count} {ENDS[end]} under {chosen.writers} writers"
            rows += rows_of(measured(fsync, count, chosen.writers, end), f"{end}_{fsync}", case)
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
    starts: list[float] = field(default_factory=list)
    """When Redis was there again after each."""
    recovered: list[float] = field(default_factory=list)
    """Seconds from each start to the first acknowledgement after it."""


def rows_of(outcome: Outcome, kind: str, case: str) -> list[Row]:
    found = len(outcome.acknowledged) - len(outcome.missing)
    return [
        Row(f"acknowledged_{kind}", case, "episodes", [len(outcome.acknowledged)]),
        Row(f"found_{kind}", case, "episodes", [found]),
        Row(f"missing_{kind}", case, "episodes", [len(outcome.missing)]),
        Row(f"lost_seconds_{kind}", f"{case}, each", "s", lost_seconds(outcome)),
        Row(f"broken_{kind}", case, "episodes", [outcome.broken]),
        Row(f"recovery_{kind}", f"{case}, each", "s", outcome.recovered),
    ]


def lost_seconds(outcome: Outcome) -> list[float]:
    """For each kill, how long before it the oldest episode was acknowledged that it cost; 0 if none."""
    lost = [0.0] * len(outcome.kills)
    for id in outcome.missing:
        noted = outcome.acknowledged[id]
        # What was acknowledged just before a kill may be noted just after it, but before Redis is back.
        number = next(number for number, start in enumerate(outcome.starts) if start > noted)
        lost[number] = max(lost[number], outcome.kills[number] - noted)
    return lost


def measured(fsync: str, ends: int, writers: int, end: str) -> Outcome:
    """Kill Redis under writers, or cut its power; then compare what they were told with what is there."""
    outcome, chance = Outcome(), random.Random(0)
    with TemporaryDirectory(dir="/tmp") as folder, redis(Path(folder), fsync, end == "cut") as server:
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
        for _ in range(ends):
            time.sleep(chance.uniform(0.2, 1.5))
            outcome.kills.append(server.kill())
            outcome.starts.append(started := server.start())
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

    def __init__(self, folder: Path, data: Path, fsync: str) -> None:
        path = folder / "socket"
        self.url, self._log = f"unix://{path}", folder / "log"
        self._command = [find_redis_server(), "--port", "0", "--unixsocket", str(path), "--dir", str(data)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
        self.start()

    def start(self) -> float:
        """Start it; when it was there."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, start_new_session=True)
        while True:
            try:
                client = Client(self.url, CONFIG)
            except StoreUnavailable:
                if self._process.poll() is not None:
                    raise RuntimeError(f"Redis does not start:\n{self._log.read_text()}") from None
                continue
            client.redis.close()
            return time.monotonic()

    def kill(self) -> float:
        """Kill it, and the child that may be rewriting its file; when it was dead."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        dead = time.monotonic()
        with suppress(ProcessLookupError):
            while time.monotonic() < dead + 5:  # as long as the child is there, the disk is busy
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)
        return dead

    def close(self) -> None:
        self.kill()


class Fragile(Server):
    """One whose disk forgets what was not synced when it is killed."""

    def __init__(self, folder: Path, fsync: str) -> None:
        self._image, self._data = folder / "image", folder / "disk"
        self._data.mkdir()
        with self._image.open("wb") as image:
            image.truncate(DISK_MIB << 20)
        command("mkfs.ext4", "-q", self._image)
        command("mount", "-o", "loop", self._image, self._data)
        super().__init__(folder, self._data, fsync)

    def kill(self) -> float:
        killed = super().kill()
        disk = os.open(self._data, os.O_RDONLY)
        try:
            fcntl.ioctl(disk, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(disk)
        command("umount", self._data)
        command("mount", "-o", "loop", self._image, self._data)
        return killed

    def close(self) -> None:
        super().kill()
        command("umount", self._data)


def command(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


@contextmanager
def redis(folder: Path, fsync: str, fragile: bool) -> Iterator[Server]:
    server = Fragile(folder, fsync) if fragile else Server(folder, folder, fsync)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    main()
